package why

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"vmnet/internal/kernel/announce"
	"vmnet/internal/kernel/rtnl"
)

// TestPlaces: where requests are sent for each kind of NIC.
func TestPlaces(t *testing.T) {
	hostAccess := func(f *Facts) {
		f.onMacvtap()
		f.Links = append(f.Links, &rtnl.Link{
			Index: 60, Name: "eth0-host", Kind: "macvlan", Macvlan: &rtnl.Macvlan{}, Up: true,
			Lower: indexEth0, LowerNS: -1,
		})
	}
	for _, tc := range []struct {
		name   string
		change func(*Facts)
		want   []string
	}{
		{"bridge", func(*Facts) {}, []string{"P2-net0", "br0"}},
		{"bridge down", func(f *Facts) { f.link("br0").Up = false }, []string{"P2-net0"}},
		{"tap down", func(f *Facts) { f.NIC.Link.Up = false }, nil},
		{"routed", (*Facts).routed, []string{"P2-net0"}},
		{"macvtap", (*Facts).onMacvtap, nil},
		{"macvtap with host access", hostAccess, []string{"eth0-host"}},
		{"switch", func(f *Facts) { f.onSwitch() }, []string{"P2-net0"}},
		{"Open vSwitch", (*Facts).onOVS, []string{"P2-net0"}},
		{
			"Open vSwitch with its own device", func(f *Facts) {
				f.onOVS()
				f.Links = append(f.Links, &rtnl.Link{Index: 61, Name: "br-int", Up: true, LowerNS: -1})
			},
			[]string{"P2-net0", "br-int"},
		},
	} {
		f := world()
		tc.change(f)
		l := &live{walker: walker{Facts: f}}
		var names []string
		for _, at := range l.places(f.NIC) {
			names = append(names, at.Name)
		}
		if !slices.Equal(names, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, names, tc.want)
		}
	}
}

// TestWay: the links that are watched are those of the frame's way, each once.
func TestWay(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*Facts)
		want   []string
	}{
		"outside": {func(*Facts) {}, []string{"P2-net0", "br0", "eth0"}},
		"to P3":   {(*Facts).toP3, []string{"P2-net0", "br0", "P3-net0"}},
		"uplink":  {(*Facts).onBr1, []string{"P4-net0", "br1", "eth1", "eth0"}},
		"macvtap": {(*Facts).onMacvtap, []string{"eth0", "br0"}},
	} {
		f := world()
		tc.change(f)
		var names []string
		for _, l := range (&live{walker: walker{Facts: f}}).way() {
			names = append(names, l.Name)
		}
		if !slices.Equal(names, tc.want) {
			t.Errorf("%s: %v, want %v", name, names, tc.want)
		}
	}
}

// TestAnswers: only a reply of ARP about the address counts.
func TestAnswers(t *testing.T) {
	all := slices.Repeat([]byte{0xff}, 6)
	request := arpRequest(append(all, mac1...), mac1, address1, address2)
	reply := slices.Clone(request)
	reply[21] = 2
	for name, tc := range map[string]struct {
		frame []byte
		want  string
	}{
		"a reply":              {reply, mac1.String()},
		"a reply with a tag":   {announce.Tagged(reply, 7), mac1.String()},
		"a request":            {request, ""},
		"cut off":              {reply[:len(reply)-1], ""},
		"cut off after a tag":  {announce.Tagged(reply, 7)[:17], ""},
		"nothing":              {nil, ""},
		"only addresses":       {reply[:12], ""},
		"of another protocol":  {append(slices.Clone(reply[:12]), make([]byte, 60)...), ""},
		"about somebody else":  {arpReplyOf(reply, address2), ""},
		"with padding after":   {append(slices.Clone(reply), make([]byte, 18)...), mac1.String()},
		"a request with a tag": {announce.Tagged(request, 7), ""},
	} {
		if got := answers(tc.frame, address1).String(); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

func arpReplyOf(reply []byte, a netip.Addr) []byte {
	reply = slices.Clone(reply)
	copy(reply[28:], a.AsSlice())
	return reply
}

// TestEchoRequest: the checksum of ICMP is right; the kernel makes that of ICMPv6.
func TestEchoRequest(t *testing.T) {
	for _, id := range []uint16{0, 1, 0x7fff, 0xf7ff, 0xffff} {
		sum := uint32(0)
		b := echoRequest(echo4, id, 2)
		for i := 0; i < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
		if sum = sum&0xffff + sum>>16; sum != 0xffff {
			t.Errorf("id %x: the sum is %x", id, sum)
		}
	}
	if b := echoRequest(echo6, 1, 2); b[0] != echo6 || b[2] != 0 || b[3] != 0 {
		t.Errorf("got %x", b)
	}
}
