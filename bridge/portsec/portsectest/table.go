package portsectest

import (
	"net"
	"net/netip"
	"slices"
	"strconv"

	"vmnet/bridge/portsec"
)

// A Case is a frame that the guest sends, and why it is dropped.
type Case struct {
	Name   string
	Frame  []byte
	Want   portsec.Reason
	Config portsec.Config
}

// noIPs are the checks of a Config without IP addresses.
const noIPs = portsec.All &^ portsec.IP

type builder struct{ cases []Case }

func (b *builder) add(name string, want portsec.Reason, frame []byte) {
	b.with(Config(), name, want, frame)
}

func (b *builder) with(cfg portsec.Config, name string, want portsec.Reason, frame []byte) {
	b.cases = append(b.cases, Case{Name: name, Frame: frame, Want: want, Config: cfg})
}

// Table returns the named frames. The guest has IP4 and IP6.
func Table() []Case {
	var b builder
	b.good()
	b.forged()
	b.links()
	b.arp()
	b.ipv4()
	b.ipv6()
	b.neighbors()
	b.fragments()
	b.settings()
	b.truncated()
	return b.cases
}

func to(kind uint16, packet []byte) []byte { return eth(VictimMAC, kind, packet) }

func v4(p ip4) []byte { return to(0x0800, p.bytes()) }

func v6(src, dst netip.Addr, next byte, payload []byte) []byte {
	return to(0x86dd, ip6(src, dst, next, payload))
}

// nd returns a message of ICMPv6.
func nd(src, dst netip.Addr, kind byte, body []byte) []byte {
	return v6(src, dst, 58, icmp6(src, dst, kind, body))
}

func arpFrame(m arpMessage) []byte { return eth(everybody, 0x0806, m.bytes()) }

