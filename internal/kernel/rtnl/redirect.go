package rtnl

import (
	"bytes"
	"encoding/binary"
	"io/fs"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// A Redirect is a filter that hands all received frames of a link to another link, which gives them
// back once it has sent them (drivers/net/ifb.c in the kernel).
type Redirect struct {
	Priority uint16 // among the link's filters
	To       int    // interface index; 0 if that has gone: the frames are dropped

	handle uint32
}

// RedirectHandle is the number of SetRedirect's filters in their table (TC_U32_NODE of
// include/uapi/linux/pkt_cls.h), by which they are known. The kernel numbers from 0x800 on.
const RedirectHandle = 0x76d

const (
	u32Kind, mirredKind = "u32", "mirred"
	// nodeMask selects the number of a u32 filter in its table from its handle; 0 is the table.
	nodeMask = 0xfff
	// egressRedirect is TCA_EGRESS_REDIR (include/uapi/linux/tc_act/tc_mirred.h).
	egressRedirect = 1
	// stolen is TC_ACT_STOLEN: no later filter sees the frame.
	stolen = 4
)

// mirredParams is struct tc_mirred of include/uapi/linux/tc_act/tc_mirred.h.
type mirredParams struct {
	Index, Capability uint32
	Action            int32
	References, Binds int32
	Kind              int32
	To                uint32
}

// SetRedirect makes the filter, and replaces one that it has made with that priority. It matches
// all frames by u32 (tc-u32(8)): some kernels that have it lack the classifier matchall. The link
// must have a clsact qdisc.
func (c *Conn) SetRedirect(index int, r Redirect) error {
	if err := c.DeleteRedirect(index, r.Priority); err != nil {
		return err
	}
	f := Filter{Priority: r.Priority, Handle: RedirectHandle}
	req := c.filterRequest(unix.RTM_NEWTFILTER, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, index, Ingress, f)
	var params bytes.Buffer
	p := mirredParams{Action: stolen, Kind: egressRedirect, To: uint32(r.To)}
	if err := binary.Write(&params, binary.NativeEndian, p); err != nil {
		return err
	}
	all := nl.TcU32Sel{Flags: nl.TC_U32_TERMINAL, Nkeys: 1}
	all.Keys = []nl.TcU32Key{{}} // of no bits: each frame matches
	options := nl.NewRtAttr(nl.TCA_OPTIONS, nil)
	options.AddRtAttr(nl.TCA_U32_SEL, all.Serialize())
	action := options.AddRtAttr(nl.TCA_U32_ACT, nil).AddRtAttr(1, nil)
	action.AddRtAttr(nl.TCA_ACT_KIND, nl.ZeroTerminated(mirredKind))
	action.AddRtAttr(nl.TCA_ACT_OPTIONS, nil).AddRtAttr(nl.TCA_MIRRED_PARMS, params.Bytes())
	req.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated(u32Kind)))
	req.AddData(options)
	return c.do(req)
}

// DeleteRedirect removes what SetRedirect has made with that priority. It is no error if there is
// none.
func (c *Conn) DeleteRedirect(index int, priority uint16) error {
	r, err := c.ReadRedirect(index, priority)
	if err == nil {
		err = c.DeleteFilter(index, Ingress, Filter{Priority: priority, Handle: r.handle, Kind: u32Kind})
	}
	return IgnoreNotExist(err)
}

// ReadRedirect reads what SetRedirect has made with that priority. If that is not there, the error
// matches fs.ErrNotExist with errors.Is.
func (c *Conn) ReadRedirect(index int, priority uint16) (Redirect, error) {
	found := Redirect{Priority: priority}
	err := c.eachFilter(index, Ingress, func(f Filter, attrs []byte) {
		if f.Kind != u32Kind || f.Priority != priority || f.Handle&nodeMask != RedirectHandle {
			return
		}
		found.handle = f.Handle
		each(attrs, func(kind uint16, v []byte) {
			if kind == nl.TCA_OPTIONS {
				found.To = redirectedTo(v)
			}
		})
	})
	if err == nil && found.handle == 0 {
		err = fs.ErrNotExist
	}
	return found, err
}

// redirectedTo returns the link to which a filter hands each frame; 0 for any other filter.
func redirectedTo(options []byte) (to int) {
	matchesAll := false
	each(options, func(kind uint16, v []byte) {
		switch kind {
		case nl.TCA_U32_SEL:
			if len(v) >= nl.SizeofTcU32Sel {
				s := nl.DeserializeTcU32Sel(v)
				matchesAll = s.Nkeys == 1 && len(s.Keys) == 1 && s.Keys[0].Mask == 0 && s.Keys[0].Val == 0
			}
		case nl.TCA_U32_ACT:
			each(v, func(_ uint16, action []byte) { to = mirroredTo(action) })
		}
	})
	if !matchesAll {
		return 0
	}
	return to
}

func mirroredTo(action []byte) (to int) {
	each(action, func(kind uint16, v []byte) {
		if kind != nl.TCA_ACT_OPTIONS {
			return
		}
		each(v, func(kind uint16, v []byte) {
			var p mirredParams
			if kind == nl.TCA_MIRRED_PARMS && binary.Read(bytes.NewReader(v), binary.NativeEndian, &p) == nil &&
				p.Kind == egressRedirect {
				to = int(p.To)
			}
		})
	})
	return to
}
