package bpfguard

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"vmnet/bridge/inbound"
	"vmnet/bridge/portsec"
	"vmnet/bridge/portsec/portsectest"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/nstest"
	"vmnet/testvm/lab"
)

func inboundOf(t testing.TB, text string) (cfg inbound.Config) {
	t.Helper()
	for _, word := range strings.Fields(text) {
		r, err := inbound.ParseRule(word)
		if err != nil {
			t.Fatal(err)
		}
		cfg.Rules = append(cfg.Rules, r)
	}
	return cfg
}

var (
	guest4, guest6   = netip.MustParseAddr("10.7.0.1"), netip.MustParseAddr("2001:db8::1")
	remote4, remote6 = netip.MustParseAddr("10.7.0.2"), netip.MustParseAddr("2001:db8::2")
	third4, third6   = netip.MustParseAddr("192.0.2.3"), netip.MustParseAddr("2001:db8:3::3")
	mapped4          = netip.MustParseAddr("::ffff:10.7.0.2")
	nobody4          = netip.IPv4Unspecified()
	everybody4       = netip.MustParseAddr("255.255.255.255")
)

func concat(parts ...[]byte) []byte { return slices.Concat(parts...) }

func be(n uint16) []byte { return binary.BigEndian.AppendUint16(nil, n) }

// ether returns a frame of an EtherType, with tags of 802.1Q.
func ether(kind uint16, payload []byte, vlans ...uint16) []byte {
	f := concat(portsectest.MAC, portsectest.OtherMAC)
	for _, v := range vlans {
		f = concat(f, be(0x8100), be(v))
	}
	return concat(f, be(kind), payload)
}

// packet returns a packet of the addresses' family.
func packet(src, dst netip.Addr, protocol byte, payload []byte) []byte {
	if src.Is4() {
		return concat([]byte{0x45, 0}, be(uint16(20+len(payload))), be(7), be(0), []byte{64, protocol, 0, 0},
			src.AsSlice(), dst.AsSlice(), payload)
	}
	return concat([]byte{0x60, 0, 0, 0}, be(uint16(len(payload))), []byte{protocol, 64}, src.AsSlice(), dst.AsSlice(),
		payload)
}

// frame returns a packet in a frame.
func frame(src, dst netip.Addr, protocol byte, payload []byte, vlans ...uint16) []byte {
	kind := uint16(0x86dd)
	if src.Is4() {
		kind = 0x0800
	}
	return ether(kind, packet(src, dst, protocol, payload), vlans...)
}

// The flags of TCP.
const fin, syn, rst, ack = 1, 2, 4, 16

func tcpSegment(from, to uint16, flags byte) []byte {
	return concat(be(from), be(to), make([]byte, 8), []byte{0x50, flags}, make([]byte, 6))
}

func udpDatagram(from, to uint16) []byte {
	return concat(be(from), be(to), be(12), be(0), []byte("data"))
}

func echo(kind byte, id uint16) []byte {
	return concat([]byte{kind, 0, 0, 0}, be(id), be(1), []byte("ping"))
}

// about returns an ICMP error about a packet, with its first bytes only.
func about(kind byte, p []byte) []byte {
	return concat([]byte{kind, 0, 0, 0, 0, 0, 0, 0}, p[:min(len(p), map[bool]int{true: 28, false: 48}[p[0]>>4 == 4])])
}

// fragment4 makes a frame of IPv4 a fragment, at an offset in units of 8 bytes.
func fragment4(f []byte, offset uint16, more bool) []byte {
	f = slices.Clone(f)
	if more {
		offset |= 0x2000
	}
	binary.BigEndian.PutUint16(f[14+6:], offset)
	return f
}

// fragment6 returns a fragment of an IPv6 packet.
func fragment6(src, dst netip.Addr, protocol byte, id, offset uint16, more bool, payload []byte) []byte {
	offset <<= 3
	if more {
		offset |= 1
	}
	return frame(src, dst, 44, concat([]byte{protocol, 0}, be(offset), be(0), be(id), payload))
}

