package rtnl

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// A Route is where packets to a range of addresses go.
type Route struct {
	Dst  netip.Prefix // of length 0 for a default route
	Link int          // index of the link; 0 for none, or for several
	RA   bool         // it comes from a router advertisement (RTPROT_RA)

	Local    bool  // to the host itself (RTN_LOCAL)
	Protocol uint8 // who has made it (RTPROT_*)
}

// Routes lists the routes of all tables, without those to multicast, broadcast and anycast
// addresses.
func (c *Conn) Routes() ([]Route, error) {
	var found []Route
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		msgs, err := c.dump(func() *nl.NetlinkRequest {
			req := c.request(unix.RTM_GETROUTE, unix.NLM_F_DUMP)
			req.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{Family: family}})
			return req
		}, unix.RTM_NEWROUTE)
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, m := range msgs {
			if r, ok := parseRoute(m); ok {
				found = append(found, r)
			}
		}
	}
	return found, nil
}

// parseRoute decodes an RTM_NEWROUTE message (struct rtmsg of include/uapi/linux/rtnetlink.h); ok
// is false for one that Routes leaves out.
func parseRoute(m []byte) (r Route, ok bool) {
	if len(m) < unix.SizeofRtMsg {
		return r, false
	}
	family, bits, protocol, kind := m[0], int(m[1]), m[5], m[7]
	var dst netip.Addr
	switch {
	case kind == unix.RTN_MULTICAST || kind == unix.RTN_BROADCAST || kind == unix.RTN_ANYCAST:
		return r, false
	case family == unix.AF_INET:
		dst = netip.IPv4Unspecified()
	case family == unix.AF_INET6:
		dst = netip.IPv6Unspecified()
	default:
		return r, false
	}
	r.RA, r.Local, r.Protocol = protocol == unix.RTPROT_RA, kind == unix.RTN_LOCAL, protocol
	each(m[unix.SizeofRtMsg:], func(kind uint16, v []byte) {
		switch kind {
		case unix.RTA_DST:
			if a, ok := netip.AddrFromSlice(v); ok {
				dst = a
			}
		case unix.RTA_OIF:
			r.Link = int(u32(v))
		}
	})
	r.Dst = netip.PrefixFrom(dst, bits)
	return r, r.Dst.IsValid() && !dst.IsMulticast() && !dst.IsLinkLocalUnicast()
}

// RouteTo returns the index of the link by which the kernel sends to an address, that of lo for one
// of its own. Without a route, the error is ENETUNREACH.
func (c *Conn) RouteTo(a netip.Addr) (link int, err error) {
	req := c.request(unix.RTM_GETROUTE, 0)
	req.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{Family: uint8(family(a)), Dst_len: uint8(a.BitLen())}})
	req.AddData(nl.NewRtAttr(unix.RTA_DST, a.AsSlice()))
	msgs, err := c.sock.execute(req, unix.RTM_NEWROUTE)
	if err != nil || len(msgs) != 1 || len(msgs[0]) < unix.SizeofRtMsg {
		return 0, cmp.Or(err, error(unix.EBADMSG))
	}
	return message{msgs[0], unix.SizeofRtMsg}.number(unix.RTA_OIF), nil
}

// AddDefaultRoute makes a router the one for all addresses of its IP version. The route is by the
// link of that index; if it is 0, by the one whose subnet the router is in.
func (c *Conn) AddDefaultRoute(router netip.Addr, link int) error {
	req := c.request(unix.RTM_NEWROUTE, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	req.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{
		Family: uint8(family(router)), Table: unix.RT_TABLE_MAIN, Protocol: unix.RTPROT_STATIC,
		Scope: unix.RT_SCOPE_UNIVERSE, Type: unix.RTN_UNICAST,
	}})
	req.AddData(nl.NewRtAttr(unix.RTA_GATEWAY, router.AsSlice()))
	if link != 0 {
		req.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(link))))
	}
	return c.do(req)
}

// AddHostRoute leads packets for one address to a link. If there is a route to the address already,
// the error matches fs.ErrExist with errors.Is. The route is of global scope, so that the host
// sends with a global address of its own and not with one of the link.
func (c *Conn) AddHostRoute(a netip.Addr, link int, protocol uint8) error {
	return c.do(hostRoute(c.request(unix.RTM_NEWROUTE, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL),
		a, link, protocol))
}

// DeleteHostRoute removes what AddHostRoute has made. It is no error if that is gone.
func (c *Conn) DeleteHostRoute(a netip.Addr, link int, protocol uint8) error {
	err := c.do(hostRoute(c.request(unix.RTM_DELROUTE, unix.NLM_F_ACK), a, link, protocol))
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return IgnoreNotExist(err)
}

func hostRoute(req *nl.NetlinkRequest, a netip.Addr, link int, protocol uint8) *nl.NetlinkRequest {
	req.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{
		Family: uint8(family(a)), Dst_len: uint8(a.BitLen()), Table: unix.RT_TABLE_MAIN, Protocol: protocol,
		Scope: unix.RT_SCOPE_UNIVERSE, Type: unix.RTN_UNICAST,
	}})
	req.AddData(nl.NewRtAttr(unix.RTA_DST, a.AsSlice()))
	req.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(link))))
	return req
}
