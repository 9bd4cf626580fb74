package bridges

import (
	"net"
	"testing"

	"vmnet/internal/kernel/rtnl"
)

func TestWanders(t *testing.T) {
	mac := func(first, last byte) net.HardwareAddr { return net.HardwareAddr{first, 0, 0, 0, 0, last} }
	tap := func(last byte) *rtnl.Link { return &rtnl.Link{Name: "tap", Kind: "tun", MAC: mac(0xfe, last)} }
	veth := &rtnl.Link{Name: "veth", Kind: "veth", MAC: mac(0x02, 7)}
	card := &rtnl.Link{Name: "eth0", MAC: mac(0x00, 9)}
	odd := &rtnl.Link{Name: "eth1", MAC: mac(0xfe, 9)} // an uplink with a higher address than a tap
	for _, test := range []struct {
		name  string
		mac   net.HardwareAddr
		ports []*rtnl.Link
		want  bool
		of    string // what MACOf returns
	}{
		{"new", mac(0x06, 1), nil, true, ""},
		{"of a tap", mac(0xfe, 2), []*rtnl.Link{tap(3), tap(2)}, true, "tap"},
		{"set, with taps", mac(0x06, 1), []*rtnl.Link{tap(3), tap(2)}, false, ""},
		{"of an uplink", card.MAC, []*rtnl.Link{tap(3), card, veth}, false, ""},
		{"of a container", veth.MAC, []*rtnl.Link{tap(3), veth}, true, "veth"},
		{"of an uplink that the tap is below", odd.MAC, []*rtnl.Link{odd}, true, ""},
		{
			"of an uplink with a veth of its address", card.MAC,
			[]*rtnl.Link{{Kind: "veth", MAC: card.MAC}, card},
			false,
			"",
		},
	} {
		br := &rtnl.Link{Name: "br0", MAC: test.mac}
		if got := wanders(br, test.ports, tap(1)); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
		if got := MACOf(br, test.ports); got != test.of {
			t.Errorf("%s: MACOf is %q, want %q", test.name, got, test.of)
		}
	}
}
