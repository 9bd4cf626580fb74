package rtnl

import (
	"encoding/binary"
	"errors"
	"io/fs"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// A Hook is where a link's frames pass the filters of its clsact qdisc (tc-bpf(8)). Its values are
// TC_H_MIN_INGRESS and TC_H_MIN_EGRESS (include/uapi/linux/pkt_sched.h).
type Hook uint32

// The hooks of a link.
const (
	Ingress Hook = 0xfff2 // of received frames; of a tap, those that its VMM has written
	Egress  Hook = 0xfff3 // of sent frames; of a macvtap, those that its VMM has written
)

// String returns the hook as tc names it.
func (h Hook) String() string {
	if h == Egress {
		return "egress"
	}
	return "ingress"
}

// clsactParent is TC_H_CLSACT, the parent of a clsact qdisc, in the upper 16 bits.
const clsactParent = 0xffff0000

const clsactKind, bpfKind = "clsact", "bpf"

// A Filter is a filter of a hook.
type Filter struct {
	Priority uint16 // filters with a low one are first
	Handle   uint32 // its number among those of one priority
	Kind     string
	Name     string // given by who has made it; only of a BPF filter
	Program  uint32 // id of its BPF program, or 0
	Tag      []byte // of its BPF program: 8 bytes of a hash of its instructions
}

// AddClsact gives a link a clsact qdisc, which has the hooks. It is no error if it has one. It goes
// with the link.
func (c *Conn) AddClsact(index int) error {
	err := c.qdisc(unix.RTM_NEWQDISC, unix.NLM_F_CREATE|unix.NLM_F_EXCL, index)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// DeleteClsact removes a link's clsact qdisc with its filters. It is no error if there is none.
func (c *Conn) DeleteClsact(index int) error {
	err := IgnoreNotExist(c.qdisc(unix.RTM_DELQDISC, 0, index))
	// EINVAL: the link has no qdisc at that place (__tc_get_qdisc in net/sched/sch_api.c).
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// TidyClsact removes a link's clsact qdisc if it has no filters. One that shares filters with other
// links stays.
func (c *Conn) TidyClsact(index int) error {
	q, err := c.FilterQdisc(index)
	if err != nil || q == nil || q.IngressBlock+q.EgressBlock != 0 {
		return err
	}
	for _, hook := range []Hook{Ingress, Egress} {
		all, err := c.Filters(index, hook)
		if err != nil || len(all) > 0 {
			return err
		}
	}
	return c.DeleteClsact(index)
}

func (c *Conn) qdisc(kind, flags, index int) error {
	req := c.request(kind, unix.NLM_F_ACK|flags)
	req.AddData(&nl.TcMsg{
		Family: unix.AF_UNSPEC, Ifindex: int32(index), Parent: clsactParent | 0xfff1,
		Handle: clsactParent,
	})
	req.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated(clsactKind)))
	return c.do(req)
}

// SetBPFFilter makes or replaces the filter with that priority and handle, so that program runs for
// each frame and decides itself (direct action). To replace one is atomic: each frame passes the
// old program or the new one. The filter holds the program; the caller may close its fd. If that
// filter is of another kind, the error matches unix.EINVAL with errors.Is.
func (c *Conn) SetBPFFilter(index int, hook Hook, f Filter, program int) error {
	req := c.filterRequest(unix.RTM_NEWTFILTER, unix.NLM_F_ACK|unix.NLM_F_CREATE, index, hook, f)
	options := nl.NewRtAttr(nl.TCA_OPTIONS, nil)
	options.AddRtAttr(nl.TCA_BPF_FD, nl.Uint32Attr(uint32(program)))
	options.AddRtAttr(nl.TCA_BPF_NAME, nl.ZeroTerminated(f.Name))
	options.AddRtAttr(nl.TCA_BPF_FLAGS, nl.Uint32Attr(nl.TCA_BPF_FLAG_ACT_DIRECT))
	req.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated(bpfKind)))
	req.AddData(options)
	return c.do(req)
}

// DeleteFilter removes the filter with that priority and handle. If there is none, the error
// matches fs.ErrNotExist with errors.Is.
func (c *Conn) DeleteFilter(index int, hook Hook, f Filter) error {
	req := c.filterRequest(unix.RTM_DELTFILTER, unix.NLM_F_ACK, index, hook, f)
	req.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated(f.Kind)))
	err := c.do(req)
	// EINVAL: there is no qdisc (tcf_qdisc_find in net/sched/cls_api.c).
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return fs.ErrNotExist
	}
	return err
}

// Filters lists the filters of a hook by priority. A link without a clsact qdisc has none, nor has
// one that does not exist.
func (c *Conn) Filters(index int, hook Hook) (found []Filter, err error) {
	err = c.eachFilter(index, hook, func(f Filter, _ []byte) { found = append(found, f) })
	return found, err
}

// eachFilter calls f for each filter of a hook, with its attributes.
func (c *Conn) eachFilter(index int, hook Hook, f func(Filter, []byte)) error {
	msgs, err := c.dump(func() *nl.NetlinkRequest {
		return c.filterRequest(unix.RTM_GETTFILTER, unix.NLM_F_DUMP, index, hook, Filter{})
	}, unix.RTM_NEWTFILTER)
	for _, m := range msgs {
		if len(m) < nl.SizeofTcMsg {
			continue
		}
		// One message stands for all filters of a priority and has no handle.
		if found := parseFilter(m); found.Handle != 0 {
			f(found, m[nl.SizeofTcMsg:])
		}
	}
	return err
}

func (c *Conn) filterRequest(kind, flags, index int, hook Hook, f Filter) *nl.NetlinkRequest {
	msg := &nl.TcMsg{
		Family: unix.AF_UNSPEC, Ifindex: int32(index), Parent: clsactParent | uint32(hook), Handle: f.Handle,
	}
	if f.Priority != 0 {
		msg.Info = uint32(f.Priority)<<16 | uint32(binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL}))
	}
	req := c.request(kind, flags)
	req.AddData(msg)
	return req
}

func parseFilter(m []byte) Filter {
	msg := nl.DeserializeTcMsg(m)
	f := Filter{Priority: uint16(msg.Info >> 16), Handle: msg.Handle}
	each(m[nl.SizeofTcMsg:], func(kind uint16, v []byte) {
		switch kind {
		case nl.TCA_KIND:
			f.Kind = name(v)
		case nl.TCA_OPTIONS:
			each(v, f.option)
		}
	})
	if f.Kind != bpfKind { // whose options have the same numbers and another meaning
		f.Name, f.Program, f.Tag = "", 0, nil
	}
	return f
}

func (f *Filter) option(kind uint16, v []byte) {
	switch kind {
	case nl.TCA_BPF_NAME:
		f.Name = name(v)
	case nl.TCA_BPF_ID:
		f.Program = u32(v)
	case nl.TCA_BPF_TAG:
		f.Tag = v
	}
}