// good are frames of each protocol that a guest needs.
func (b *builder) good() {
	b.add("ipv4", portsec.Pass, v4(ip4{src: IP4, dst: peer4, proto: 17, payload: udp(1000, 2000, "x")}))
	b.add("arp", portsec.Pass, arpFrame(arpMessage{1, MAC, zeroMAC, IP4, peer4}))
	b.add("arp-probe", portsec.Pass, arpFrame(arpMessage{1, MAC, zeroMAC, any4, IP4}))
	b.add("arp-gratuitous-request", portsec.Pass, arpFrame(arpMessage{1, MAC, zeroMAC, IP4, IP4}))
	b.add("arp-gratuitous-reply", portsec.Pass, arpFrame(arpMessage{2, MAC, everybody, IP4, IP4}))
	b.add("arp-padded", portsec.Pass,
		append(arpFrame(arpMessage{1, MAC, zeroMAC, IP4, peer4}), make([]byte, 18)...))
	b.add("rarp-announce", portsec.Pass, eth(everybody, 0x8035, arpMessage{3, MAC, MAC, any4, any4}.bytes()))
	b.add("dhcp-discover", portsec.Pass, v4(ip4{src: any4, dst: all4, proto: 17, payload: udp(68, 67, "x")}))
	b.add("dhcp-renew", portsec.Pass, v4(ip4{src: IP4, dst: peer4, proto: 17, payload: udp(68, 67, "x")}))
	b.add("dhcp6-solicit", portsec.Pass, v6(local6, allNodes, 17, udp(546, 547, "x")))
	b.add("tcp4", portsec.Pass, v4(ip4{src: IP4, dst: peer4, proto: 6, payload: make([]byte, 20)}))
	b.add("ping4", portsec.Pass, v4(ip4{src: IP4, dst: peer4, proto: 1, payload: []byte{8, 0, 0, 0}}))
	b.add("igmp-report", portsec.Pass, v4(ip4{
		src: any4, dst: netip.MustParseAddr("224.0.0.22"), proto: 2,
		options: []byte{0x94, 4, 0, 0}, payload: []byte{0x22, 0, 0, 0},
	}))
	b.add("ipv6", portsec.Pass, v6(IP6, peer6, 17, udp(1000, 2000, "x")))
	b.add("tcp6", portsec.Pass, v6(IP6, peer6, 6, make([]byte, 20)))
	b.add("no-next-header", portsec.Pass, v6(IP6, peer6, 59, nil))
	b.add("ping6", portsec.Pass, nd(IP6, peer6, 128, make([]byte, 8)))
	b.add("nd-ns", portsec.Pass, nd(IP6, peer6, 135, neighbor(peer6, lladdr(1, MAC))))
	b.add("nd-ns-link-local", portsec.Pass, nd(local6, peer6, 135, neighbor(peer6, lladdr(1, MAC))))
	b.add("nd-na", portsec.Pass, nd(IP6, peer6, 136, neighbor(IP6, lladdr(2, MAC))))
	b.add("nd-na-link-local", portsec.Pass, nd(IP6, allNodes, 136, neighbor(local6, lladdr(2, MAC))))
	b.add("nd-dad", portsec.Pass, nd(any6, group6, 135, neighbor(IP6)))
	b.add("nd-dad-nonce", portsec.Pass,
		nd(any6, group6, 135, neighbor(local6, []byte{14, 1, 1, 2, 3, 4, 5, 6})))
	b.add("nd-rs", portsec.Pass, nd(local6, allNodes, 133, append(make([]byte, 4), lladdr(1, MAC)...)))
	b.add("nd-rs-unspecified", portsec.Pass, nd(any6, allNodes, 133, make([]byte, 4)))
	for _, src := range []netip.Addr{any6, local6} {
		b.add("mld2-report from "+src.String(), portsec.Pass, v6(src, allNodes, 0,
			append([]byte{58, 0, 5, 2, 0, 0, 1, 0}, icmp6(src, allNodes, 143, make([]byte, 4))...)))
		b.add("mld-report from "+src.String(), portsec.Pass, v6(src, allNodes, 0,
			append([]byte{58, 0, 5, 2, 0, 0, 1, 0}, icmp6(src, allNodes, 131, make([]byte, 20))...)))
	}
	// Padding after the packet is not a part of the message.
	b.add("nd-trailer", portsec.Pass,
		append(nd(IP6, peer6, 135, neighbor(peer6, lladdr(1, MAC))), 2, 1, 9, 9, 9, 9, 9, 9))
	// Each receiver discards it, and it has no address.
	b.add("nd-option-beyond", portsec.Pass,
		nd(IP6, peer6, 135, neighbor(peer6, lladdr(1, MAC), []byte("<<nd-ns>>......."))))
}

