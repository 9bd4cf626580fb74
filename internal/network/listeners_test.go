package network

import (
	"net/netip"
	"slices"
	"testing"

	"vmnet/internal/network/config"
)

// TestListening: a table of a little-endian machine, as proc_net_tcp(5) describes it.
func TestListening(t *testing.T) {
	const tcp = `  sl  local_address rem_address   st
   0: 00000000:0016 00000000:0000 0A 00000000:00000000
   1: 0100007F:0035 00000000:0000 0A 00000000:00000000
   2: 0200A8C0:8000 0200A8C0:0016 01 00000000:00000000
   3: 00000000000000000000000001000000:0019 00000000000000000000000000000000:0000 0A 0
   4: x:0019 0:0 0A
   5: 00
`
	want := []netip.AddrPort{
		netip.MustParseAddrPort("0.0.0.0:22"), netip.MustParseAddrPort("127.0.0.1:53"),
		netip.MustParseAddrPort("[::1]:25"),
	}
	if got := listening(tcp, "tcp"); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// TestLiveHidden: a forward takes ports from programs that listen on the same address, or on all.
func TestLiveHidden(t *testing.T) {
	x := newHost(t)
	x.answers(x.host, ":2222")
	x.answers(x.host, "127.0.0.1:2223")
	x.answers(x.host, hostIP+":2224")
	for _, tc := range []struct {
		listen string
		want   []uint16
	}{
		{"", []uint16{2222, 2224}},
		{hostIP, []uint16{2222, 2224}},
		{"192.0.2.1", []uint16{2222}},
	} {
		f := config.Forward{Protocol: "tcp", First: 2220, Last: 2230}
		if tc.listen != "" {
			f.Listen = netip.MustParseAddr(tc.listen)
		}
		if got, err := x.m.Hidden(f); err != nil || !slices.Equal(got, tc.want) {
			t.Errorf("%q: %v, %v, want %v", tc.listen, got, err, tc.want)
		}
		f.Protocol = "udp"
		if got, err := x.m.Hidden(f); err != nil || len(got) > 0 {
			t.Errorf("udp: %v, %v", got, err)
		}
	}
}
