package why

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"vmnet/bridge"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
	"vmnet/internal/ovs"
	"vmnet/tapmgr"
)

// TestBusy: each hold is named, with what it is in the way of and what ends it.
func TestBusy(t *testing.T) {
	for _, tc := range []struct {
		name               string
		device             string
		change             func(*BusyFacts)
		by, blocks, endsBy string // of the first hold
	}{
		{"bridge port", "eth1", nil, "port of bridge br1", "macvtap or ipvtap", "ip link set eth1 nomaster"},
		{"bond", "eth0", func(f *BusyFacts) {
			f.Links = append(f.Links, &rtnl.Link{Index: 90, Name: "bond0", Kind: "bond"})
			f.Links[0].Master = 90
		}, "port of bond bond0", "another bridge", "nomaster"},
		{
			"OVS", "eth0", func(f *BusyFacts) { f.OVS = []ovs.Port{{Name: "eth0", Bridge: "br-int"}} },
			"port of bridge br-int of Open vSwitch", "another bridge", "ovs-vsctl del-port eth0",
		},
		{"macvlan", "eth0", func(f *BusyFacts) {
			f.Links = append(f.Links, &rtnl.Link{Name: "m0", Kind: "macvlan", Lower: indexEth0, LowerNS: -1})
		}, "parent device of macvlan m0", "a bridge, bond", "ip link delete m0"},
		{"ipvtap elsewhere", "eth0", func(f *BusyFacts) {
			f.Abroad = []Abroad{{Name: "P2-net0", Kind: "ipvtap", Lower: indexEth0}}
		}, "parent device of ipvtap P2-net0", "macvtap on it", "vmnet detach"},
		{"passthru", "eth0", func(f *BusyFacts) {
			f.Abroad = []Abroad{{Name: "P2-net0", Kind: "macvtap", Passthru: true, Lower: indexEth0}}
		}, "parent device of macvtap P2-net0", "everything else", "vmnet detach"},
		{"tap", "P2-net0", func(f *BusyFacts) {
			f.Links[2].Master = 0
			f.Opened = []Opener{{100, "qemu"}}
		}, "opened by process 100 (qemu)", "another program", "end process 100"},
		{"claimed", "eth0", func(f *BusyFacts) { f.Claimed = true }, "a userspace switch", "a bridge", "remove-port"},
		{"bridge", "br0", nil, "its ports P2-net0, P3-net0", "its deletion", "--force"},
		{"addresses", "eth0", nil, "addresses of the host: 192.0.2.7/24", "would take the host", "--move-address"},
		{
			"elsewhere", "eth9", func(f *BusyFacts) { f.Netns = "blue" }, "network namespace blue", "everything here",
			"netns",
		},
		{"an address of the host", "192.0.2.7", nil, "the host itself, on eth0", "a guest", "ip address del"},
		{"an address of a guest", "10.0.0.12", nil, "in the subnet 10.0.0.0/24 of br0", "", ""},
	} {
		w := world()
		f := &BusyFacts{Name: tc.device, Links: w.Links, Addrs: w.Addrs, NICs: w.Others}
		if a, err := netip.ParseAddr(tc.device); err == nil {
			f.Addr = a
		}
		if tc.change != nil {
			tc.change(f)
		}
		b := f.Explain()
		if len(b.Holds) == 0 {
			t.Errorf("%s: nothing holds it", tc.name)
			continue
		}
		h := b.Holds[0]
		if !strings.HasPrefix(h.By, tc.by) || !strings.Contains(h.Blocks, tc.blocks) || !strings.Contains(h.Cure,
			tc.endsBy) {
			t.Errorf("%s: %+v", tc.name, h)
		}
	}
	f := &BusyFacts{Name: "eth1", Links: []*rtnl.Link{{Index: 1, Name: "eth1", Up: true}}}
	if text := f.Explain().Text(80); text != "eth1: card, no carrier, MTU 0\nnothing holds it\n" {
		t.Errorf("%q", text)
	}
}

// TestLiveBusy: a port of a bridge, a parent device, and a tap that this process has open.
func TestLiveBusy(t *testing.T) {
	ns := nstest.New(t)
	s := &site{T: t, ns: ns}
	s.sh("ip link add va type veth peer name vb; ip link set va up; ip link set vb up")
	s.sh("ip address add 192.0.2.9/24 dev vb")
	s.sh("ip link add link vb name m0 type macvlan mode bridge")
	h, err := bridge.Open(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := h.Create(bridge.Config{Name: "br0"}); err != nil {
		t.Fatal(err)
	}
	s.sh("ip link set va master br0")
	queue, err := tun.Create(ns, "t0", false)
	if err != nil {
		t.Fatal(err)
	}
	defer queue.Close()
	m, err := tapmgr.Open(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for device, want := range map[string]string{
		"va": "port of bridge br0", "vb": "parent device of macvlan m0", "t0": "opened by process",
		"br0":       "its ports va",
		"192.0.2.9": "the host itself, on vb",
	} {
		f, err := ReadBusy(s.ctx(), m, ns, device)
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(f.Explain().Holds); !strings.Contains(got, want) {
			t.Errorf("%s: %s, want %s", device, got, want)
		}
	}
	if _, err := ReadBusy(s.ctx(), m, ns, "none0"); err == nil || !strings.Contains(err.Error(), "no such device") {
		t.Errorf("a device that is not there: %v", err)
	}
}