// filters are the two programs for one configuration, without a device.
type filters struct {
	t    testing.TB
	p    inboundPrograms
	maps inboundMaps
}

func newFilters(t testing.TB, cfg inbound.Config) *filters {
	t.Helper()
	var all struct {
		inboundPrograms
		inboundMaps
	}
	if err := inwards.load(inboundObject, inboundVarConfig, inboundSettingsOf(cfg), nil, &all); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = errors.Join(all.inboundPrograms.Close(), all.inboundMaps.Close()) })
	return &filters{t, all.inboundPrograms, all.inboundMaps}
}

// forget removes all flows.
func (f *filters) forget() {
	f.t.Helper()
	for _, m := range []*ebpf.Map{f.maps.Flows, f.maps.Fragments} {
		var key inboundFlow
		for m.NextKey(nil, &key) == nil {
			if err := m.Delete(key); err != nil {
				f.t.Fatal(err)
			}
		}
	}
}

// sends runs the program for a frame from the guest.
func (f *filters) sends(frame []byte) {
	f.t.Helper()
	if got, _, err := f.p.VmnetAsked.Test(frame); err != nil || got != tcNext {
		f.t.Fatalf("%x from the guest: %d, %v", frame, got, err)
	}
}

// gets reports whether a frame reaches the guest.
func (f *filters) gets(frame []byte) bool {
	f.t.Helper()
	got, _, err := f.p.VmnetInbound.Test(frame)
	if err != nil || got != tcNext && got != tcDrop {
		f.t.Fatalf("%x for the guest: %d, %v", frame, got, err)
	}
	return got == tcNext
}

// to and from are frames of a remote host and of the guest.
func to(protocol byte, payload []byte) []byte { return frame(remote4, guest4, protocol, payload) }

func from(protocol byte, payload []byte) []byte { return frame(guest4, remote4, protocol, payload) }

func to6(protocol byte, payload []byte) []byte { return frame(remote6, guest6, protocol, payload) }

func from6(protocol byte, payload []byte) []byte { return frame(guest6, remote6, protocol, payload) }

const icmp4, igmp, tcp, udp, icmp6, gre = 1, 2, 6, 17, 58, 47

