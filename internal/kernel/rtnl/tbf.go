package rtnl

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// tbfHandle is the handle by which this package's root qdiscs are known: "vm" in ASCII. The kernel
// chooses handles from 8000: (hexadecimal) on.
const tbfHandle = 0x766d << 16

const (
	tbfKind = "tbf"
	// rootParent is TC_H_ROOT.
	rootParent = 0xffffffff
	// etherLinkLayer is TC_LINKLAYER_ETHERNET: the length of a frame is what it costs.
	etherLinkLayer = 1
	// tickNS is the kernel's unit of time for qdiscs in nanoseconds (PSCHED_SHIFT in
	// include/net/pkt_sched.h).
	tickNS = 64
)

// A TBF is a token bucket filter (tc-tbf(8)): the root qdisc of a link, through which its frames
// leave.
type TBF struct {
	Rate  uint64 // bytes per second
	Burst uint32 // bytes that may leave at once after an idle time
	Limit uint32 // bytes that may wait
}

// tbfParams is struct tc_tbf_qopt of include/uapi/linux/pkt_sched.h. The kernel takes a rate of 4
// GB/s and more from an attribute of its own.
type tbfParams struct {
	Rate, Peak         tbfRate
	Limit, Buffer, MTU uint32
}

type tbfRate struct {
	CellLog, LinkLayer uint8
	Overhead           uint16
	CellAlign          int16
	MPU                uint16
	Rate               uint32
}

// buffer returns the burst as the kernel shows it: the time that the burst takes, in ticks.
func (t TBF) buffer() uint32 {
	return uint32(min(float64(t.Burst)*1e9/float64(t.Rate)/tickNS, 1<<32-1))
}

// Is reports whether t, which [Conn.ReadTBF] has returned, is the filter that SetTBF makes of want.
func (t TBF) Is(want TBF) bool {
	// The kernel and this package divide by the rate with another rounding.
	a, b := int64(t.buffer()), int64(want.buffer())
	return t.Rate == want.Rate && t.Limit == want.Limit && max(a-b, b-a) <= 2+b/10000
}

// SetTBF makes a link's root qdisc a token bucket filter, or changes the one that SetTBF has made,
// of which no frame is lost. It goes with the link. If the link has a root qdisc that neither the
// kernel has chosen nor SetTBF has made, that stays, and the error matches fs.ErrExist.
func (c *Conn) SetTBF(index int, t TBF) error {
	req := c.rootRequest(unix.RTM_NEWQDISC, unix.NLM_F_ACK|unix.NLM_F_CREATE, index)
	p := tbfParams{Rate: tbfRate{LinkLayer: etherLinkLayer}, Limit: t.Limit, Buffer: t.buffer()}
	p.Rate.Rate = uint32(min(t.Rate, 1<<32-1))
	var b bytes.Buffer
	if err := binary.Write(&b, binary.NativeEndian, p); err != nil {
		return err
	}
	options := nl.NewRtAttr(nl.TCA_OPTIONS, nil)
	options.AddRtAttr(nl.TCA_TBF_PARMS, b.Bytes())
	options.AddRtAttr(nl.TCA_TBF_BURST, nl.Uint32Attr(t.Burst))
	if t.Rate >= 1<<32 {
		options.AddRtAttr(nl.TCA_TBF_RATE64, nl.Uint64Attr(t.Rate))
	}
	req.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated(tbfKind)))
	req.AddData(options)
	return c.do(req)
}

// DeleteTBF removes what SetTBF has made; the link gets the default qdisc. It is no error if there
// is none.
func (c *Conn) DeleteTBF(index int) error {
	if _, err := c.ReadTBF(index); err != nil {
		return IgnoreNotExist(err)
	}
	err := IgnoreNotExist(c.do(c.rootRequest(unix.RTM_DELQDISC, unix.NLM_F_ACK, index)))
	// It has gone meanwhile (tc_get_qdisc in net/sched/sch_api.c).
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

func (c *Conn) rootRequest(kind, flags, index int) *nl.NetlinkRequest {
	req := c.request(kind, flags)
	req.AddData(&nl.TcMsg{
		Family: unix.AF_UNSPEC, Ifindex: int32(index), Parent: rootParent, Handle: tbfHandle,
	})
	return req
}

// ReadTBF is [Qdiscs.TBF] of a link.
func (c *Conn) ReadTBF(index int) (TBF, error) {
	qs, err := c.Qdiscs(index)
	if err != nil {
		return TBF{}, err
	}
	return qs.TBF()
}

func parseTBF(attrs []byte) (t TBF, err error) {
	err = fs.ErrNotExist
	each(attrs, func(kind uint16, v []byte) {
		if kind != nl.TCA_OPTIONS {
			return
		}
		var p tbfParams
		var rate64 uint64
		each(v, func(kind uint16, v []byte) {
			switch {
			case kind == nl.TCA_TBF_PARMS:
				err = binary.Read(bytes.NewReader(v), binary.NativeEndian, &p)
			case kind == nl.TCA_TBF_RATE64 && len(v) == 8:
				rate64 = binary.NativeEndian.Uint64(v)
			}
		})
		t = TBF{Rate: max(uint64(p.Rate.Rate), rate64), Limit: p.Limit}
		t.Burst = uint32(min(float64(p.Buffer)*tickNS*float64(t.Rate)/1e9+0.5, 1<<32-1))
	})
	return t, err
}
