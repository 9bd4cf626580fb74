package rtnl

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// A Proxy is an entry by which the host answers ARP or neighbour discovery for an address of
// another machine (NTF_PROXY). For IPv4 the kernel answers only while the route to the address
// leads to another link than the one that the question came by (arp_process in net/ipv4/arp.c); for
// IPv6 wherever it leads (ndisc_recv_ns in net/ipv6/ndisc.c).
type Proxy struct {
	Link     int // index of the link by which questions come
	Addr     netip.Addr
	Protocol uint8 // who has made it, as of a route (RTPROT_*); 0 if the kernel does not say
}

// Proxies lists the entries of all links.
func (c *Conn) Proxies() (found []Proxy, err error) {
	err = c.eachNeighbour(unix.NTF_PROXY, func(n entry) {
		found = append(found, Proxy{n.link, n.addr, n.protocol})
	})
	if err != nil {
		return nil, fmt.Errorf("list proxy entries: %w", err)
	}
	return found, nil
}

// AddProxy adds an entry. One that is there already becomes the caller's.
func (c *Conn) AddProxy(p Proxy) error {
	req := c.neighbour(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE, unix.NTF_PROXY, p.Link, p.Addr)
	req.AddData(nl.NewRtAttr(ndaProtocol, []byte{p.Protocol}))
	return c.do(req)
}

// DeleteProxy removes an entry. It is no error if there is none, or no such link.
func (c *Conn) DeleteProxy(p Proxy) error {
	return IgnoreNotExist(c.do(c.neighbour(unix.RTM_DELNEIGH, 0, unix.NTF_PROXY, p.Link, p.Addr)))
}

// A Neighbour is what the kernel knows of an address on a link.
type Neighbour struct {
	MAC   net.HardwareAddr // nil if it is not known
	State uint16           // NUD_*
}

// Answers reports whether the neighbour has answered lately, or an administrator has entered it.
func (n Neighbour) Answers() bool {
	return n.MAC != nil && n.State&(unix.NUD_REACHABLE|unix.NUD_PERMANENT) != 0
}

// IsPermanent reports whether an administrator has entered it.
func (n Neighbour) IsPermanent() bool { return n.State&unix.NUD_PERMANENT != 0 }

// A NeighbourAt is a neighbour with its address and the index of its link.
type NeighbourAt struct {
	Neighbour
	Link int
	Addr netip.Addr
}

// Neighbours lists what the kernel knows of addresses on all links, IPv4 and IPv6, without those
// whose MAC it does not know or that have stopped answering, and without those that need none, such
// as multicast addresses.
func (c *Conn) Neighbours() (found []NeighbourAt, err error) {
	const useless = unix.NUD_FAILED | unix.NUD_INCOMPLETE | unix.NUD_NOARP
	err = c.eachNeighbour(0, func(n entry) {
		if n.MAC != nil && n.State&useless == 0 {
			found = append(found, NeighbourAt{n.Neighbour, n.link, n.addr})
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list neighbours: %w", err)
	}
	return found, nil
}

// eachNeighbour calls f with each entry of IPv4 and IPv6: the proxy entries if proxy is NTF_PROXY,
// the others if it is 0.
func (c *Conn) eachNeighbour(proxy uint8, f func(entry)) error {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		msgs, err := c.dump(func() *nl.NetlinkRequest {
			req := c.request(unix.RTM_GETNEIGH, unix.NLM_F_DUMP)
			req.AddData(&ndmsg{family: uint8(family), flags: proxy})
			return req
		}, unix.RTM_NEWNEIGH)
		if err != nil {
			return err
		}
		for _, m := range msgs {
			if n, ok := parseNeighbour(m); ok && n.flags&unix.NTF_PROXY == proxy {
				f(n)
			}
		}
	}
	return nil
}

// Solicit has the kernel ask for an address on a link, by ARP or neighbour discovery, and returns
// at once. Neighbour then returns the answer, if there is one.
func (c *Conn) Solicit(link int, a netip.Addr) error {
	return c.do(c.neighbour(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE, unix.NTF_USE, link, a))
}

// Forget removes what the kernel knows of an address on a link. It is no error if that is nothing.
func (c *Conn) Forget(link int, a netip.Addr) error {
	return IgnoreNotExist(c.do(c.neighbour(unix.RTM_DELNEIGH, 0, 0, link, a)))
}

// Neighbour returns what the kernel knows of an address on a link, the zero value for nothing.
func (c *Conn) Neighbour(link int, a netip.Addr) (Neighbour, error) {
	msgs, err := c.sock.execute(c.neighbour(unix.RTM_GETNEIGH, 0, 0, link, a), unix.RTM_NEWNEIGH)
	if err != nil {
		return Neighbour{}, IgnoreNotExist(notExist(err))
	}
	for _, m := range msgs {
		if n, ok := parseNeighbour(m); ok && n.link == link && n.addr == a {
			return n.Neighbour, nil
		}
	}
	return Neighbour{}, nil
}

// neighbour returns a request about an address on a link.
func (c *Conn) neighbour(kind, flags int, ntf uint8, link int, a netip.Addr) *nl.NetlinkRequest {
	if kind != unix.RTM_GETNEIGH { // which has an answer of its own
		flags |= unix.NLM_F_ACK
	}
	req := c.request(kind, flags)
	req.AddData(&ndmsg{family: uint8(family(a)), index: int32(link), flags: ntf})
	req.AddData(nl.NewRtAttr(unix.NDA_DST, a.AsSlice()))
	return req
}

// ndaProtocol is NDA_PROTOCOL.
const ndaProtocol = 12

// ndmsg is struct ndmsg (include/uapi/linux/neighbour.h).
type ndmsg struct {
	family, flags uint8
	index         int32
	state         uint16 // NUD_*
}

func (*ndmsg) Len() int { return sizeofNdmsg }

// Serialize returns the message; its type is 0.
func (m *ndmsg) Serialize() []byte {
	b := make([]byte, sizeofNdmsg)
	b[0], b[10] = m.family, m.flags
	binary.NativeEndian.PutUint32(b[4:], uint32(m.index))
	binary.NativeEndian.PutUint16(b[8:], m.state)
	return b
}

// entry is a neighbour or a proxy entry.
type entry struct {
	Neighbour
	link     int
	addr     netip.Addr
	flags    uint8
	protocol uint8
}

// parseNeighbour decodes an RTM_NEWNEIGH message; ok is false for one without an IP address.
func parseNeighbour(m []byte) (n entry, ok bool) {
	if len(m) < sizeofNdmsg {
		return n, false
	}
	n.link = int(int32(binary.NativeEndian.Uint32(m[4:])))
	n.State, n.flags = binary.NativeEndian.Uint16(m[8:]), m[10]
	each(m[sizeofNdmsg:], func(kind uint16, v []byte) {
		switch kind {
		case unix.NDA_DST:
			n.addr, ok = netip.AddrFromSlice(v)
		case unix.NDA_LLADDR:
			n.MAC = append(net.HardwareAddr(nil), v...)
		case ndaProtocol:
			n.protocol = u8(v)
		}
	})
	return n, ok
}
