package rtnl

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Take adds the requests that take what a host has on one link to another one, which is up: first
// the addresses, so that none is missing meanwhile, then rules, routes and neighbors, then the end
// of the addresses on the old link. It is no error if something is there already. No address goes
// through duplicate address detection, during which it could not be used.
func (b *Batch) Take(h *HostConfig, to *Link) {
	b.give(h, to, true)
}

// Give adds the requests that give a link what h has, as Take does, without taking it from the old
// link.
func (b *Batch) Give(h *HostConfig, to *Link) { b.give(h, to, false) }

func (b *Batch) give(h *HostConfig, to *Link, take bool) {
	for _, raw := range inOrder(h.Addrs) {
		b.giveAddr(message{raw, sizeofAddr}, h, to)
	}
	for _, raw := range h.Rules {
		b.giveRule(message{raw, sizeofRule}, h, to, take)
	}
	// A router is reached by a route without one, so those come first.
	for _, byRouter := range []bool{false, true} {
		b.giveRoutes(h, to, take, byRouter)
	}
	for _, raw := range h.Neighbors {
		b.giveNeighbor(message{raw, sizeofNeighbor}, h, to, take)
	}
	if !take {
		return
	}
	// The first address of a subnet goes last: without promote_secondaries, the others end with it.
	for _, raw := range slices.Backward(h.Addrs) {
		m := message{raw, sizeofAddr}
		b.add("remove "+textOfAddr(m)+" from "+h.Name, m.request(unix.RTM_DELADDR, 0), unix.EADDRNOTAVAIL)
	}
}

// inOrder returns addresses in the order in which they have to be made so that the kernel lists
// them in the same order again: it puts an IPv6 address before the others of its scope
// (ipv6_link_dev_addr in net/ipv6/addrconf.c).
func inOrder(addrs [][]byte) (ordered [][]byte) {
	for _, raw := range addrs {
		if raw[0] == unix.AF_INET {
			ordered = append(ordered, raw)
		}
	}
	for _, raw := range slices.Backward(addrs) {
		if raw[0] == unix.AF_INET6 {
			ordered = append(ordered, raw)
		}
	}
	return ordered
}

// keptAddrFlags are the flags of an address that are settings; the others are states. IFA_F_* of
// include/uapi/linux/if_addr.h.
const keptAddrFlags = unix.IFA_F_NODAD | unix.IFA_F_HOMEADDRESS | unix.IFA_F_MANAGETEMPADDR |
	unix.IFA_F_NOPREFIXROUTE | unix.IFA_F_MCAUTOJOIN

func (b *Batch) giveAddr(m message, h *HostConfig, to *Link) {
	flags := u32(m.attr(unix.IFA_FLAGS)) & keptAddrFlags
	six := m.b[0] == unix.AF_INET6
	send := func(flags uint32) {
		c := m.rewritten(func(kind uint16, v []byte) []byte {
			switch kind {
			case unix.IFA_FLAGS:
				return binary.NativeEndian.AppendUint32(nil, flags)
			case unix.IFA_LABEL:
				return label(v, h.Name, to.Name)
			}
			return v
		})
		c.b[2] = byte(flags)
		binary.NativeEndian.PutUint32(c.b[4:], uint32(to.Index))
		b.add("add "+textOfAddr(m)+" to "+to.Name,
			c.request(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE), unix.EEXIST)
	}
	if six {
		send(flags | unix.IFA_F_NODAD)
	}
	if !six || flags&unix.IFA_F_NODAD == 0 { // the second request changes only the flag
		send(flags)
	}
}

func textOfAddr(m message) string {
	a := m.addr(unix.IFA_LOCAL)
	if !a.IsValid() {
		a = m.addr(unix.IFA_ADDRESS)
	}
	return netip.PrefixFrom(a, int(m.b[1])).String()
}

func (b *Batch) giveRule(m message, h *HostConfig, to *Link, take bool) {
	const kept = 0x2 // FIB_RULE_INVERT; the other flags are states
	clean := message{slices.Clone(m.b), m.size}
	binary.NativeEndian.PutUint32(clean.b[8:], u32(clean.b[8:])&kept)
	c := clean.rewritten(func(kind uint16, v []byte) []byte {
		if (kind == nl.FRA_IIFNAME || kind == nl.FRA_OIFNAME) && name(v) == h.Name {
			return zeroTerminated(to.Name)
		}
		return v
	})
	what := fmt.Sprintf("rule %d of %s", m.number(nl.FRA_PRIORITY), h.Name)
	b.add("add "+what, c.request(unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL), unix.EEXIST)
	if take {
		b.add("remove "+what, clean.request(unix.RTM_DELRULE, 0), unix.ENOENT)
	}
}

