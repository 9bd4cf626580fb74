package offload

import (
	"encoding/binary"
	"testing"
)

func TestCheckTellsWhy(t *testing.T) {
	tcp4 := shape{payload: 5000, gso: 1000}
	tcp6 := shape{v6: true, payload: 5000, gso: 1000}
	udp4 := shape{udp: true, payload: 5000, gso: 1000}
	const ip, l4 = 14, 34 // in tcp4 and udp4
	tests := []struct {
		name   string
		s      shape
		change func(h *Header, f []byte) []byte // returns the frame, or its replacement
		want   Reason
	}{
		{"tcp4", tcp4, same, OK},
		{"tcp6", tcp6, same, OK},
		{"udp4", udp4, same, OK},
		{"tags", shape{tags: []uint16{typeQinQ, typeVLAN}, payload: 5000, gso: 1000}, same, OK},
		{"three tags", shape{tags: []uint16{typeQinQ, typeQinQ, typeVLAN}, payload: 5000, gso: 1000}, same, OK},
		{
			"eight extension headers",
			shape{v6: true, exts: []byte{0, 60, 60, 60, 60, 60, 60, 60}, payload: 5000, gso: 1000},
			same, OK,
		},
		{
			"nine extension headers",
			shape{v6: true, exts: []byte{0, 60, 60, 60, 60, 60, 60, 60, 60}, payload: 5000, gso: 1000},
			same, Protocol,
		},
		{
			"long extension header",
			shape{v6: true, exts: []byte{60}, extLen: 504, payload: 5000, gso: 1000},
			same,
			Headers,
		},
		{"fragment header", shape{v6: true, exts: []byte{44}, payload: 5000, gso: 1000}, same, Protocol},
		{"routing header", shape{v6: true, exts: []byte{protoRouting}, payload: 5000, gso: 1000}, same, OK},
		{
			"routing header, full",
			shape{v6: true, exts: []byte{protoRouting}, full: true, payload: 5000, gso: 1000},
			same, NoCsum,
		},
		{"tcp4, full", shape{full: true, payload: 5000, gso: 1000}, same, OK},
		{"udp4, full", udp4, func(h *Header, f []byte) []byte { h.Flags = 0; return f }, OK},
		{"no frame", tcp4, func(_ *Header, f []byte) []byte { return f[:0] }, CsumRange},
		{"half an Ethernet header", shape{full: true, payload: 5000, gso: 1000}, cutTo(13), Protocol},
		{"half an IP header", shape{full: true, payload: 5000, gso: 1000}, cutTo(ip + 19), Truncated},
		{"half an IPv6 header", shape{v6: true, full: true, payload: 5000, gso: 1000}, cutTo(ip + 39), Truncated},
		{"IP options past the end", shape{full: true, payload: 5000, gso: 1000}, func(_ *Header, f []byte) []byte {
			f[ip] = 0x4f
			return f[:ip+59]
		}, Truncated},
		{"half a TCP header", shape{full: true, payload: 5000, gso: 1000}, func(_ *Header, f []byte) []byte {
			binary.BigEndian.PutUint16(f[ip+2:], 39)
			return f[:l4+19]
		}, Truncated},
		{"TCP options past the end", shape{payload: 10, gso: 5}, func(_ *Header, f []byte) []byte {
			f[l4+12] = 0xf0
			return f
		}, Truncated},
		{"TCP header of 16 bytes", tcp4, func(_ *Header, f []byte) []byte { f[l4+12] = 0x40; return f }, Protocol},
		{"IP header of 16 bytes", tcp4, func(_ *Header, f []byte) []byte { f[ip] = 0x44; return f }, Protocol},
		{"IPv6 in IPv4's type", tcp4, func(_ *Header, f []byte) []byte { f[ip] = 0x65; return f }, Protocol},
		{"IPv4 in IPv6's type", tcp6, func(_ *Header, f []byte) []byte { f[ip] = 0x45; return f }, Protocol},
		{"TCPv6 over IPv4", tcp4, gsoType(GSOTCPv6), Protocol},
		{"TCPv4 over IPv6", tcp6, gsoType(GSOTCPv4), Protocol},
		{"TCP called UDP", tcp4, gsoType(GSOUDPL4), Protocol},
		{"UDP called TCP", udp4, gsoType(GSOTCPv4), Protocol},
		{"UDP fragmentation", udp4, gsoType(GSOUDP), GSOType},
		{"ECN alone", tcp4, gsoType(GSOECN), GSOType},
		{"ECN with UDP", udp4, gsoType(GSOUDPL4 | GSOECN), GSOType},
		{"ECN with TCP", tcp4, gsoType(GSOTCPv4 | GSOECN), OK},
		{"a tunnel", tcp4, gsoType(GSOTCPv4 | 0x20), GSOType},
		{"gso_size 0", tcp4, gsoSize(0), GSOSize},
		{"gso_size 65535", tcp4, gsoSize(0xffff), GSOSize},
		{"1024 segments", shape{payload: 10240, gso: 10}, same, OK},
		{"1025 segments", shape{payload: 10241, gso: 10}, same, Segments},
		{"128 datagrams", shape{udp: true, payload: 1280, gso: 10}, same, OK},
		{"129 datagrams", shape{udp: true, payload: 1281, gso: 10}, same, Segments},
		{"more fragments", tcp4, func(_ *Header, f []byte) []byte { f[ip+6] |= 0x20; return f }, Fragment},
		{"a later fragment", tcp4, func(_ *Header, f []byte) []byte { f[ip+7] = 1; return f }, Fragment},
		{"padding", tcp4, func(_ *Header, f []byte) []byte { return append(f, 0) }, Length},
		{"IPv6 padding", tcp6, func(_ *Header, f []byte) []byte { return append(f, 0) }, Length},
		{"UDP length", udp4, func(_ *Header, f []byte) []byte { f[l4+5]++; return f }, Length},
		{"csum_start one off", tcp4, func(h *Header, f []byte) []byte { h.CsumStart++; return f }, CsumPlace},
		{"csum_offset one off", tcp4, func(h *Header, f []byte) []byte { h.CsumOffset--; return f }, CsumPlace},
		{"csum_start in the MAC addresses", shape{payload: 50}, func(h *Header, f []byte) []byte {
			h.CsumStart = 0
			return f
		}, CsumRange},
		{"csum_start in the IP header", shape{payload: 50}, func(h *Header, f []byte) []byte {
			h.CsumStart = 33
			return f
		}, CsumRange},
		{"checksum ends with the frame", shape{payload: 0}, func(h *Header, f []byte) []byte {
			h.CsumOffset = 18
			return f
		}, OK},
		{"checksum past the frame", shape{payload: 0}, func(h *Header, f []byte) []byte {
			h.CsumOffset = 19
			return f
		}, CsumRange},
		{"csum_start past the frame", shape{payload: 0}, func(h *Header, f []byte) []byte {
			h.CsumStart = 0xffff
			return f
		}, CsumRange},
		{"sum of both past 65535", shape{payload: 0}, func(h *Header, f []byte) []byte {
			h.CsumStart, h.CsumOffset = 0xfff0, 0x20
			return f
		}, CsumRange},
		{"half a CRC", shape{payload: 0}, func(h *Header, f []byte) []byte {
			h.CsumStart, h.CsumOffset = 43, sctpCsum
			return f
		}, CsumRange},
	}
	for _, tt := range tests {
		h, f := tt.s.build()
		f = tt.change(&h, f)
		if got := Check(h, f); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
		var fin Finisher
		if got := fin.Start(h, f, Limits{}); got != tt.want || (len(fin.Next()) > 0) != (got == OK) {
			t.Errorf("%s: Start says %v, want %v", tt.name, got, tt.want)
		}
	}
}