// forged are the plain forgeries.
func (b *builder) forged() {
	plain := ip4{src: IP4, dst: peer4, proto: 17, payload: udp(1000, 2000, "x")}
	spoof := ip4{src: other4, dst: peer4, proto: 17, payload: udp(1000, 2000, "x")}
	gateway := arpFrame(arpMessage{2, MAC, zeroMAC, router, router})
	b.add("mac-spoof", portsec.SourceMAC, ethFrom(OtherMAC, VictimMAC, 0x0800, plain.bytes()))
	b.add("ip-spoof", portsec.SourceIP, v4(spoof))
	b.add("arp-spoof-ip", portsec.ForgedARP, gateway)
	b.add("arp-spoof-mac", portsec.ForgedARP, arpFrame(arpMessage{2, OtherMAC, zeroMAC, IP4, IP4}))
	b.add("dhcp-server", portsec.DHCPServer,
		v4(ip4{src: IP4, dst: peer4, proto: 17, payload: udp(67, 68, "x")}))
	b.add("ip6-spoof", portsec.SourceIP, v6(other6, peer6, 17, udp(1000, 2000, "x")))
	b.add("na-spoof", portsec.ForgedND, nd(IP6, peer6, 136, neighbor(other6, lladdr(2, MAC))))
	b.add("na-lladdr", portsec.ForgedND, nd(IP6, peer6, 136, neighbor(IP6, lladdr(2, OtherMAC))))
	b.add("ra", portsec.RouterAdvert, nd(otherLL, allNodes, 134, advert()))
	b.add("ra-own", portsec.RouterAdvert, nd(local6, allNodes, 134, advert()))
	ra := icmp6(otherLL, allNodes, 134, advert())
	b.add("ra-ext", portsec.RouterAdvert, v6(otherLL, allNodes, 60, append(padding(58), ra...)))
	b.add("ra-frag", portsec.Fragmented, v6(otherLL, allNodes, 44, append(fragment(58, 0, false), ra...)))
	b.add("dhcp6-server", portsec.DHCPServer, v6(IP6, peer6, 17, udp(547, 546, "x")))
	b.add("vlan-ip-spoof", portsec.Tagged, tagged(v4(spoof), [2]uint16{0x8100, 5}))
	b.add("prio-ip-spoof", portsec.Tagged, tagged(v4(spoof), [2]uint16{0x8100, 0}))
	b.add("qinq-ip-spoof", portsec.Tagged, tagged(v4(spoof), [2]uint16{0x88a8, 5}, [2]uint16{0x8100, 6}))
	b.add("vlan-arp-spoof", portsec.Tagged, tagged(gateway, [2]uint16{0x8100, 5}))
	b.add("ip-options-spoof", portsec.DHCPServer,
		v4(ip4{src: other4, dst: peer4, proto: 17, options: []byte{1, 1, 1, 0}, payload: udp(67, 68, "x")}))
	b.add("dhcp-server-frag", portsec.DHCPServer,
		v4(ip4{src: IP4, dst: peer4, proto: 17, fragment: 0x2000, payload: udp(67, 68, "x")}))
	b.add("stp-bpdu", portsec.OtherType,
		slices.Concat([]byte{1, 0x80, 0xc2, 0, 0, 0}, MAC, be16(47), []byte{0x42, 0x42, 3}, make([]byte, 44)))
	b.add("other-type", portsec.OtherType, to(0x88b5, make([]byte, 40)))
}

// links are frames with odd Ethernet headers.
func (b *builder) links() {
	plain := v4(ip4{src: IP4, dst: peer4, proto: 17, payload: udp(1000, 2000, "x")})
	spoof := v4(ip4{src: other4, dst: peer4, proto: 17, payload: udp(1000, 2000, "x")})
	b.add("tagged", portsec.Tagged, tagged(plain, [2]uint16{0x8100, 5}))
	b.add("802.1ad", portsec.Tagged, tagged(plain, [2]uint16{0x88a8, 5}))
	b.add("old-double", portsec.Tagged, tagged(plain, [2]uint16{0x9100, 5}))
	b.add("snap-ip", portsec.OtherType,
		to(60, slices.Concat([]byte{0xaa, 0xaa, 3, 0, 0, 0}, be16(0x0800), spoof[14:])))
	b.add("type-0x5ff", portsec.OtherType, to(0x5ff, make([]byte, 40)))
	b.add("multicast", portsec.Pass, eth(allNodesM, 0x0800, plain[14:]))
	b.add("pppoe", portsec.OtherType, to(0x8864, make([]byte, 40)))
	b.add("mpls", portsec.OtherType, to(0x8847, make([]byte, 40)))
	b.add("pause", portsec.OtherType, eth(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 1}, 0x8808, make([]byte, 46)))
	trunk := Without(portsec.VLAN)
	tag, outer := [2]uint16{0x8100, 5}, [2]uint16{0x88a8, 5}
	for _, c := range []struct {
		name string
		tags [][2]uint16
	}{{"one tag", [][2]uint16{tag}}, {"priority", [][2]uint16{{0x8100, 0xe000}}}, {
		"double",
		[][2]uint16{outer, tag},
	}} {
		b.with(trunk, "trunk, "+c.name, portsec.Pass, tagged(plain, c.tags...))
		b.with(trunk, "trunk, spoof with "+c.name, portsec.SourceIP, tagged(spoof, c.tags...))
		b.with(trunk, "trunk, ARP spoof with "+c.name, portsec.ForgedARP,
			tagged(arpFrame(arpMessage{2, MAC, zeroMAC, router, router}), c.tags...))
		b.with(trunk, "trunk, RA with "+c.name, portsec.RouterAdvert,
			tagged(nd(otherLL, allNodes, 134, advert()), c.tags...))
		b.with(trunk, "trunk, LLC with "+c.name, portsec.OtherType, tagged(to(47, make([]byte, 47)), c.tags...))
	}
	b.with(trunk, "trunk, three tags", portsec.Tagged, tagged(plain, outer, tag, tag))
}