// giveRoutes gives the routes by routers, or the others. A nexthop object takes the routes by it
// along. They are added for the case that the kernel has removed them with it, as it does when the
// link loses its carrier (nh_netdev_event in net/ipv4/nexthop.c).
func (b *Batch) giveRoutes(h *HostConfig, to *Link, take, byRouter bool) {
	indirect := map[int]bool{} // by id: nexthops that are by a router
	for _, raw := range h.Nexthops {
		m := nexthop(raw)
		indirect[m.number(unix.NHA_ID)] = m.attr(unix.NHA_GATEWAY) != nil || m.attr(unix.NHA_GROUP) != nil
	}
	var later []message
	for _, raw := range h.Routes {
		m := message{raw, sizeofRoute}
		switch id := m.number(rtaNHID); {
		case id != 0 && indirect[id] == byRouter:
			later = append(later, m)
		case id == 0 && hasRouter(m) == byRouter:
			b.giveRoute(m, h, to, take)
		}
	}
	for _, raw := range h.Nexthops {
		if m := nexthop(raw); indirect[m.number(unix.NHA_ID)] == byRouter {
			b.giveNexthop(m, h, to)
		}
	}
	for _, m := range later {
		b.giveRoute(m, h, to, false)
	}
}

func hasRouter(m message) bool {
	has := false
	eachHop(m.attr(unix.RTA_MULTIPATH), func(hop []byte) {
		each(hop[unix.SizeofRtNexthop:], func(kind uint16, _ []byte) { has = has || isRouter(kind) })
	})
	each(m.b[m.size:], func(kind uint16, _ []byte) { has = has || isRouter(kind) })
	return has
}

func isRouter(kind uint16) bool { return kind == unix.RTA_GATEWAY || kind == unix.RTA_VIA }

// keptHopFlags are the flags of a route that are settings.
const keptHopFlags = unix.RTNH_F_ONLINK | unix.RTNH_F_PERVASIVE

// rtaExpires is RTA_EXPIRES (include/uapi/linux/rtnetlink.h): seconds until the end of an IPv6
// route. The kernel reports them in RTA_CACHEINFO.
const rtaExpires = 23

func (b *Batch) giveRoute(m message, h *HostConfig, to *Link, take bool) {
	clean := m.rewritten(func(kind uint16, v []byte) []byte {
		switch kind {
		case unix.RTA_CACHEINFO:
			return nil
		case unix.RTA_MULTIPATH:
			return hops(v, 0, 0)
		}
		return v
	})
	binary.NativeEndian.PutUint32(clean.b[8:], u32(clean.b[8:])&keptHopFlags)
	c := clean.rewritten(func(kind uint16, v []byte) []byte {
		switch kind {
		case unix.RTA_OIF:
			return native(to.Index)
		case unix.RTA_MULTIPATH:
			return hops(v, h.Link, to.Index)
		}
		return v
	})
	if m.number(rtaNHID) != 0 {
		c = byNexthop(clean)
	}
	// struct rta_cacheinfo: rta_expires is the third field, in hundredths of a second.
	if info := m.attr(unix.RTA_CACHEINFO); m.b[0] == unix.AF_INET6 && len(info) >= 12 {
		if left := int32(u32(info[8:])); left > 0 {
			c = c.with(rtaExpires, native(int(left)/clockTick+1))
		}
	}
	what := fmt.Sprintf("route to %s of %s", textOfRoute(m), h.Name)
	if take {
		b.add("remove "+what, clean.request(unix.RTM_DELROUTE, 0), unix.ESRCH)
	}
	b.add("add "+what, c.request(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_APPEND), unix.EEXIST)
}

// hops returns RTA_MULTIPATH without states, and with another link in place of from.
func hops(v []byte, from, to int) []byte {
	v = slices.Clone(v)
	eachHop(v, func(hop []byte) {
		hop[2] &= keptHopFlags
		if from != 0 && int(u32(hop[4:])) == from {
			binary.NativeEndian.PutUint32(hop[4:], uint32(to))
		}
	})
	return v
}

func textOfRoute(m message) string {
	dst := m.addr(unix.RTA_DST)
	if !dst.IsValid() {
		return "default"
	}
	return netip.PrefixFrom(dst, int(m.b[1])).String()
}

func (b *Batch) giveNeighbor(m message, h *HostConfig, to *Link, take bool) {
	m = m.rewritten(without(unix.NDA_CACHEINFO, unix.NDA_PROBES))
	c := message{slices.Clone(m.b), m.size}
	binary.NativeEndian.PutUint32(c.b[4:], uint32(to.Index))
	if state := binary.NativeEndian.Uint16(c.b[8:]); state&unix.NUD_PERMANENT == 0 {
		binary.NativeEndian.PutUint16(c.b[8:], unix.NUD_STALE) // used at once, and then confirmed
	}
	what := fmt.Sprintf("neighbor %s of %s", m.addr(unix.NDA_DST), h.Name)
	b.add("add "+what, c.request(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE), unix.EEXIST)
	if take {
		b.add("remove "+what, m.request(unix.RTM_DELNEIGH, 0), unix.ENOENT)
	}
}