var inboundTable = []struct {
	name, rules string
	sent        [][]byte // by the guest
	frame       []byte   // for the guest
	want        bool
}{
	{"ARP", "answers", nil, ether(0x0806, make([]byte, 28)), true},
	{"STP", "answers", nil, ether(0x0026, make([]byte, 38)), false},
	{"another EtherType", "any", nil, ether(0x88cc, make([]byte, 38)), false},
	{"SYN", "answers", nil, to(tcp, tcpSegment(40000, 80, syn)), false},
	{"SYN, v6", "answers", nil, to6(tcp, tcpSegment(40000, 80, syn)), false},
	{"allowed port", "tcp:22", nil, to(tcp, tcpSegment(40000, 22, syn)), true},
	{"allowed port, v6", "tcp:22", nil, to6(tcp, tcpSegment(40000, 22, syn)), true},
	{"other port", "tcp:22", nil, to(tcp, tcpSegment(40000, 23, syn)), false},
	{"from an allowed port", "tcp:22", nil, to(tcp, tcpSegment(22, 40000, syn|ack)), false},
	{"other protocol", "tcp:22", nil, to(udp, udpDatagram(40000, 22)), false},
	{"range, first", "udp:5000-5010", nil, to(udp, udpDatagram(1, 5000)), true},
	{"range, last", "udp:5000-5010", nil, to(udp, udpDatagram(1, 5010)), true},
	{"range, behind", "udp:5000-5010", nil, to(udp, udpDatagram(1, 5011)), false},
	{"second rule", "tcp:22 tcp:80", nil, to(tcp, tcpSegment(1, 80, syn)), true},
	{"from", "tcp:22,from=10.0.0.0/8", nil, to(tcp, tcpSegment(1, 22, syn)), true},
	{"from others", "tcp:22,from=10.0.0.0/8", nil, frame(third4, guest4, tcp, tcpSegment(1, 22, syn)), false},
	{"from an odd prefix", "tcp:22,from=10.7.0.2/31", nil, to(tcp, tcpSegment(1, 22, syn)), true},
	{"from, v6", "tcp:22,from=2001:db8::/64", nil, to6(tcp, tcpSegment(1, 22, syn)), true},
	{
		"from others, v6", "tcp:22,from=2001:db8::/64", nil,
		frame(third6, guest6, tcp, tcpSegment(1, 22, syn)), false,
	},
	{"from all of v4", "tcp:22,from=0.0.0.0/0", nil, to(tcp, tcpSegment(1, 22, syn)), true},
	{"v6 where v4 may", "tcp:22,from=0.0.0.0/0", nil, to6(tcp, tcpSegment(1, 22, syn)), false},
	{
		"mapped v6 where v4 may", "tcp:22,from=10.0.0.0/8", nil,
		frame(mapped4, guest6, tcp, tcpSegment(1, 22, syn)), false,
	},
	{"v4 where v6 may", "tcp:22,from=::/0", nil, to(tcp, tcpSegment(1, 22, syn)), false},
	{"any", "any,from=10.7.0.2", nil, to(gre, make([]byte, 8)), true},
	{"any, of others", "any,from=10.7.0.2", nil, frame(third4, guest4, gre, make([]byte, 8)), false},
	{"any, timestamp", "any", nil, to(icmp4, echo(13, 1)), true},

	{
		"TCP answer", "answers",
		[][]byte{from(tcp, tcpSegment(40000, 80, syn))},
		to(tcp, tcpSegment(80, 40000, syn|ack)), true,
	},
	{
		"TCP answer, v6", "answers",
		[][]byte{from6(tcp, tcpSegment(40000, 80, syn))},
		to6(tcp, tcpSegment(80, 40000, syn|ack)), true,
	},
	{
		"TCP, in its middle", "answers",
		[][]byte{from(tcp, tcpSegment(40000, 80, ack))},
		to(tcp, tcpSegment(80, 40000, ack)), true,
	},
	{
		"TCP, closed", "answers",
		[][]byte{from(tcp, tcpSegment(40000, 80, fin|ack)), from(tcp, tcpSegment(40000, 80, ack))},
		to(tcp, tcpSegment(80, 40000, fin|ack)), true,
	},
	{
		"another port answers", "answers",
		[][]byte{from(tcp, tcpSegment(40000, 80, syn))},
		to(tcp, tcpSegment(81, 40000, syn|ack)), false,
	},
	{
		"another host answers", "answers",
		[][]byte{from(tcp, tcpSegment(40000, 80, syn))},
		frame(third4, guest4, tcp, tcpSegment(80, 40000, syn)), false,
	},
	{
		"an answer to others", "answers",
		[][]byte{from(tcp, tcpSegment(40000, 80, syn))},
		frame(remote4, third4, tcp, tcpSegment(80, 40000, syn)), false,
	},
	{
		"UDP answer", "answers",
		[][]byte{from(udp, udpDatagram(40000, 53))},
		to(udp, udpDatagram(53, 40000)), true,
	},
	{
		"TCP is no answer to UDP", "answers",
		[][]byte{from(udp, udpDatagram(40000, 53))},
		to(tcp, tcpSegment(53, 40000, syn)), false,
	},
	{
		"mapped v6 is no answer to v4", "answers",
		[][]byte{from(udp, udpDatagram(40000, 53))},
		frame(mapped4, netip.MustParseAddr("::ffff:10.7.0.1"), udp, udpDatagram(53, 40000)), false,
	},
	{"GRE answer", "answers", [][]byte{from(gre, make([]byte, 8))}, to(gre, make([]byte, 8)), true},
	{"of another protocol", "answers", [][]byte{from(gre, make([]byte, 8))}, to(50, make([]byte, 8)), false},
	{
		"the guest's answer asks nothing", "tcp:22",
		[][]byte{from(tcp, tcpSegment(22, 40000, ack))},
		to(tcp, tcpSegment(40000, 22, ack)), true,
	},

	{"ping", "answers", nil, to(icmp4, echo(8, 5)), false},
	{"ping, allowed", "icmp", nil, to(icmp4, echo(8, 5)), true},
	{"ping, v6", "answers", nil, to6(icmp6, echo(128, 5)), false},
	{"ping, v6, allowed", "icmp", nil, to6(icmp6, echo(128, 5)), true},
	{"ICMP that is no ping", "icmp", nil, to(icmp4, echo(13, 5)), false},
	{"TCP where ping is allowed", "icmp", nil, to(tcp, tcpSegment(1, 1, syn)), false},
	{"echo reply", "answers", [][]byte{from(icmp4, echo(8, 5))}, to(icmp4, echo(0, 5)), true},
	{"echo reply of another", "answers", [][]byte{from(icmp4, echo(8, 5))}, to(icmp4, echo(0, 6)), false},
	{"echo reply, v6", "answers", [][]byte{from6(icmp6, echo(128, 5))}, to6(icmp6, echo(129, 5)), true},
	{"unasked echo reply", "answers", nil, to(icmp4, echo(0, 5)), false},
	{
		"a ping with the identifier of its own", "answers",
		[][]byte{from(icmp4, echo(8, 5))},
		to(icmp4, echo(8, 5)), false,
	},
	{"an echo reply asks nothing", "answers", [][]byte{from(icmp4, echo(0, 5))}, to(icmp4, echo(0, 5)), false},
	{
		"redirect", "answers",
		[][]byte{from(udp, udpDatagram(4, 5))},
		to(icmp4, about(5, packet(guest4, remote4, udp, udpDatagram(4, 5)))), false,
	},
	{
		"unreachable", "answers",
		[][]byte{from(udp, udpDatagram(40000, 53))},
		frame(third4, guest4, icmp4, about(3, packet(guest4, remote4, udp, udpDatagram(40000, 53)))), true,
	},
	{
		"unreachable, unasked", "answers", nil,
		to(icmp4, about(3, packet(guest4, remote4, udp, udpDatagram(40000, 53)))), false,
	},
	{
		"unreachable, of a server", "tcp:22", nil,
		to(icmp4, about(3, packet(guest4, remote4, tcp, tcpSegment(22, 40000, ack)))), true,
	},
	{
		"unreachable, of the guest's echo reply", "icmp", nil,
		to(icmp4, about(3, packet(guest4, remote4, icmp4, echo(0, 1)))), true,
	},
	{
		"too big, v6", "answers",
		[][]byte{from6(tcp, tcpSegment(40000, 80, syn))},
		frame(third6, guest6, icmp6, about(2, packet(guest6, remote6, tcp, tcpSegment(40000, 80, ack)))), true,
	},
	{
		"too big, v6, unasked", "answers", nil,
		frame(third6, guest6, icmp6, about(2, packet(guest6, remote6, tcp, tcpSegment(40000, 80, ack)))), false,
	},
	{"error about nothing", "any", nil, to(icmp4, []byte{3, 0, 0, 0, 0, 0, 0, 0}), false},

	{"neighbor solicitation", "answers", nil, to6(icmp6, concat([]byte{135, 0, 0, 0}, make([]byte, 20))), true},
	{"neighbor advertisement", "answers", nil, to6(icmp6, concat([]byte{136, 0, 0, 0}, make([]byte, 20))), true},
	{"router advertisement", "answers", nil, to6(icmp6, concat([]byte{134, 0, 0, 0}, make([]byte, 12))), true},
	{"redirect, v6", "answers", nil, to6(icmp6, concat([]byte{137, 0, 0, 0}, make([]byte, 36))), false},
	{
		"MLD query", "answers", nil,
		to6(0, concat([]byte{icmp6, 0, 5, 2, 0, 0, 1, 0}, []byte{130, 0, 0, 0}, make([]byte, 20))), true,
	},
	{"IGMP query", "answers", nil, to(igmp, concat([]byte{0x11, 0, 0, 0}, make([]byte, 4))), true},
	{"IGMP report", "answers", nil, to(igmp, concat([]byte{0x16, 0, 0, 0}, make([]byte, 4))), false},

	{
		"DHCP offer", "answers",
		[][]byte{frame(nobody4, everybody4, udp, udpDatagram(68, 67))},
		frame(remote4, everybody4, udp, udpDatagram(67, 68)), true,
	},
	{
		"DHCP offer, unasked", "answers", nil,
		frame(remote4, everybody4, udp, udpDatagram(67, 68)), false,
	},
	{
		"DHCPv6 reply", "answers",
		[][]byte{frame(guest6, netip.MustParseAddr("ff02::1:2"), udp, udpDatagram(546, 547))},
		to6(udp, udpDatagram(547, 546)), true,
	},
	{
		"DHCP request by others", "answers", nil,
		frame(nobody4, everybody4, udp, udpDatagram(68, 67)), false,
	},

	{
		"in its VLAN", "answers",
		[][]byte{frame(guest4, remote4, udp, udpDatagram(4, 5), 10)},
		frame(remote4, guest4, udp, udpDatagram(5, 4), 10), true,
	},
	{
		"in another VLAN", "answers",
		[][]byte{frame(guest4, remote4, udp, udpDatagram(4, 5), 10)},
		frame(remote4, guest4, udp, udpDatagram(5, 4), 11), false,
	},
	{
		"without its VLAN", "answers",
		[][]byte{frame(guest4, remote4, udp, udpDatagram(4, 5), 10)},
		to(udp, udpDatagram(5, 4)), false,
	},
	{
		"in its VLANs", "answers",
		[][]byte{frame(guest4, remote4, udp, udpDatagram(4, 5), 10, 11)},
		frame(remote4, guest4, udp, udpDatagram(5, 4), 10, 11), true,
	},
	{
		"in its VLANs, swapped", "answers",
		[][]byte{frame(guest4, remote4, udp, udpDatagram(4, 5), 10, 11)},
		frame(remote4, guest4, udp, udpDatagram(5, 4), 11, 10), false,
	},
	{"three tags", "any", nil, frame(remote4, guest4, udp, udpDatagram(5, 4), 10, 11, 12), false},
	{"allowed in a VLAN", "udp:4", nil, frame(remote4, guest4, udp, udpDatagram(5, 4), 10), true},

	{"first fragment", "udp:4", nil, fragment4(to(udp, udpDatagram(5, 4)), 0, true), true},
	{"later fragment, alone", "udp:4", nil, fragment4(to(udp, udpDatagram(5, 4)), 2, false), false},
	{"fragment without ports", "udp:4", nil, fragment4(to(udp, be(5)), 0, true), false},
	{
		"fragment of an answer", "answers",
		[][]byte{from(udp, udpDatagram(4, 5))},
		fragment4(to(udp, udpDatagram(5, 4)), 0, true), true,
	},
	{"first fragment, v6", "udp:4", nil, fragment6(remote6, guest6, udp, 9, 0, true, udpDatagram(5, 4)), true},
	{
		"first fragment to another port, v6", "udp:4", nil,
		fragment6(remote6, guest6, udp, 9, 0, true, udpDatagram(5, 6)), false,
	},
	{
		"later fragment, alone, v6", "udp:4", nil,
		fragment6(remote6, guest6, udp, 9, 2, false, udpDatagram(5, 4)), false,
	},
	{"atomic fragment, v6", "udp:4", nil, fragment6(remote6, guest6, udp, 9, 0, false, udpDatagram(5, 4)), true},
	{
		"fragmented neighbor solicitation", "answers", nil,
		fragment6(remote6, guest6, icmp6, 9, 0, true, concat([]byte{135, 0, 0, 0}, make([]byte, 20))), false,
	},

	{
		"behind options of v6", "tcp:22", nil,
		to6(60, concat([]byte{tcp, 0, 1, 4, 0, 0, 0, 0}, tcpSegment(1, 22, syn))), true,
	},
	{
		"another port behind options of v6", "tcp:22", nil,
		to6(60, concat([]byte{tcp, 0, 1, 4, 0, 0, 0, 0}, tcpSegment(1, 23, syn))), false,
	},
	{
		"too many headers of v6", "any", nil,
		to6(60, concat(slices.Repeat([]byte{60, 0, 1, 4, 0, 0, 0, 0}, 9), tcpSegment(1, 22, syn))), false,
	},
	{
		"behind options of v4", "tcp:22", nil,
		ether(0x0800, concat([]byte{0x46, 0}, be(44), be(7), be(0), []byte{64, tcp, 0, 0},
			remote4.AsSlice(), guest4.AsSlice(), []byte{1, 1, 1, 0}, tcpSegment(1, 22, syn))), true,
	},
	{"version 5", "any", nil, ether(0x0800, concat([]byte{0x55, 0}, make([]byte, 38))), false},
	{"header of 16 bytes", "any", nil, ether(0x0800, concat([]byte{0x44, 0}, make([]byte, 38))), false},
	{"v6 that is v4", "any", nil, ether(0x86dd, concat([]byte{0x45, 0}, make([]byte, 48))), false},
	{"TCP without ports", "any", nil, to(tcp, be(5)), false},
}