func (b *builder) arp() {
	own := arpMessage{1, MAC, zeroMAC, IP4, peer4}
	change := func(at int, v ...byte) []byte {
		f := arpFrame(own)
		copy(f[14+at:], v)
		return f
	}
	b.add("arp-hardware", portsec.ForgedARP, change(0, 0, 6))
	b.add("arp-protocol", portsec.ForgedARP, change(2, 0x86, 0xdd))
	b.add("arp-sizes", portsec.ForgedARP, change(4, 8, 4))
	b.add("arp-protocol-size", portsec.ForgedARP, change(5, 16))
	b.add("arp-op-0", portsec.ForgedARP, change(6, 0, 0))
	b.add("arp-inverse", portsec.ForgedARP, change(6, 0, 8))
	b.add("arp-probe-other", portsec.ForgedARP, arpFrame(arpMessage{1, MAC, zeroMAC, any4, router}))
	b.add("arp-probe-reply", portsec.ForgedARP, arpFrame(arpMessage{2, MAC, zeroMAC, any4, IP4}))
	b.add("rarp-reply", portsec.ForgedARP, eth(everybody, 0x8035, arpMessage{4, MAC, MAC, any4, any4}.bytes()))
	b.add("rarp-other", portsec.ForgedARP,
		eth(everybody, 0x8035, arpMessage{3, MAC, OtherMAC, any4, any4}.bytes()))
	b.add("rarp-as-arp", portsec.ForgedARP, arpFrame(arpMessage{3, MAC, MAC, any4, any4}))
	dynamic := portsec.Config{Checks: noIPs, MAC: MAC}
	b.with(dynamic, "any address by arp", portsec.Pass, arpFrame(arpMessage{2, MAC, zeroMAC, other4, other4}))
	b.with(dynamic, "another's MAC by arp", portsec.ForgedARP,
		arpFrame(arpMessage{2, OtherMAC, zeroMAC, other4, other4}))
}

