package rtnl

import (
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Attributes of a qdisc in include/uapi/linux/rtnetlink.h that package nl lacks.
const (
	tcaIngressBlock = 13
	tcaEgressBlock  = 14
)

// A Qdisc is a queueing discipline of a link (tc(8)).
type Qdisc struct {
	Kind   string
	Handle uint32 // as tc shows it before the colon; 0 of one that the kernel has chosen by itself

	// Blocks are the numbers of the blocks of filters that links share; 0 for none.
	IngressBlock, EgressBlock uint32

	parent uint32
}

// String returns the qdisc as tc shows it, such as "pfifo 8001:".
func (q Qdisc) String() string { return fmt.Sprintf("%s %x:", q.Kind, q.Handle) }

// Block returns the block of filters that links share at a hook; 0 for none.
func (q Qdisc) Block(h Hook) uint32 {
	if h == Egress {
		return q.EgressBlock
	}
	return q.IngressBlock
}

// ForeignRoot returns the root qdisc that neither the kernel has chosen nor [Conn.SetTBF] has made;
// nil for none.
func (c *Conn) ForeignRoot(index int) (*Qdisc, error) {
	q, err := c.findQdisc(index, rootParent)
	if q == nil || q.Handle == 0 || q.Kind == tbfKind && q.Handle == tbfHandle>>16 {
		return nil, err
	}
	return q, nil
}

// FilterQdisc returns the qdisc at which filters of received frames are, of kind clsact or ingress;
// nil for none.
func (c *Conn) FilterQdisc(index int) (*Qdisc, error) {
	return c.findQdisc(index, clsactParent|0xfff1)
}

func (c *Conn) findQdisc(index int, parent uint32) (found *Qdisc, err error) {
	err = c.eachQdisc(index, func(q Qdisc, _ []byte) {
		if q.parent == parent {
			found = &q
		}
	})
	return found, err
}

// eachQdisc calls f for each qdisc of a link, with its attributes.
func (c *Conn) eachQdisc(index int, f func(q Qdisc, attrs []byte)) error {
	msgs, err := c.dump(func() *nl.NetlinkRequest {
		req := c.request(unix.RTM_GETQDISC, unix.NLM_F_DUMP)
		req.AddData(&nl.TcMsg{Family: unix.AF_UNSPEC, Ifindex: int32(index)})
		return req
	}, unix.RTM_NEWQDISC)
	if err != nil {
		return err
	}
	for _, m := range msgs {
		if len(m) < nl.SizeofTcMsg {
			continue
		}
		msg := nl.DeserializeTcMsg(m)
		if int(msg.Ifindex) != index {
			continue // the kernel lists the qdiscs of all links
		}
		q := Qdisc{Handle: msg.Handle >> 16, parent: msg.Parent}
		attrs := m[nl.SizeofTcMsg:]
		each(attrs, func(kind uint16, v []byte) {
			switch kind {
			case nl.TCA_KIND:
				q.Kind = name(v)
			case tcaIngressBlock:
				q.IngressBlock = u32(v)
			case tcaEgressBlock:
				q.EgressBlock = u32(v)
			}
		})
		f(q, attrs)
	}
	return nil
}
