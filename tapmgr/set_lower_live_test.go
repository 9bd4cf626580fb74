package tapmgr_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"vmnet/internal/kernel/macvlan"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr/nic"
)

// TestLiveSetMacvtap changes what the kernel can change of a macvtap.
func TestLiveSetMacvtap(t *testing.T) {
	h := newHost(t)
	h.wire()
	g := h.empty()
	spec := g.spec("net0")
	spec.Bridge, spec.Lower = "", &nic.Lower{Kind: vtap.Macvtap, Device: "eth0", Mode: "vepa"}
	h.attach(spec)
	if res, err := h.set(g, func(s *nic.Spec) { s.Lower.Mode = "private" }); err != nil || res.NIC.Mode != "private" {
		t.Errorf("private: %+v, %v", res, err)
	}
	if _, err := h.set(g, func(s *nic.Spec) { s.Lower.Mode = "vepa" }); err != nil {
		t.Fatal(err)
	}
	names := h.try(g, trial{
		there: func(s *nic.Spec) { s.Lower.Mode, s.Lower.RxFilter, s.LinkDown = "bridge", nic.RxNone, true },
		back:  func(s *nic.Spec) { s.Lower.Mode, s.Lower.RxFilter, s.LinkDown = "vepa", nic.RxAllMulti, false },
		seat: func() string {
			all, err := h.List(g.name)
			if err != nil || len(all) != 1 {
				t.Fatal(all, err)
			}
			return all[0].Mode + " " + string(all[0].State)
		},
		then: "bridge down", before: "vepa up",
	})
	for _, want := range []string{"record", "set_link", "mode", "rx filter", "link", "verify"} {
		if !slices.Contains(names, want) {
			t.Errorf("steps %q lack %q", names, want)
		}
	}
	if res, err := h.set(g, func(s *nic.Spec) { s.LinkDown = true }); err != nil || res.NIC.State != nic.Down {
		t.Errorf("link down: %+v, %v", res, err)
	}
	if _, err := h.set(g, func(s *nic.Spec) { s.LinkDown = false }); err != nil {
		t.Error(err)
	}
	_, err := h.set(g, func(s *nic.Spec) { s.Lower.Mode = "passthru" })
	if err == nil || !strings.Contains(err.Error(), "vmnet detach") {
		t.Errorf("passthru: %v", err)
	}
	h.ip("link", "add", "eth1", "type", "veth", "peer", "name", "lan1")
	_, err = h.set(g, func(s *nic.Spec) { s.Lower.Device = "eth1" })
	if !errors.Is(err, nic.ErrInvalid) || !strings.Contains(err.Error(), "--macvtap cannot change from eth0 to eth1 "+
		"while the NIC is plugged: the kernel ties a macvtap to its parent device for good "+
		"(vmnet detach --vm "+g.name) {
		t.Errorf("another parent device: %v", err)
	}
	if got := h.listedOne(g).Source; got != "eth0" {
		t.Errorf("it is on %s", got)
	}
	if got := h.check(); len(got) != 0 {
		t.Errorf("check finds %+v", got)
	}
}

// TestLiveMacvlanStaysOnItsParent: the kernel takes a request for another parent device, and does
// not heed it. If it ever does, a set can change the parent device.
func TestLiveMacvlanStaysOnItsParent(t *testing.T) {
	h := newHost(t)
	h.ip("link", "add", "eth0", "type", "veth", "peer", "name", "lan0")
	h.ip("link", "add", "eth1", "type", "veth", "peer", "name", "lan1")
	h.ip("link", "add", "m0", "link", "eth0", "type", "macvlan", "mode", "bridge")
	h.ip("link", "set", "m0", "link", "eth1", "type", "macvlan", "mode", "private")
	if l := h.link("m0"); l.Lower != h.link("eth0").Index || macvlan.ModeName(l) != "private" {
		t.Errorf("m0 is %+v", l)
	}
}
