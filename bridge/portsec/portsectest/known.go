package portsectest

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"vmnet/bridge/portsec"
)

// Known returns a random frame whose verdict follows from how it was built, for [Config]: one that
// a guest may send, or such a frame with one thing wrong. The rest of it is random: addresses of
// others, ports, options, extension headers and payloads.
func (x *Random) Known() Case {
	kinds := []func() Case{
		x.goodFrame, x.goodFrame, x.goodFrame, x.goodFrame, x.wrongMAC, x.wrongTag, x.wrongType, x.wrongIP4, x.wrongIP6,
		x.wrongARP, x.wrongND, x.dhcpServer, x.dhcp6Server, x.router, x.fragmentedRouter, x.manyHeaders, x.cutOff,
	}
	c := kinds[x.r.IntN(len(kinds))]()
	c.Config = Config()
	return c
}

func known(name string, want portsec.Reason, frame []byte) Case {
	return Case{Name: name, Frame: frame, Want: want}
}

// goodFrame is one that a guest may send, without a tag.
func (x *Random) goodFrame() Case {
	switch x.r.IntN(5) {
	case 0:
		proto, payload := x.payload4()
		return known("IPv4", portsec.Pass, x.packet4(IP4, proto, payload))
	case 1:
		op := pick[uint16](x.r, 1, 2)
		return known("ARP", portsec.Pass, arpFrame(arpMessage{op, MAC, x.mac(), IP4, x.addr4()}))
	case 2:
		own := pick(x.r, IP6, local6)
		return known("neighbor discovery", portsec.Pass,
			nd(own, peer6, 136, neighbor(own, lladdr(2, MAC))))
	case 3:
		return known("discover", portsec.Pass,
			v4(ip4{src: any4, dst: all4, proto: 17, payload: udp(68, 67, string(x.bytes(64)))}))
	}
	src := pick(x.r, IP6, local6)
	next, payload := x.payload6()
	return known("IPv6", portsec.Pass, x.behind(src, next, payload, x.r.IntN(maxHeaders+1)))
}

// maxHeaders is how many extension headers may be in front of what is checked.
const maxHeaders = 8

func (x *Random) bytes(most int) []byte {
	b := make([]byte, x.r.IntN(most+1))
	for i := range b {
		b[i] = byte(x.r.Uint32())
	}
	return b
}

// mac returns another one's unicast address.
func (x *Random) mac() net.HardwareAddr {
	b := x.r.Uint32()
	return net.HardwareAddr{
		byte(x.r.Uint32()) &^ 1, byte(x.r.Uint32()), byte(b >> 24), byte(b >> 16), byte(b >> 8), byte(b),
	}
}

// addr4 returns another one's unicast address.
func (x *Random) addr4() netip.Addr {
	n := x.r.Uint32()
	a := netip.AddrFrom4([4]byte{byte(1 + x.r.IntN(223)), byte(n >> 16), byte(n >> 8), byte(n)})
	if a == IP4 {
		return other4
	}
	return a
}

// addr6 returns another one's unicast address.
func (x *Random) addr6() netip.Addr {
	var b [16]byte
	for i := range b {
		b[i] = byte(x.r.Uint32())
	}
	switch x.r.IntN(3) {
	case 0: // near the guest's own
		b = IP6.As16()
		b[15] = byte(2 + x.r.IntN(250))
	case 1:
		b = local6.As16()
		b[8+x.r.IntN(8)] ^= byte(1 + x.r.IntN(255))
	default:
		b[0] = byte(0x20 + x.r.IntN(0x20)) // global
	}
	a := netip.AddrFrom16(b)
	if a == IP6 {
		return other6
	}
	return a
}

// highPort returns a port that no server of DHCP has.
func (x *Random) highPort() uint16 { return uint16(10_000 + x.r.IntN(50_000)) }

func (x *Random) payload4() (proto byte, payload []byte) {
	switch x.r.IntN(3) {
	case 0:
		return 6, append(make([]byte, 20), x.bytes(200)...)
	case 1:
		return 1, append([]byte{8, 0, 0, 0, 0, 0, 0, 0}, x.bytes(200)...)
	}
	return 17, udp(x.highPort(), x.highPort(), string(x.bytes(200)))
}

func (x *Random) payload6() (next byte, payload []byte) {
	if x.r.IntN(2) == 0 {
		return 6, append(make([]byte, 20), x.bytes(200)...)
	}
	return 17, udp(x.highPort(), x.highPort(), string(x.bytes(200)))
}

// packet4 returns a frame with random options.
func (x *Random) packet4(src netip.Addr, proto byte, payload []byte) []byte {
	return v4(ip4{
		src: src, dst: x.addr4(), proto: proto, options: make([]byte, 4*x.r.IntN(11)), payload: payload,
	})
}

