package inventory

import (
	"net"
	"strings"
	"testing"

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch/control"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/stablemac"
	"vmnet/tapmgr/nic"
)

var guestMAC = net.HardwareAddr{0x52, 0x54, 0, 1, 2, 3}

// tapView returns a NIC on a bridge that is as recorded.
func tapView() *View {
	v := &View{
		Device: &Device{
			Link: &rtnl.Link{
				Name: "P2-net0", Index: 7, Kind: "tun", MAC: stablemac.HostMAC(guestMAC), MTU: 1500, Up: true,
				Carrier: true, OperUp: true, Master: 3,
				Tun: &rtnl.Tun{Tap: true, Attached: true}, Port: &rtnl.Port{State: rtnl.Forwarding},
			},
			Want: nic.Record{
				VM: "P2", NIC: "net0", Type: nic.TypeTap, Source: "br0", At: 3, Port: "isolated",
				MAC: guestMAC, Model: nic.DefaultModel, Queues: 2, Vhost: true,
			},
			MasterName: "br0", Holders: []nic.Holder{{PID: 1, FDs: []int{9, 10}}},
		},
		Home:   &rtnl.Link{Name: "br0", Index: 3, MTU: 1500, Up: true, Bridge: &rtnl.Bridge{CanFilterVLANs: true}},
		port:   &brport.Settings{Isolated: true},
		vhosts: 2,
	}
	return v
}

// macvtapView returns a macvtap that is as recorded.
func macvtapView() *View {
	return &View{
		Device: &Device{
			Link: &rtnl.Link{
				Name: "P2-net0", Index: 70000, Kind: "macvtap", MAC: guestMAC, MTU: 1500, Up: true, Carrier: true,
				OperUp: true, AllMulti: true, Lower: 3,
				Macvlan: &rtnl.Macvlan{Mode: 4},
			},
			Want: nic.Record{
				VM: "P2", NIC: "net0", Type: "macvtap", Source: "eth0", Mode: "bridge", RxFilter: nic.RxAllMulti,
				MAC: guestMAC, Model: nic.DefaultModel, Queues: 1,
			},
			Holders: []nic.Holder{{PID: 1, FDs: []int{9}}},
		},
		Home: &rtnl.Link{
			Name: "eth0", Index: 3, MTU: 1500, Up: true, Carrier: true,
			MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1},
		},
		vhosts: -1,
	}
}

// switchView returns a tap on a userspace switch that is as recorded.
func switchView() *View {
	v := tapView()
	v.Want.Switch, v.Want.Source, v.Want.Port, v.MasterName, v.Master = true, "sw0", "", "", 0
	v.Home, v.port = nil, nil
	v.SwitchPort = SwitchPort{Path: "/run/sw0", Port: &control.Port{Name: "P2-net0", Config: v.Want.SwitchPortConfig()}}
	return v
}

func socketView() *View {
	v := switchView()
	v.Want.Type, v.Want.Queues, v.Want.Vhost, v.vhosts = nic.TypeSocket, 1, false, -1
	v.Link = &rtnl.Link{Name: "P2-net0", Kind: nic.TypeSocket, Up: true, MTU: 1500}
	v.SwitchPort.Port.Config = v.Want.SwitchPortConfig()
	return v
}

func plainView() *View {
	v := tapView()
	v.Want = nic.Record{Type: nic.TypeTap, Source: "br0", Port: "isolated", Owner: 1000}
	v.Tun.Persist, v.vhosts = true, -1
	return v
}

