package rtnl

import (
	"fmt"
	"io/fs"

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
	attrs  []byte
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

// Qdiscs are those of a link, as one dump has them.
type Qdiscs []Qdisc

// ForeignRoot returns the root qdisc that neither the kernel has chosen nor [Conn.SetTBF] has made;
// nil for none.
func (qs Qdiscs) ForeignRoot() *Qdisc {
	q := qs.at(rootParent)
	if q == nil || q.Handle == 0 || q.isTBF() {
		return nil
	}
	return q
}

// Filters returns the qdisc at which filters of received frames are, of kind clsact or ingress; nil
// for none.
func (qs Qdiscs) Filters() *Qdisc { return qs.at(clsactParent | 0xfff1) }

// TBF returns what [Conn.SetTBF] has made. Its Burst is rounded. If the link has no such root
// qdisc, the error matches fs.ErrNotExist with errors.Is.
func (qs Qdiscs) TBF() (TBF, error) {
	if q := qs.at(rootParent); q != nil && q.isTBF() {
		return parseTBF(q.attrs)
	}
	return TBF{}, fs.ErrNotExist
}

func (qs Qdiscs) at(parent uint32) (found *Qdisc) {
	for i := range qs {
		if qs[i].parent == parent {
			found = &qs[i]
		}
	}
	return found
}

// isTBF reports whether a root qdisc is one that SetTBF has made.
func (q Qdisc) isTBF() bool { return q.Kind == tbfKind && q.Handle == tbfHandle>>16 }

// FilterQdisc is [Qdiscs.Filters] of a link.
func (c *Conn) FilterQdisc(index int) (*Qdisc, error) {
	qs, err := c.Qdiscs(index)
	return qs.Filters(), err
}

// Qdiscs reads the qdiscs of a link.
func (c *Conn) Qdiscs(index int) (found Qdiscs, err error) {
	msgs, err := c.dump(func() *nl.NetlinkRequest {
		req := c.request(unix.RTM_GETQDISC, unix.NLM_F_DUMP)
		req.AddData(&nl.TcMsg{Family: unix.AF_UNSPEC, Ifindex: int32(index)})
		return req
	}, unix.RTM_NEWQDISC)
	if err != nil {
		return nil, err
	}
	for _, m := range msgs {
		if len(m) < nl.SizeofTcMsg {
			continue
		}
		msg := nl.DeserializeTcMsg(m)
		if int(msg.Ifindex) != index {
			continue // the kernel lists the qdiscs of all links
		}
		q := Qdisc{Handle: msg.Handle >> 16, parent: msg.Parent, attrs: m[nl.SizeofTcMsg:]}
		each(q.attrs, func(kind uint16, v []byte) {
			switch kind {
			case nl.TCA_KIND:
				q.Kind = name(v)
			case tcaIngressBlock:
				q.IngressBlock = u32(v)
			case tcaEgressBlock:
				q.EgressBlock = u32(v)
			}
		})
		found = append(found, q)
	}
	return found, nil
}