// behind returns a frame whose payload is behind that many extension headers of right lengths.
func (x *Random) behind(src netip.Addr, next byte, payload []byte, headers int) []byte {
	for range headers {
		kind, units := pick[byte](x.r, 0, 43, 51, 60), x.r.IntN(3)
		h := padding(next)
		if kind == 51 { // in units of 4 bytes, minus 2
			h[1] = byte(units * 2)
		} else {
			h[1] = byte(units)
		}
		h = append(h, make([]byte, units*8)...)
		payload, next = append(h, payload...), kind
	}
	return v6(src, x.addr6(), next, payload)
}

func (x *Random) wrongMAC() Case {
	f := x.goodFrame()
	mac := x.mac()
	if slices.Equal(mac, MAC) {
		mac = OtherMAC
	}
	copy(f.Frame[6:], mac)
	return known("source MAC, "+f.Name, portsec.SourceMAC, f.Frame)
}

func (x *Random) wrongTag() Case {
	f := x.goodFrame()
	tag := [2]uint16{pick[uint16](x.r, 0x8100, 0x88a8), uint16(x.r.Uint32())}
	return known("tag, "+f.Name, portsec.Tagged, tagged(f.Frame, tag))
}

func (x *Random) wrongType() Case {
	kind := uint16(x.r.IntN(0x600)) // LLC
	if x.r.IntN(2) == 0 {
		kind = uint16(0x9300 + x.r.IntN(0x6c00)) // above all that mean something to a check
	}
	return known(fmt.Sprintf("type %#x", kind), portsec.OtherType, to(kind, append(make([]byte, 46), x.bytes(200)...)))
}

func (x *Random) wrongIP4() Case {
	proto, payload := x.payload4()
	return known("source of IPv4", portsec.SourceIP, x.packet4(x.addr4(), proto, payload))
}

func (x *Random) wrongIP6() Case {
	next, payload := x.payload6()
	headers := x.r.IntN(maxHeaders + 1)
	return known("source of IPv6", portsec.SourceIP, x.behind(x.addr6(), next, payload, headers))
}

func (x *Random) wrongARP() Case {
	m := arpMessage{pick[uint16](x.r, 1, 2), MAC, zeroMAC, IP4, x.addr4()}
	switch x.r.IntN(3) {
	case 0:
		m.spa = x.addr4()
	case 1:
		m.sha = slices.Clone(OtherMAC)
	default:
		m.op = uint16(5 + x.r.IntN(1000))
	}
	return known("ARP of others", portsec.ForgedARP, arpFrame(m))
}

func (x *Random) wrongND() Case {
	switch x.r.IntN(3) {
	case 0: // an advertisement of another's address
		return known("advertisement of others", portsec.ForgedND,
			nd(IP6, peer6, 136, neighbor(x.addr6(), lladdr(2, MAC))))
	case 1:
		return known("advertisement of another's MAC", portsec.ForgedND,
			nd(IP6, peer6, 136, neighbor(IP6, lladdr(2, OtherMAC))))
	}
	return known("solicitation with another's MAC", portsec.ForgedND,
		nd(IP6, peer6, 135, neighbor(peer6, lladdr(1, OtherMAC))))
}

func (x *Random) dhcpServer() Case {
	return known("server of DHCP", portsec.DHCPServer,
		x.packet4(IP4, 17, udp(67, 68, string(x.bytes(200)))))
}

func (x *Random) dhcp6Server() Case {
	return known("server of DHCPv6", portsec.DHCPServer,
		x.behind(IP6, 17, udp(547, 546, string(x.bytes(200))), x.r.IntN(maxHeaders+1)))
}

// router is a router advertisement from the guest's own address.
func (x *Random) router() Case {
	return known("router", portsec.RouterAdvert,
		x.behind(local6, 58, icmp6(local6, allNodes, 134, advert()), x.r.IntN(maxHeaders+1)))
}

func (x *Random) fragmentedRouter() Case {
	ra := icmp6(local6, allNodes, 134, advert())
	return known("fragment of a router", portsec.Fragmented,
		v6(local6, allNodes, 44, append(fragment(58, 0, x.r.IntN(2) == 0), ra...)))
}

func (x *Random) manyHeaders() Case {
	next, payload := x.payload6()
	return known("headers", portsec.Headers,
		x.behind(IP6, next, payload, maxHeaders+1+x.r.IntN(4)))
}

// cutOff is a frame that ends in its IP header.
func (x *Random) cutOff() Case {
	if x.r.IntN(2) == 0 {
		proto, payload := x.payload4()
		return known("IPv4, cut off", portsec.Short, x.packet4(IP4, proto, payload)[:14+x.r.IntN(20)])
	}
	next, payload := x.payload6()
	return known("IPv6, cut off", portsec.Short, x.behind(IP6, next, payload, 0)[:14+x.r.IntN(40)])
}