func (b *builder) ipv4() {
	server := func(from, to uint16) []byte {
		return v4(ip4{src: IP4, dst: all4, proto: 17, payload: udp(from, to, "x")})
	}
	b.add("dhcp-from-any-port", portsec.DHCPServer, server(1000, 68))
	b.add("dhcp-relay", portsec.DHCPServer, server(67, 67))
	b.add("pxe-proxy", portsec.DHCPServer, server(4011, 68))
	b.add("discover-unicast", portsec.SourceIP,
		v4(ip4{src: any4, dst: peer4, proto: 17, payload: udp(68, 67, "x")}))
	b.add("udp-from-0", portsec.SourceIP, v4(ip4{src: any4, dst: all4, proto: 17, payload: udp(68, 1900, "x")}))
	b.add("tcp-from-0", portsec.SourceIP, v4(ip4{src: any4, dst: all4, proto: 6, payload: make([]byte, 20)}))
	b.add("igmp-query-from-0", portsec.SourceIP,
		v4(ip4{src: any4, dst: netip.MustParseAddr("224.0.0.1"), proto: 2, payload: []byte{0x11, 0, 0, 0}}))
	b.add("igmp-unicast-from-0", portsec.SourceIP,
		v4(ip4{src: any4, dst: peer4, proto: 2, payload: []byte{0x16, 0, 0, 0}}))
	b.add("options", portsec.Pass,
		v4(ip4{src: IP4, dst: peer4, proto: 17, options: make([]byte, 40), payload: udp(1, 2, "x")}))
	b.add("options-server", portsec.DHCPServer,
		v4(ip4{src: IP4, dst: peer4, proto: 17, options: make([]byte, 40), payload: udp(67, 68, "")}))
	b.add("first-fragment", portsec.Pass,
		v4(ip4{src: IP4, dst: peer4, proto: 17, fragment: 0x2000, payload: udp(1, 2, "x")}))
	b.add("later-fragment", portsec.Pass,
		v4(ip4{src: IP4, dst: peer4, proto: 17, fragment: 0x2001, payload: udp(67, 68, "x")}))
	b.add("later-fragment-spoof", portsec.SourceIP,
		v4(ip4{src: other4, dst: peer4, proto: 17, fragment: 1, payload: []byte("x")}))
	b.add("later-fragment-discover", portsec.SourceIP,
		v4(ip4{src: any4, dst: all4, proto: 17, fragment: 1, payload: udp(68, 67, "x")}))
	b.add("tiny-first-fragment", portsec.Short,
		v4(ip4{src: IP4, dst: peer4, proto: 17, fragment: 0x2000, payload: []byte{0, 67, 0}}))
	for _, c := range []struct {
		name  string
		first byte
		want  portsec.Reason
	}{
		{"version-6", 0x65, portsec.Malformed},
		{"version-0", 0x05, portsec.Malformed},
		{"header-0", 0x40, portsec.Malformed},
		{"header-16", 0x44, portsec.Malformed},
		{"header-beyond", 0x4f, portsec.Short},
	} {
		f := v4(ip4{src: IP4, dst: peer4, proto: 6, payload: make([]byte, 8)})
		f[14] = c.first
		b.add("ipv4-"+c.name, c.want, f)
	}
}

func (b *builder) ipv6() {
	b.add("dhcp6-from-any-port", portsec.DHCPServer, v6(local6, peer6, 17, udp(1000, 546, "x")))
	b.add("dhcp6-relay", portsec.DHCPServer, v6(local6, peer6, 17, udp(547, 547, "x")))
	b.add("dhcp6-ext", portsec.DHCPServer,
		v6(local6, peer6, 0, slices.Concat(padding(60), padding(17), udp(547, 546, "x"))))
	b.add("from-other-link-local", portsec.SourceIP, v6(otherLL, peer6, 6, make([]byte, 20)))
	b.add("from-unspecified", portsec.SourceIP, v6(any6, peer6, 17, udp(1, 2, "x")))
	b.add("ping6-from-unspecified", portsec.SourceIP, nd(any6, peer6, 128, make([]byte, 8)))
	b.add("mld-query-from-unspecified", portsec.SourceIP, nd(any6, allNodes, 130, make([]byte, 20)))
	b.add("redirect", portsec.RouterAdvert, nd(local6, peer6, 137, make([]byte, 36)))
	f := v6(IP6, peer6, 6, make([]byte, 20))
	f[14] = 0x45
	b.add("ipv6-version-4", portsec.Malformed, f)
	ra := icmp6(local6, allNodes, 134, advert())
	for n := 1; n <= 10; n++ {
		for _, kind := range []byte{0, 43, 60, 51} {
			want, last := portsec.RouterAdvert, portsec.Pass
			if n > 8 {
				want, last = portsec.Headers, portsec.Headers
			}
			b.add("ra behind "+strconv.Itoa(n)+" of "+strconv.Itoa(int(kind)), want,
				v6(local6, allNodes, kind, append(chain(kind, n, 58), ra...)))
			b.add("tcp behind "+strconv.Itoa(n)+" of "+strconv.Itoa(int(kind)), last,
				v6(IP6, peer6, kind, append(chain(kind, n, 6), make([]byte, 20)...)))
		}
	}
	long := append([]byte{58, 3}, make([]byte, 30)...)
	b.add("ra behind a long header", portsec.RouterAdvert, v6(local6, allNodes, 60, append(long, ra...)))
	b.add("ra behind a header beyond the frame", portsec.Short,
		v6(local6, allNodes, 60, append([]byte{58, 255, 1, 4, 0, 0, 0, 0}, ra...)))
	b.add("header cut off", portsec.Short, v6(IP6, peer6, 60, []byte{6, 0, 1}))
	b.add("jumbo ra", portsec.RouterAdvert, func() []byte {
		f := v6(local6, allNodes, 0, slices.Concat([]byte{58, 0, 0xc2, 4, 0, 0, 0, 24}, ra))
		f[14+4], f[14+5] = 0, 0
		return f
	}())
}