// TestCompare changes each property, and wants the finding, what mends it, and its cure.
func TestCompare(t *testing.T) {
	const detachFirst = "vmnet detach --vm P2 --nic net0"
	for _, test := range []struct {
		what  string // the property; empty: nothing differs
		of    func() *View
		spoil func(v *View)
		by    nic.Mender
		cure  string
	}{
		{"", tapView, func(*View) {}, "", ""},
		{"", macvtapView, func(*View) {}, "", ""},
		{"", switchView, func(*View) {}, "", ""},
		{"", socketView, func(*View) {}, "", ""},
		{"", plainView, func(*View) {}, "", ""},

		{"link", tapView, func(v *View) {
			v.Up, v.OperUp, v.Carrier = false, false, false
		}, nic.MendReconcile, "vmnet reconcile"},
		{"carrier", tapView, func(v *View) {
			v.OperUp, v.Carrier = false, false
		}, nic.MendReconcile, "vmnet reconcile"},
		{"host MAC", tapView, func(v *View) {
			v.MAC = net.HardwareAddr{0x52, 0x54, 0, 9, 9, 9}
		}, nic.MendReconcile, "vmnet reconcile"},
		{"MTU", tapView, func(v *View) { v.MTU = 1400 }, nic.MendReconcile, "vmnet reconcile"},
		{"MTU", tapView, func(v *View) { v.Home.MTU = 9000 }, nic.MendReconcile, "vmnet reconcile"},
		{"IPv6 of the host", tapView, func(v *View) { v.HostIPv6 = true }, nic.MendReconcile, "vmnet reconcile"},
		{"lifetime", tapView, func(v *View) { v.Tun.Persist = true }, nic.MendReconcile, "vmnet reconcile"},
		{"queues", tapView, func(v *View) { v.Holders[0].FDs = []int{9} }, nic.MendDetach, detachFirst},
		{"vhost", tapView, func(v *View) { v.vhosts = 0 }, nic.MendDetach, detachFirst},
		{"", tapView, func(v *View) { v.vhosts = -1 }, "", ""},
		{"name", tapView, func(v *View) { v.Name = "other" }, nic.MendReconcile, "vmnet reconcile"},
		{"", tapView, func(v *View) { v.Name, v.AltNames = "other", []string{"P2-net0"} }, "", ""},
		{"bridge", tapView, func(v *View) {
			v.MasterName, v.Master, v.port = "", 0, nil
		}, nic.MendReconcile, "vmnet reconcile"},
		{"bridge", tapView, func(v *View) {
			v.MasterName, v.Master, v.port, v.Home = "", 0, nil, nil
		}, nic.MendAdmin, "vmnet bridge create br0"},
		{"bridge", tapView, func(v *View) {
			v.MasterName, v.Master, v.port = "br1", 4, nil
		}, nic.MendAdmin, "ip link set P2-net0 nomaster"},
		{"port", tapView, func(v *View) { v.port.Isolated = false }, nic.MendReconcile, "vmnet reconcile"},
		{"port", tapView, func(v *View) { v.port.NoLearning = true }, nic.MendReconcile, "vmnet reconcile"},
		{"port", tapView, func(v *View) { v.port.NoFlood = true }, nic.MendReconcile, "vmnet reconcile"},
		{"port", tapView, func(v *View) { v.port.Hairpin = true }, nic.MendReconcile, "vmnet reconcile"},
		{"port", tapView, func(v *View) { v.port.Other = "locked" }, nic.MendReconcile, "vmnet reconcile"},
		{"port", tapView, func(v *View) { v.filters(1); v.port.VLAN = 2 }, nic.MendReconcile, "vmnet reconcile"},
		{"port", tapView, func(v *View) { v.filters(1) }, nic.MendReconcile, "vmnet reconcile"},
		{"VLAN", tapView, func(v *View) { v.filters(0) }, nic.MendDetach, "--vlan"},
		{"port state", tapView, func(v *View) { v.Port.State = rtnl.Disabled }, nic.MendReconcile, "vmnet reconcile"},
		{"", tapView, func(v *View) { v.Port.State, v.Home.Bridge.STP = rtnl.Listening, true }, "", ""},
		{"", tapView, func(v *View) { v.Port.State, v.OperUp = rtnl.Disabled, false }, "", ""},
		{"bridge state", tapView, func(v *View) { v.Home.Up = false }, nic.MendAdmin, "ip link set br0 up"},
		{"detach", tapView, func(v *View) {
			v.Want.Phase, v.Up, v.MasterName, v.MTU = nic.PhaseDetaching, false, "", 1
		}, nic.MendDetach, detachFirst},

		{"link", macvtapView, func(v *View) { v.Up = false }, nic.MendReconcile, "vmnet reconcile"},
		{"host MAC", macvtapView, func(v *View) {
			v.MAC = stablemac.HostMAC(guestMAC)
		}, nic.MendReconcile, "vmnet reconcile"},
		{"host MAC", macvtapView, func(v *View) {
			v.Want.Mode, v.Macvlan.Mode = "passthru", 8
		}, nic.MendReconcile, "vmnet reconcile"},
		{"MTU", macvtapView, func(v *View) { v.MTU = 1400 }, nic.MendReconcile, "vmnet reconcile"},
		{"mode", macvtapView, func(v *View) { v.Macvlan.Mode = 1 }, nic.MendReconcile, "vmnet reconcile"},
		{"mode", macvtapView, func(v *View) { v.Want.Mode = "source" }, nic.MendDetach, detachFirst},
		{"rx filter", macvtapView, func(v *View) { v.AllMulti = false }, nic.MendReconcile, "vmnet reconcile"},
		{"rx filter", macvtapView, func(v *View) {
			v.Want.RxFilter = nic.RxNone
		}, nic.MendReconcile, "vmnet reconcile"},
		{"", macvtapView, func(v *View) { v.Want.RxFilter, v.AllMulti = nic.RxMirror, false }, "", ""},
		{"IPv6 of the host", macvtapView, func(v *View) { v.HostIPv6 = true }, nic.MendReconcile, "vmnet reconcile"},
		{"parent device", macvtapView, func(v *View) { v.Home.Up = false }, nic.MendAdmin, "ip link set eth0 up"},

		{"frames of the parent device", macvtapView, func(v *View) {
			v.claimed = true
		}, nic.MendAdmin, "vmnet switch remove-port SWITCH eth0"},

		{"bridge", switchView, func(v *View) { v.MasterName = "br0" }, nic.MendAdmin, "nomaster"},
		{"bridge", switchView, func(v *View) {
			v.MasterName, v.SwitchPort.Port, v.MTU = "br0", nil, 1400
		}, nic.MendAdmin, "nomaster"},
		{"MTU", switchView, func(v *View) { v.MTU = 9000 }, nic.MendReconcile, "vmnet reconcile"},
		{"switch", switchView, func(v *View) { v.SwitchPort.Port = nil }, nic.MendReconcile, "vmnet reconcile"},
		{"switch", switchView, func(v *View) {
			v.SwitchPort.Port, v.notRuns = nil, control.ErrNotRunning
		}, nic.MendAdmin, "once the switch runs"},
		{"settings", switchView, func(v *View) {
			v.SwitchPort.Port.Config.MaxAddresses = 1
		}, nic.MendReconcile, "vmnet reconcile"},
		{"switch port", socketView, func(v *View) {
			v.SwitchPort.Port.Stats = &vport.Stats{State: vport.StateStopped}
		}, nic.MendAdmin, "loop"},
		{"switch", socketView, func(v *View) {
			v.SwitchPort.Port = nil
		}, nic.MendAttach, "the same vmnet attach again"},
		{"settings", socketView, func(v *View) {
			v.SwitchPort.Port.Config = vport.Config{}
		}, nic.MendReconcile, "vmnet reconcile"},

		{"host MAC", plainView, func(v *View) { v.MAC = guestMAC }, nic.MendReconcile, "vmnet reconcile"},
		{"port", plainView, func(v *View) { v.port.Isolated = false }, nic.MendReconcile, "vmnet reconcile"},
		{"", plainView, func(v *View) { v.Carrier, v.OperUp = false, false }, "", ""},
	} {
		v := test.of()
		test.spoil(v)
		got := v.Compare()
		if test.what == "" && len(got) == 0 {
			continue
		}
		if len(got) != 1 || got[0].What != test.what || got[0].By != test.by ||
			!strings.Contains(got[0].Cure, test.cure) {
			t.Errorf("%s: %+v, want one of %s, by %s, with %q", test.what, got, test.what, test.by, test.cure)
			continue
		}
		if mends := got[0].Fix.Kind != NotFixed; mends != (test.by == nic.MendReconcile) ||
			mends && (got[0].Text == "" || got[0].Done == "") {
			t.Errorf("%s is said to be mended by %s: %+v", test.what, test.by, got[0].Remedy)
		}
	}
}

