package vswitch_test

import (
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/vport"
	"vmnet/testvm/lab"
)

// vlanDevice makes lan0.10, the kernel's device for a VLAN of lan0.
func (h *host) vlanDevice() {
	h.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = "lan0.10", h.link("lan0").Attrs().Index
	if err := h.nl.LinkAdd(&netlink.Vlan{LinkAttrs: attrs, VlanId: 10}); err != nil {
		h.t.Fatal(err)
	}
	if err := h.nl.LinkSetUp(h.link("lan0.10")); err != nil {
		h.t.Fatal(err)
	}
	h.device = "lan0.10"
}

// TestLabVLANDevices tests against the kernel's own VLANs: outside has a VLAN device, and the
// switch either has a trunk on lan0, or a VLAN device as its uplink.
func TestLabVLANDevices(t *testing.T) {
	lab.Inside(t)
	vlan10 := brport.Settings{VLAN: 10}
	for name, c := range map[string]struct {
		device        string
		uplink, guest brport.Settings
	}{
		"trunk":       {"lan0", brport.Settings{Trunk: []brport.VLANRange{{First: 10, Last: 10}}}, vlan10},
		"VLAN device": {"lan0.10", brport.Settings{}, brport.Settings{}},
	} {
		t.Run(name, func(t *testing.T) {
			sw := newSwitch(t)
			guest := tapHost(t, sw, 0, 1, vport.Config{Settings: c.guest})
			socket := socketHost(t, sw, 3, vport.Config{Settings: c.guest})
			outside, middle := newHost(t, 1, "lan0"), newHost(t, 2, "lan0")
			veth(t, outside, middle, "lan0", 1500)
			outside.vlanDevice()
			middle.vlanDevice()
			addPort(t, sw, "up", openPacket(t, middle, c.device), vport.Config{Settings: c.uplink})
			outside.up(1500)
			middle.up(1500)
			for _, h := range []*host{guest, socket} {
				tcp(t, h, outside, 2<<20)
				tcp(t, outside, h, 2<<20)
				udp(t, h, outside, 3000)
			}
			if err := ping(t, guest, outside.v4, 1472); err != nil {
				t.Errorf("a full frame: %v", err)
			}
			for _, addr := range []string{middle.v4, middle.v6} {
				if err := ping(t, guest, addr, 0); err == nil {
					t.Errorf("the host in the middle answers at %s", addr)
				}
			}
		})
	}
}

// TestLabClaimWithoutNFTables runs on a kernel that cannot claim a device.
func TestLabClaimWithoutNFTables(t *testing.T) {
	lab.Inside(t)
	lab.WithoutModule(t, "nft_fwd_netdev") // which a claim needs
	lab.WithoutModule(t, "nf_tables")
	h, other := newHost(t, 0, "lan0"), newHost(t, 1, "lan0")
	veth(t, h, other, "lan0", 1500)
	w, err := vswitch.OpenPacket(h.ns.Path(), "lan0")
	if err == nil {
		t.Fatalf("the device was opened: %v", w.Close())
	}
	if !strings.Contains(err.Error(), "modprobe nf_tables") {
		t.Errorf("%v, want the cure", err)
	}
}