func TestLiveInboundTable(t *testing.T) {
	nstest.RequireRoot(t)
	runInboundTable(t)
}

// TestLabInbound has the verifier, and the maps, of another kernel.
func TestLabInbound(t *testing.T) {
	lab.Inside(t)
	runInboundTable(t)
	inboundAtDevices(t)
}

func runInboundTable(t *testing.T) {
	byRules := map[string]*filters{} // to load programs takes longest
	for _, tc := range inboundTable {
		f := byRules[tc.rules]
		if f == nil {
			f = newFilters(t, inboundOf(t, tc.rules))
			byRules[tc.rules] = f
		}
		f.forget()
		for _, sent := range tc.sent {
			f.sends(sent)
		}
		if got := f.gets(tc.frame); got != tc.want {
			t.Errorf("%s, %s: reaches the guest: %v", tc.rules, tc.name, got)
		}
	}
}

// TestLiveInboundFragments: later fragments follow the first one, and only those of its packet.
func TestLiveInboundFragments(t *testing.T) {
	nstest.RequireRoot(t)
	f := newFilters(t, inboundOf(t, "udp:4"))
	first, later := fragment4(to(udp, udpDatagram(5, 4)), 0, true), fragment4(to(udp, udpDatagram(5, 6)), 2, false)
	other := slices.Clone(later)
	other[14+5]++ // the identification
	later6 := func(id uint16) []byte { return fragment6(remote6, guest6, udp, id, 2, false, []byte("later...")) }
	f.gets(first)
	f.gets(fragment6(remote6, guest6, udp, 9, 0, true, udpDatagram(5, 4)))
	for _, tc := range []struct {
		frame []byte
		want  bool
	}{{later, true}, {other, false}, {later6(9), true}, {later6(10), false}} {
		if got := f.gets(tc.frame); got != tc.want {
			t.Errorf("%x: %v", tc.frame, got)
		}
	}
}

