package portsectest

import (
	"net/netip"
	"strconv"

	"vmnet/bridge/portsec"
)

// settings are frames under other configurations.
func (b *builder) settings() {
	spoof := v4(ip4{src: other4, dst: peer4, proto: 17, payload: udp(67, 68, "x")})
	only := func(c portsec.Checks) portsec.Config { return portsec.Config{Checks: c, MAC: MAC} }
	b.with(only(portsec.MAC), "mac only", portsec.Pass, spoof)
	b.with(only(portsec.MAC), "mac only, other type", portsec.Pass, to(0x88b5, make([]byte, 4)))
	b.with(only(portsec.MAC), "mac only, LLC", portsec.Pass, to(4, make([]byte, 46)))
	b.with(only(portsec.MAC), "mac only, tag", portsec.Pass, tagged(spoof, [2]uint16{0x8100, 1}))
	b.with(only(portsec.MAC|portsec.VLAN), "mac and vlan", portsec.Pass, spoof)
	b.with(only(portsec.VLAN), "vlan only, other MAC", portsec.Pass,
		ethFrom(OtherMAC, VictimMAC, 0x0800, spoof[14:]))
	b.with(only(portsec.DHCP), "dhcp only", portsec.DHCPServer, spoof)
	b.with(only(portsec.RA), "ra only", portsec.Pass, spoof)
	b.with(only(portsec.RA), "ra only, ARP", portsec.Pass,
		arpFrame(arpMessage{2, OtherMAC, zeroMAC, router, router}))
	b.with(only(portsec.RA), "ra only, RA", portsec.RouterAdvert, nd(otherLL, allNodes, 134, advert()))
	typed := Config()
	typed.EtherTypes = []portsec.EtherType{0x88f7, 0x88b5}
	b.with(typed, "type allowed", portsec.Pass, to(0x88b5, make([]byte, 40)))
	b.with(typed, "type not allowed", portsec.OtherType, to(0x88b6, make([]byte, 40)))
	four := Config()
	four.IPs = four.IPs[:1]
	b.with(four, "v4 only, link-local", portsec.SourceIP, v6(local6, peer6, 6, make([]byte, 20)))
	b.with(four, "v4 only, dad", portsec.ForgedND, nd(any6, group6, 135, neighbor(local6)))
	b.with(four, "v4 only, mld", portsec.SourceIP, nd(any6, allNodes, 143, make([]byte, 4)))
	six := Config()
	six.IPs = six.IPs[1:]
	b.with(six, "v6 only, v4", portsec.SourceIP,
		v4(ip4{src: IP4, dst: peer4, proto: 6, payload: make([]byte, 20)}))
	b.with(six, "v6 only, discover", portsec.SourceIP,
		v4(ip4{src: any4, dst: all4, proto: 17, payload: udp(68, 67, "x")}))
	b.with(six, "v6 only, arp", portsec.ForgedARP, arpFrame(arpMessage{1, MAC, zeroMAC, IP4, peer4}))
	wide := Networks()
	b.with(wide, "network v4", portsec.Pass,
		v4(ip4{src: other4, dst: peer4, proto: 6, payload: make([]byte, 20)}))
	b.with(wide, "beside the network v4", portsec.SourceIP,
		v4(ip4{src: netip.MustParseAddr("10.8.0.1"), dst: peer4, proto: 6, payload: make([]byte, 20)}))
	b.with(wide, "network v6", portsec.Pass, v6(other6, peer6, 6, make([]byte, 20)))
	b.with(wide, "beside the network v6", portsec.SourceIP,
		v6(netip.MustParseAddr("2001:db8:0:1::1"), peer6, 6, make([]byte, 20)))
	b.with(wide, "last address v6", portsec.Pass,
		v6(netip.MustParseAddr("2001:db8:ff::1234"), peer6, 6, make([]byte, 20)))
	b.with(wide, "beside the last address v6", portsec.SourceIP,
		v6(netip.MustParseAddr("2001:db8:ff::1235"), peer6, 6, make([]byte, 20)))
	b.with(wide, "/100", portsec.Pass,
		v6(netip.MustParseAddr("2001:db8:fe::fff:ffff"), peer6, 6, make([]byte, 20)))
	b.with(wide, "beside /100", portsec.SourceIP,
		v6(netip.MustParseAddr("2001:db8:fe::1fff:ffff"), peer6, 6, make([]byte, 20)))
}

// Networks is a Config with networks, and with as many addresses as it may have.
func Networks() portsec.Config {
	cfg := Config()
	cfg.IPs = []netip.Prefix{
		netip.MustParsePrefix("10.7.0.0/16"), netip.MustParsePrefix("2001:db8::/64"),
		netip.MustParsePrefix("2001:db8:fe::/100"),
	}
	for i := range byte(15) {
		cfg.IPs = append(cfg.IPs, netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, i}), 32))
	}
	for i := range byte(12) {
		a := netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0, 0xff, 15: i})
		cfg.IPs = append(cfg.IPs, netip.PrefixFrom(a, 128))
	}
	cfg.IPs = append(cfg.IPs, netip.MustParsePrefix("2001:db8:ff::1234/128"))
	return cfg
}

// truncated are the frames whose heads a check reads, cut off at each length.
func (b *builder) truncated() {
	for _, whole := range []struct {
		name  string
		frame []byte
		need  int // shorter ones are dropped
	}{
		{"arp", arpFrame(arpMessage{1, MAC, zeroMAC, IP4, peer4}), 14 + 28},
		{
			"udp", v4(ip4{src: IP4, dst: peer4, proto: 17, options: make([]byte, 4), payload: udp(1, 2, "")}),
			14 + 24 + 4,
		},
		{"udp6", v6(IP6, peer6, 17, udp(1, 2, "")), 14 + 40 + 4},
		{"ns", nd(IP6, peer6, 135, neighbor(peer6)), 14 + 40 + 24},
		{
			"ext", v6(IP6, peer6, 0, append(padding(60), append(padding(17), udp(1, 2, "")...)...)),
			14 + 40 + 16 + 4,
		},
	} {
		for n := 14; n < len(whole.frame); n++ {
			want := portsec.Pass
			if n < whole.need {
				want = portsec.Short
			}
			b.add(whole.name+" cut off at "+strconv.Itoa(n), want, whole.frame[:n])
		}
	}
	for n := range 14 {
		b.add("ethernet cut off at "+strconv.Itoa(n), portsec.Short, to(0x0800, nil)[:n])
	}
	b.with(Without(portsec.VLAN), "tag cut off", portsec.Short, to(0x8100, []byte{0, 1, 8}))
}