func same(_ *Header, f []byte) []byte { return f }

func cutTo(n int) func(*Header, []byte) []byte {
	return func(_ *Header, f []byte) []byte { return f[:n] }
}

func gsoType(kind uint8) func(*Header, []byte) []byte {
	return func(h *Header, f []byte) []byte { h.GSOType = kind; return f }
}

func gsoSize(n uint16) func(*Header, []byte) []byte {
	return func(h *Header, f []byte) []byte { h.GSOSize = n; return f }
}

func TestReasonsHaveNames(t *testing.T) {
	seen := map[string]bool{}
	for r := range Reasons + 1 {
		seen[r.String()] = true
	}
	if len(seen) != int(Reasons)+1 {
		t.Errorf("%d names for %d reasons: %v", len(seen)-1, Reasons, seen)
	}
}

func TestFits(t *testing.T) {
	everything := Limits{CSum: true, TSO4: true, TSO6: true, TSOECN: true, USO: true, VnetHdr: HeaderLen}
	but := func(change func(*Limits)) Limits { l := everything; change(&l); return l }
	mtu := func(n int) Limits { return but(func(l *Limits) { l.MTU = n }) }
	tcp4 := shape{payload: 5000, gso: 1460} // 1500 bytes of IP each
	tagged := shape{tags: []uint16{typeQinQ, typeVLAN}, payload: 5000, gso: 1460}
	tests := []struct {
		name string
		s    shape
		l    Limits
		want bool
	}{
		{"tcp4", tcp4, everything, true},
		{"tcp4, no TSO4", tcp4, but(func(l *Limits) { l.TSO4 = false }), false},
		{"tcp4, no CSum", tcp4, but(func(l *Limits) { l.CSum = false }), false},
		{"tcp4, no TSO6", tcp4, but(func(l *Limits) { l.TSO6 = false }), true},
		{"tcp4, full", shape{full: true, payload: 5000, gso: 1000}, everything, false},
		{"tcp6", shape{v6: true, payload: 5000, gso: 1000}, everything, true},
		{"tcp6, no TSO6", shape{v6: true, payload: 5000, gso: 1000}, but(func(l *Limits) { l.TSO6 = false }), false},
		{"ecn", shape{ecn: true, payload: 5000, gso: 1000}, everything, true},
		{"ecn, no TSOECN", shape{ecn: true, payload: 5000, gso: 1000}, but(func(l *Limits) {
			l.TSOECN = false
		}), false},
		{"udp", shape{udp: true, payload: 5000, gso: 1000}, everything, true},
		{"udp, no USO", shape{udp: true, payload: 5000, gso: 1000}, but(func(l *Limits) { l.USO = false }), false},
		{"partial", shape{payload: 50}, everything, true},
		{"partial, no CSum", shape{payload: 50}, but(func(l *Limits) { l.CSum = false }), false},
		{"tcp4, MTU", tcp4, mtu(1500), true},
		{"tcp4, a tag's length more", tcp4, mtu(1496), true},
		{"tcp4, MTU one less", tcp4, mtu(1495), false},
		{"two tags, MTU", tagged, mtu(1500), true},
		{"two tags, MTU one less", tagged, mtu(1499), false},
		{"three tags, MTU", shape{tags: []uint16{typeVLAN, typeVLAN, typeVLAN}, payload: 1460}, mtu(1500), true},
		{"one tag and a tag's length", shape{tags: []uint16{typeVLAN}, payload: 1464}, mtu(1500), true},
		{"one tag and one more", shape{tags: []uint16{typeVLAN}, payload: 1465}, mtu(1500), false},
		{"1504 bytes", shape{payload: 1464}, mtu(1500), true},
		{"1505 bytes", shape{payload: 1465}, mtu(1500), false},
		{"less than a segment", shape{payload: 100, gso: 1460}, mtu(200), true},
	}
	for _, tt := range tests {
		h, f := tt.s.build()
		if got := Fits(h, f, tt.l); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
	if Fits(Header{Flags: NeedsCsum, CsumStart: 34, CsumOffset: sctpCsum}, make([]byte, 60), everything) {
		t.Error("a partial CRC fits: the receiver takes it for a sum")
	}
}

func TestStartRefusesWhatIsTooBig(t *testing.T) {
	var f Finisher
	for _, s := range []shape{{payload: 5000, gso: 1461}, {payload: 1461}, {payload: 1461, gso: 1500}} {
		h, frame := s.build()
		if why := f.Start(h, frame, Limits{MTU: 1496}); why != TooBig || len(f.Next()) > 0 {
			t.Errorf("%+v: %v", s, why)
		}
		if why := f.Start(h, frame, Limits{MTU: 1497}); why != OK || len(f.Next()) == 0 {
			t.Errorf("%+v, one more: %v", s, why)
		}
	}
}