// chain returns n extension headers of 8 bytes. An authentication header of 8 bytes has length 0.
func chain(kind byte, n int, last byte) (all []byte) {
	for i := range n {
		next := kind
		if i == n-1 {
			next = last
		}
		all = append(all, padding(next)...)
	}
	return all
}

func (b *builder) neighbors() {
	option := func(o ...byte) []byte { return nd(IP6, peer6, 135, neighbor(peer6, o)) }
	b.add("dad-of-other", portsec.ForgedND, nd(any6, group6, 135, neighbor(other6)))
	b.add("dad-with-lladdr", portsec.ForgedND, nd(any6, group6, 135, neighbor(IP6, lladdr(1, OtherMAC))))
	b.add("na-from-unspecified", portsec.ForgedND, nd(any6, allNodes, 136, neighbor(IP6)))
	b.add("na-unsolicited-router", portsec.ForgedND, nd(IP6, allNodes, 136, neighbor(otherLL, lladdr(2, MAC))))
	b.add("na-from-other", portsec.ForgedND, nd(other6, peer6, 136, neighbor(IP6, lladdr(2, MAC))))
	b.add("ns-from-other", portsec.ForgedND, nd(other6, peer6, 135, neighbor(peer6, lladdr(1, MAC))))
	b.add("ns-lladdr", portsec.ForgedND, nd(IP6, peer6, 135, neighbor(peer6, lladdr(1, OtherMAC))))
	b.add("rs-lladdr", portsec.ForgedND,
		nd(local6, allNodes, 133, append(make([]byte, 4), lladdr(1, OtherMAC)...)))
	b.add("rs-from-other", portsec.ForgedND, nd(otherLL, allNodes, 133, make([]byte, 4)))
	b.add("second-lladdr", portsec.ForgedND,
		nd(IP6, peer6, 136, neighbor(IP6, lladdr(2, MAC), lladdr(2, OtherMAC))))
	b.add("lladdr-behind-nonce", portsec.ForgedND,
		nd(IP6, peer6, 136, neighbor(IP6, []byte{14, 1, 0, 0, 0, 0, 0, 0}, lladdr(2, OtherMAC))))
	b.add("option-length-0", portsec.ForgedND, option(1, 0, 0, 0, 0, 0, 0, 0))
	b.add("nonce-length-0", portsec.ForgedND, option(14, 0, 0, 0, 0, 0, 0, 0))
	b.add("lladdr-length-2", portsec.ForgedND,
		option(append(append([]byte{1, 2}, MAC...), make([]byte, 8)...)...))
	b.add("lladdr-cut-off", portsec.ForgedND, option(append([]byte{1, 1}, MAC[:5]...)...))
	b.add("option-of-one-byte", portsec.Short, option(1))
	b.add("16-options", portsec.Pass, option(slices.Repeat([]byte{14, 1, 0, 0, 0, 0, 0, 0}, 16)...))
	b.add("17-options", portsec.ForgedND, option(slices.Repeat([]byte{14, 1, 0, 0, 0, 0, 0, 0}, 17)...))
	b.add("na-cut-off", portsec.Short, nd(IP6, peer6, 136, neighbor(IP6)[:19]))
	behind := nd(IP6, peer6, 136, neighbor(other6))
	behind[14+5] = 8 // the payload ends behind 8 bytes
	b.add("na-behind-the-end", portsec.Short, behind)
	b.add("na-ext", portsec.ForgedND,
		v6(IP6, peer6, 60, append(padding(58), icmp6(IP6, peer6, 136, neighbor(other6))...)))
	dynamic := portsec.Config{Checks: noIPs, MAC: MAC}
	b.with(dynamic, "any address by na", portsec.Pass, nd(other6, peer6, 136, neighbor(other6, lladdr(2, MAC))))
	b.with(dynamic, "another's lladdr", portsec.ForgedND,
		nd(other6, peer6, 136, neighbor(other6, lladdr(2, OtherMAC))))
	router := Without(portsec.RA)
	b.with(router, "ra of a router", portsec.Pass, nd(local6, allNodes, 134, advert(lladdr(1, MAC))))
	b.with(router, "ra with another's lladdr", portsec.ForgedND,
		nd(local6, allNodes, 134, advert(lladdr(1, OtherMAC))))
	b.with(router, "ra from another", portsec.ForgedND, nd(otherLL, allNodes, 134, advert(lladdr(1, MAC))))
	b.with(router, "redirect of a router", portsec.Pass,
		nd(local6, peer6, 137, append(make([]byte, 36), lladdr(2, OtherMAC)...)))
	b.with(router, "redirect from another", portsec.SourceIP, nd(otherLL, peer6, 137, make([]byte, 36)))
}

