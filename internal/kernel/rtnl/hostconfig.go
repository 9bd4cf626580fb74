package rtnl

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// A HostConfig is what makes a link an interface of the host: addresses with their lifetimes and
// flags, nexthop objects, routes of all tables, rules that name the link, and neighbors, as the
// kernel's messages.
type HostConfig struct {
	Link      int    // index
	Name      string // of the link
	AddrGen   uint8  // Link.AddrGen
	Addrs     [][]byte
	Nexthops  [][]byte // by the link, and then the groups that have one of them (ip-nexthop(8))
	Routes    [][]byte
	Rules     [][]byte
	Neighbors [][]byte
}

// maxNeighbors bounds the neighbors that are kept: they are a cache.
const maxNeighbors = 1024

// HostConfig reads what the host has on a link.
func (c *Conn) HostConfig(l *Link) (*HostConfig, error) {
	h := &HostConfig{Link: l.Index, Name: l.Name, AddrGen: l.AddrGen}
	for _, read := range []struct {
		what string
		f    func(*HostConfig) error
	}{
		{"addresses", c.readAddrs},
		{"nexthop objects", c.readNexthops},
		{"routes", c.readRoutes},
		{"rules", c.readRules},
		{"neighbors", c.readNeighbors},
	} {
		if err := read.f(h); err != nil {
			return nil, fmt.Errorf("list the %s of %s: %w", read.what, l.Name, err)
		}
	}
	return h, nil
}

func (c *Conn) readAddrs(h *HostConfig) error {
	all, err := c.messages(unix.RTM_GETADDR, unix.RTM_NEWADDR, sizeofAddr, nl.NewIfAddrmsg(unix.AF_UNSPEC))
	for _, m := range all {
		if int(u32(m.b[4:])) == h.Link {
			h.Addrs = append(h.Addrs, m.b)
		}
	}
	return err
}

var families = []uint8{unix.AF_INET, unix.AF_INET6}

func (c *Conn) readRoutes(h *HostConfig) error {
	for _, family := range families {
		all, err := c.messages(unix.RTM_GETROUTE, unix.RTM_NEWROUTE, sizeofRoute,
			&nl.RtMsg{RtMsg: unix.RtMsg{Family: family}})
		if err != nil {
			return err
		}
		for _, m := range all {
			// The kernel makes its routes to local addresses with the addresses.
			own := m.b[4] == unix.RT_TABLE_LOCAL && m.b[5] == unix.RTPROT_KERNEL
			if !own && h.has(m) {
				h.Routes = append(h.Routes, m.b)
			}
		}
	}
	return nil
}

// has reports whether a route is by the link. The kernel may not say where a route by a nexthop
// object leads (net.ipv4.nexthop_compat_mode).
func (h *HostConfig) has(route message) bool {
	if id := route.number(rtaNHID); id != 0 {
		return slices.ContainsFunc(h.Nexthops, func(b []byte) bool { return nexthop(b).number(unix.NHA_ID) == id })
	}
	return leadsBy(route, h.Link)
}

// leadsBy reports whether a route, or a hop of it, is by the link with that index.
func leadsBy(m message, index int) (leads bool) {
	eachHop(m.attr(unix.RTA_MULTIPATH), func(hop []byte) { leads = leads || int(u32(hop[4:])) == index })
	return leads || m.number(unix.RTA_OIF) == index
}

// eachHop calls f with each struct rtnexthop (include/uapi/linux/rtnetlink.h) and its attributes.
func eachHop(b []byte, f func(hop []byte)) {
	for len(b) >= unix.SizeofRtNexthop {
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofRtNexthop || n > len(b) {
			return
		}
		f(b[:n])
		b = b[min((n+3)&^3, len(b)):]
	}
}

func (c *Conn) readRules(h *HostConfig) error {
	for _, family := range families {
		all, err := c.messages(unix.RTM_GETRULE, unix.RTM_NEWRULE, sizeofRule,
			&nl.RtMsg{RtMsg: unix.RtMsg{Family: family}})
		if err != nil {
			return err
		}
		for _, m := range all {
			if name(m.attr(nl.FRA_IIFNAME)) == h.Name || name(m.attr(nl.FRA_OIFNAME)) == h.Name {
				h.Rules = append(h.Rules, m.b)
			}
		}
	}
	return nil
}

func (c *Conn) readNeighbors(h *HostConfig) error {
	const usable = unix.NUD_PERMANENT | unix.NUD_REACHABLE | unix.NUD_STALE | unix.NUD_DELAY | unix.NUD_PROBE
	for _, family := range families {
		for _, flags := range []uint8{0, unix.NTF_PROXY} {
			all, err := c.messages(unix.RTM_GETNEIGH, unix.RTM_NEWNEIGH, sizeofNeighbor, &neighborHeader{family, flags})
			if err != nil {
				return err
			}
			for _, m := range all {
				state := binary.NativeEndian.Uint16(m.b[8:])
				proxy := m.b[10]&unix.NTF_PROXY != 0
				if int(u32(m.b[4:])) == h.Link && proxy == (flags != 0) && (proxy || state&usable != 0) &&
					len(h.Neighbors) < maxNeighbors {
					h.Neighbors = append(h.Neighbors, m.b)
				}
			}
		}
	}
	return nil
}

// neighborHeader is a struct ndmsg that asks for all neighbors of a family, or for the addresses
// for which the host answers as a proxy (neigh_dump_info in net/core/neighbour.c).
type neighborHeader struct{ family, flags uint8 }

func (*neighborHeader) Len() int { return sizeofNdmsg }

func (h *neighborHeader) Serialize() []byte {
	b := make([]byte, sizeofNdmsg)
	b[0], b[10] = h.family, h.flags
	return b
}

// Addresses returns the addresses with their prefix lengths, without IPv6 link-local ones.
func (h *HostConfig) Addresses() (addrs []netip.Prefix) {
	for _, b := range h.Addrs {
		m := message{b, sizeofAddr}
		a := m.addr(unix.IFA_LOCAL)
		if !a.IsValid() {
			a = m.addr(unix.IFA_ADDRESS)
		}
		if a.Is4() || a.Is6() && !a.IsLinkLocalUnicast() {
			addrs = append(addrs, netip.PrefixFrom(a, int(b[1])))
		}
	}
	return addrs
}

// label returns the label of an IPv4 address on another link: "eth1:1" becomes "lan:1". nil stands
// for the link's name.
func label(old []byte, from, to string) []byte {
	rest, ok := strings.CutPrefix(name(old), from)
	if !ok || len(to)+len(rest) >= unix.IFNAMSIZ {
		return nil
	}
	return zeroTerminated(to + rest)
}