// filters turns VLAN filtering on at the view's bridge.
func (v *View) filters(pvid int) {
	v.Home.Bridge.VLANFiltering, v.Home.Bridge.DefaultPVID = true, pvid
}

// leaveMap has two VLANs of the view's port in no segment.
func (v *View) leaveMap() {
	v.offMap = bridges.Unmapped{Device: "vx-br0", VLANs: []brport.VLANRange{{First: 30, Last: 31}}}
}

// TestAdvice: a NIC that is as recorded may still not work as its guest expects.
func TestAdvice(t *testing.T) {
	for _, test := range []struct {
		of    func() *View
		spoil func(v *View)
		want  string // in the one advice; empty for none
	}{
		{tapView, func(*View) {}, ""},
		{plainView, func(v *View) { v.MTU, v.Home.MTU = 1400, 1400 }, ""},
		{tapView, func(v *View) { v.MTU, v.Home.MTU = 1400, 1400 }, "br0 carries 1400"},
		{tapView, func(v *View) { v.MTU, v.Home.MTU, v.Want.MTU = 1400, 1400, 1400 }, ""},
		{macvtapView, func(v *View) { v.Home.Carrier = false }, "eth0 has no carrier"},
		{switchView, func(v *View) { v.MTU = 1400 }, ""},
		{tapView, func(v *View) { v.offMap.Device = "vx-br0" }, ""},
		{
			tapView, (*View).leaveMap,
			"VLAN 30-31 is not in the map of vx-br0: its frames reach no other host (map it by vmnet bridge create br0 ",
		},
		{
			tapView, func(v *View) { v.leaveMap(); v.Home.Alias = "vmnet network=br0" },
			"(add it to the map in the file of network br0, then vmnet network apply br0)",
		},
	} {
		v := test.of()
		test.spoil(v)
		got := strings.Join(v.Advice(), "; ")
		if (got == "") != (test.want == "") || !strings.Contains(got, test.want) {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
}

// TestPropertiesInOrder: a port gets its settings before it goes up, so that it never passes frames
// that it should drop.
func TestPropertiesInOrder(t *testing.T) {
	at := map[string]int{}
	for i, p := range properties {
		at[p.name] = i
	}
	for _, pair := range [][2]string{
		{"detach", "lifetime"},
		{"MTU", "IPv6 of the host"},
		{"host MAC", "bridge"},
		{"bridge", "port"},
		{"port", "link"},
		{"link", "port state"},
	} {
		if at[pair[0]] >= at[pair[1]] {
			t.Errorf("%s comes after %s", pair[0], pair[1])
		}
	}
	if properties[0].name != "detach" {
		t.Errorf("of a NIC that is cut off, %s is compared", properties[0].name)
	}
}