func (b *builder) fragments() {
	echo := icmp6(IP6, peer6, 128, make([]byte, 12))
	b.add("ping6-first", portsec.Pass, v6(IP6, peer6, 44, append(fragment(58, 0, true), echo...)))
	b.add("ping6-later", portsec.Pass, v6(IP6, peer6, 44, append(fragment(58, 16, false), echo...)))
	b.add("udp6-first", portsec.Pass, v6(IP6, peer6, 44, append(fragment(17, 0, true), udp(1, 2, "x")...)))
	b.add("udp6-later-spoof", portsec.SourceIP, v6(other6, peer6, 44, append(fragment(17, 8, false), "x"...)))
	b.add("udp6-later-unspecified", portsec.SourceIP, v6(any6, peer6, 44, append(fragment(58, 8, false), 135)))
	b.add("dhcp6-first", portsec.DHCPServer,
		v6(IP6, peer6, 44, append(fragment(17, 0, true), udp(547, 546, "x")...)))
	b.add("ra-first", portsec.Fragmented,
		v6(local6, allNodes, 44, append(fragment(58, 0, true), icmp6(local6, allNodes, 134, advert())...)))
	b.add("ns-atomic", portsec.Fragmented,
		v6(IP6, peer6, 44, append(fragment(58, 0, false), icmp6(IP6, peer6, 135, neighbor(peer6))...)))
	b.add("ra-tiny-first", portsec.Short, v6(local6, allNodes, 44, fragment(58, 0, true)))
	b.add("ra-ext-frag", portsec.Fragmented,
		v6(local6, allNodes, 60,
			slices.Concat(padding(44), fragment(58, 0, false), icmp6(local6, allNodes, 134, advert()))))
	for _, next := range []byte{0, 43, 44, 51, 60} {
		b.add("fragmented header "+strconv.Itoa(int(next)), portsec.Fragmented,
			v6(local6, allNodes, 44,
				slices.Concat(fragment(next, 0, true), padding(58), icmp6(local6, allNodes, 134, advert()))))
		b.add("later of header "+strconv.Itoa(int(next)), portsec.Fragmented,
			v6(local6, allNodes, 44, append(fragment(next, 8, false), 1)))
	}
	b.add("tcp-first-cut", portsec.Short, v6(IP6, peer6, 44, fragment(6, 0, true)[:7]))
}
