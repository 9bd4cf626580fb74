package rtnl

import (
	"errors"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// AddRuleExcept has a table consulted before others for all packets of an IP version (AF_INET or
// AF_INET6) but those of a protocol. It needs Linux 4.17, with tables (CONFIG_IP_MULTIPLE_TABLES).
// One that is there already is no error.
func (c *Conn) AddRuleExcept(family, protocol, table uint8) error {
	req := c.request(unix.RTM_NEWRULE, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	const toTable, invert = 1, 2 // FR_ACT_TO_TBL, FIB_RULE_INVERT of include/uapi/linux/fib_rules.h
	req.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{Family: family, Table: table, Type: toTable, Flags: invert}})
	req.AddData(nl.NewRtAttr(nl.FRA_IP_PROTO, []byte{protocol}))
	req.AddData(nl.NewRtAttr(nl.FRA_PRIORITY, nl.Uint32Attr(uint32(table))))
	if err := c.do(req); !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// SetLinkRoute leads packets for a range of addresses to a link, in a table, and cuts them to an
// MTU. It replaces the route to that range.
func (c *Conn) SetLinkRoute(table uint8, dst netip.Prefix, link, mtu int) error {
	req := c.request(unix.RTM_NEWROUTE, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
	metrics := nl.NewRtAttr(unix.RTA_METRICS, nil)
	metrics.AddRtAttr(unix.RTAX_MTU, nl.Uint32Attr(uint32(mtu)))
	return c.do(tableRoute(req, table, dst, link, metrics))
}

// DeleteLinkRoute removes what SetLinkRoute has made. It is no error if that is gone.
func (c *Conn) DeleteLinkRoute(table uint8, dst netip.Prefix, link int) error {
	err := c.do(tableRoute(c.request(unix.RTM_DELROUTE, unix.NLM_F_ACK), table, dst, link))
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return IgnoreNotExist(err)
}

func tableRoute(req *nl.NetlinkRequest, table uint8, dst netip.Prefix, link int, more ...*nl.RtAttr,
) *nl.NetlinkRequest {
	scope := uint8(unix.RT_SCOPE_LINK)
	if dst.Addr().Is6() {
		scope = unix.RT_SCOPE_UNIVERSE
	}
	req.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{
		Family: uint8(family(dst.Addr())), Dst_len: uint8(dst.Bits()), Table: table, Protocol: unix.RTPROT_STATIC,
		Scope: scope, Type: unix.RTN_UNICAST,
	}})
	req.AddData(nl.NewRtAttr(unix.RTA_DST, dst.Masked().Addr().AsSlice()))
	req.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(link))))
	for _, a := range more {
		req.AddData(a)
	}
	return req
}