// TestLiveInboundTimes: how long an answer is waited for depends on what the guest has sent, and
// nothing else makes or prolongs a flow.
func TestLiveInboundTimes(t *testing.T) {
	nstest.RequireRoot(t)
	f := newFilters(t, inboundOf(t, "tcp:22"))
	wait := func() time.Duration {
		t.Helper()
		var key inboundFlow
		var w inboundWaiting
		all := f.maps.Flows.Iterate()
		if !all.Next(&key, &w) {
			return 0
		}
		return time.Duration(w.Until) - monotonic(t)
	}
	steps := []struct {
		name  string
		frame []byte
		want  time.Duration
	}{
		{"what is served", from(tcp, tcpSegment(22, 40000, syn|ack)), 0},
		{"SYN", from(tcp, tcpSegment(40000, 80, syn)), 120 * time.Second},
		{"ACK", from(tcp, tcpSegment(40000, 80, ack)), 432000 * time.Second},
		{"FIN", from(tcp, tcpSegment(40000, 80, fin|ack)), 120 * time.Second},
		{"ACK after FIN", from(tcp, tcpSegment(40000, 80, ack)), 120 * time.Second},
		{"SYN again", from(tcp, tcpSegment(40000, 80, syn)), 120 * time.Second},
		{"ACK again", from(tcp, tcpSegment(40000, 80, ack)), 432000 * time.Second},
		{"RST", from(tcp, tcpSegment(40000, 80, rst)), 10 * time.Second},
	}
	for _, s := range steps {
		f.sends(s.frame)
		before := wait()
		f.gets(to(tcp, tcpSegment(80, 40000, ack)))
		f.gets(to(tcp, tcpSegment(80, 40001, ack)))
		if got := wait(); got > before || got < s.want-time.Minute || got > s.want {
			t.Errorf("%s: waits for %v, %v after answers, want %v", s.name, before, got, s.want)
		}
	}
	// what is over is no answer any more
	var key inboundFlow
	var w inboundWaiting
	if all := f.maps.Flows.Iterate(); !all.Next(&key, &w) || all.Next(&key, &w) {
		t.Fatal("there is not one flow")
	}
	if err := f.maps.Flows.Put(key, inboundWaiting{Until: uint64(monotonic(t) - time.Second)}); err != nil {
		t.Fatal(err)
	}
	if f.gets(to(tcp, tcpSegment(80, 40000, ack))) {
		t.Error("an answer after its time")
	}
}

