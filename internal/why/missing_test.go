package why

import (
	"slices"
	"strings"
	"testing"

	"vmnet/bridge/vswitch/vport"
)

// TestMissing: the walk reports once what could not be read, with how to see it. It stops nothing.
func TestMissing(t *testing.T) {
	const reason = "permission denied"
	for _, tc := range []struct {
		name    string
		part    Part
		change  func(*Facts)
		without func(*Facts)
		how     string
	}{
		{
			"FDB", PartFDB, func(f *Facts) { f.toP3(); f.Peer.Link.Port.Flood = false },
			func(f *Facts) { f.FDB = nil }, "bridge fdb show br br0",
		},
		{
			"FDB of a locked port", PartFDB, func(f *Facts) { f.NIC.Link.Port.Locked = true },
			func(f *Facts) { f.FDB = nil }, "bridge fdb show br br0",
		},
		{"VLANs", PartVLANs, (*Facts).filterVLANs, func(f *Facts) { f.VLANs = nil }, "bridge vlan show"},
		{
			"VLANs, to a guest", PartVLANs, func(f *Facts) { f.toP3(); f.filterVLANs() },
			func(f *Facts) { f.VLANs = nil }, "bridge vlan show",
		},
		{
			"VLANs, to the host", PartVLANs, func(f *Facts) { f.toHost(); f.filterVLANs() },
			func(f *Facts) { f.VLANs = nil }, "bridge vlan show",
		},
		{"firewall", PartFirewall, func(*Facts) {}, func(f *Facts) { f.Firewall = nil }, "nft list ruleset"},
		{
			"network", PartNetwork, (*Facts).lab, func(f *Facts) { f.Network, f.Differences = nil, nil },
			"vmnet network check",
		},
		{
			"routes", PartRoutes, func(*Facts) {}, func(f *Facts) { f.Out.Link, f.Back.Link = 0, 0 },
			"ip route get " + address1.String(),
		},
		{
			"routes of a routed guest", PartRoutes, (*Facts).routed,
			func(f *Facts) { f.Out.Link, f.Back.Link = 0, 0 }, "ip route get ",
		},
		{
			"proxy entries", PartProxies, (*Facts).routed, func(f *Facts) { f.Proxies = nil },
			"ip neighbour show proxy dev eth0",
		},
		{"Open vSwitch", PartOVS, (*Facts).onOVS, func(f *Facts) { f.OVS = nil }, "ovs-vsctl show"},
		{"flows", PartTrace, (*Facts).onOVS, func(f *Facts) { f.Trace = nil }, "ofproto/trace br-int"},
		{
			"switch", PartSwitch, func(f *Facts) { f.onSwitch() }, func(f *Facts) { f.Switch = nil },
			"vmnet switch show sw0",
		},
	} {
		f := world()
		tc.change(f)
		tc.without(f)
		f.Missing[tc.part] = reason
		w := Follow(f)
		var told []Step
		for _, s := range w.Steps {
			if strings.Contains(s.Why, reason) {
				told = append(told, s)
			}
		}
		if w.Stopped() != nil || len(told) != 1 || !strings.Contains(told[0].Cure, tc.how) {
			t.Errorf("%s: told %d times:\n%s", tc.name, len(told), w.Text(80, nil))
		}
	}
}

// TestStormLimit: a limit of which frames were dropped is no fault, but may be the reason.
func TestStormLimit(t *testing.T) {
	for kind, reason := range map[Kind]string{ARP: "broadcast storm", ICMP: "unknown-unicast storm"} {
		f := world()
		p := &f.onSwitch().Ports[0]
		p.Config.Storm = vport.GuestStorm(7)
		f.Frame.Kind, p.Stats.Drops = kind, map[string]uint64{reason: 93}
		w := Follow(f)
		i := slices.IndexFunc(w.Steps, func(s Step) bool { return s.Where == "storm limit of P2-net0" })
		if i < 0 || w.Stopped() != nil || w.Steps[i].Verdict != Unknown ||
			!strings.Contains(w.Steps[i].Why, "93 frames over 7") {
			t.Errorf("%s: %s", kind, w.Text(80, nil))
		}
		if p.Stats.Drops = nil; len(Follow(f).Steps) != len(w.Steps)-1 {
			t.Errorf("%s: nothing was dropped: %s", kind, Follow(f).Text(80, nil))
		}
	}
}