// TestLiveInboundSettings: what the programs have is read back.
func TestLiveInboundSettings(t *testing.T) {
	nstest.RequireRoot(t)
	for _, text := range []string{
		"answers", "tcp:22",
		"icmp any,from=2001:db8::/33 udp:1-65535,from=10.0.0.0/9 tcp:80,from=::/0",
	} {
		want := inboundOf(t, text)
		want.EtherTypes = []portsec.EtherType{0x88f7, 0x88cc}
		s := inboundSettingsOf(want)
		if got := s.config(); !got.Equal(want) || got.Rules.Validate() != nil {
			t.Errorf("%s: read as %s", want, got)
		}
	}
	f := newFilters(t, inbound.Config{Rules: inboundOf(t, "answers").Rules, EtherTypes: []portsec.EtherType{0x88cc}})
	if !f.gets(ether(0x88cc, make([]byte, 38))) || f.gets(ether(0x88f7, make([]byte, 38))) {
		t.Error("the EtherType that is allowed")
	}
}

func TestLiveInboundDevices(t *testing.T) { inboundAtDevices(t) }

// inboundAtDevices attaches, replaces, breaks and removes the filters of a tap and of a macvtap.
func inboundAtDevices(t *testing.T) {
	for _, tc := range []struct {
		name string
		make func(*testing.T) *port
	}{{"tap", newTap}, {"macvtap", newMacvtap}} {
		t.Run(tc.name, func(t *testing.T) {
			p := tc.make(t)
			p.attach(portsectest.Config()) // the two do not disturb each other
			ssh := inboundOf(t, "tcp:22")
			if _, err := ReadInbound(p.c, p.link); !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
			p.allowIn(ssh)
			p.hears(to(tcp, tcpSegment(40000, 22, syn)), to(tcp, tcpSegment(40000, 23, syn)))
			answer := to(udp, udpDatagram(53, 40000))
			question := from(udp, udpDatagram(40000, 53))
			p.send(concat(portsectest.OtherMAC, portsectest.MAC, question[12:]))
			p.hears(answer, to(udp, udpDatagram(53, 40001)))
			p.allowIn(inboundOf(t, "tcp:23")) // which keeps flows and counters
			p.hears(answer, to(tcp, tcpSegment(40000, 22, syn)))
			s, err := ReadInbound(p.c, p.link)
			if err != nil || s.Dropped < 3 || !s.Current {
				t.Errorf("%+v, %v: want 3 dropped frames at least", s, err)
			}
			from := hookOf(p.link)
			for _, broken := range []struct {
				hook   rtnl.Hook
				filter rtnl.Filter
			}{{from, askedFilter}, {opposite(from), inboundFilter}} {
				if err := p.c.DeleteFilter(p.link.Index, broken.hook, broken.filter); err != nil {
					t.Fatal(err)
				}
				if s, err := ReadInbound(p.c, p.link); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("without one of the filters: %v, %v", s, err)
				}
				p.allowIn(ssh)
			}
			if err := AllowIn(p.c, p.link, inbound.Config{}); err != nil {
				t.Fatal(err)
			}
			p.hears(to(tcp, tcpSegment(40000, 23, syn)), nil)
			if s := p.read(); !s.Is(portsectest.Config()) {
				t.Errorf("port security went with it: %+v", s)
			}
			if err := errors.Join(Detach(p.c, p.link), AllowIn(p.c, p.link, inbound.Config{})); err != nil {
				t.Error(err)
			}
			p.absent()
			p.allowIn(ssh)
			id := p.inboundProgram()
			ip(t, p.ns, "link", "del", p.link.Name)
			nstest.Eventually(t, within, "the program goes with the device", func() bool {
				program, err := ebpf.NewProgramFromID(id)
				if err == nil {
					program.Close()
				}
				return errors.Is(err, fs.ErrNotExist)
			})
		})
	}
}

func (p *port) inboundProgram() ebpf.ProgramID {
	p.t.Helper()
	all, err := p.c.Filters(p.link.Index, opposite(hookOf(p.link)))
	if err != nil || len(all) != 1 {
		p.t.Fatal(all, err)
	}
	return ebpf.ProgramID(all[0].Program)
}

func (p *port) allowIn(cfg inbound.Config) {
	p.t.Helper()
	if err := AllowIn(p.c, p.link, cfg); err != nil {
		p.t.Fatal(err)
	}
	if s, err := ReadInbound(p.c, p.link); err != nil || !s.Is(cfg) {
		p.t.Fatalf("%s was attached; it reads %+v, %v", cfg, s, err)
	}
}

// hears fails the test unless the first frame reaches the VMM, and the second one, which is sent
// before it, does not.
func (p *port) hears(wanted, unwanted []byte) {
	p.t.Helper()
	if unwanted != nil {
		p.sendFar(unwanted)
	}
	p.sendFar(wanted)
	for b := make([]byte, 4096); ; {
		ready := []unix.PollFd{{Fd: int32(p.dev.Fd()), Events: unix.POLLIN}}
		if n, err := unix.Poll(ready, int(within.Milliseconds())); err != nil && !errors.Is(err, unix.EINTR) || n == 0 {
			p.t.Fatalf("%x does not reach the guest: %v", wanted, err)
		}
		n, err := p.dev.Read(b)
		switch {
		case err != nil:
			p.t.Fatalf("%x does not reach the guest: %v", wanted, err)
		case unwanted != nil && strings.HasPrefix(string(b[vnetLen:n]), string(unwanted)):
			p.t.Fatalf("%x reaches the guest", unwanted)
		case strings.HasPrefix(string(b[vnetLen:n]), string(wanted)):
			return
		}
	}
}

// sendFar sends a frame from the other end.
func (p *port) sendFar(frame []byte) {
	p.t.Helper()
	to := p.far
	if p.back != nil {
		to, frame = p.back, append(make([]byte, vnetLen), frame...)
	}
	if _, err := to.Write(frame); err != nil {
		p.t.Fatal(err)
	}
}

// monotonic returns the clock of bpf_ktime_get_ns.
func monotonic(t *testing.T) time.Duration {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		t.Fatal(err)
	}
	return time.Duration(now.Nano())
}
