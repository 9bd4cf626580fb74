package tapmgr_test

import (
	"testing"
	"time"

	"vmnet/bridge"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
)

// TestLiveDetachedIsNotGone: a guest keeps the label of a NIC that it was started with, also when
// the NIC was detached. When another of its NICs loses its device, that one alone is gone.
func TestLiveDetachedIsNotGone(t *testing.T) {
	h := newHost(t)
	h.wire()
	macvtapOn := func(id string) nic.Spec {
		return nic.Spec{NIC: id, Lower: &nic.Lower{Kind: vtap.Macvtap, Device: "eth0"}, Vhost: nic.VhostOff}
	}
	g, _ := h.launched(testvm.Config{Paused: true}, macvtapOn("net0"), macvtapOn("net1"))
	res, err := h.Detach(h.context(20*time.Second),
		tapmgr.DetachSpec{Target: nic.Target{VM: g.name}, NIC: "net0", Force: true})
	if err != nil || !res.Changed {
		t.Fatalf("detach: %+v, %v", res, err)
	}
	h.ip("link", "del", "eth0")
	nics, err := h.List(g.name)
	if err != nil || len(nics) != 1 || nics[0].ID != "net1" || nics[0].State != nic.Gone {
		t.Errorf("list %+v, %v: want net1 alone, gone", nics, err)
	}
	if diff := h.check(); len(diff) != 1 || diff[0].NIC != "net1" {
		t.Errorf("check %+v", diff)
	}
}

// TestLiveLabelFollowsASet: a NIC that has lost its device, or its switch, after a change is known
// as it was then, by the label in place of one that QEMU was given or started with.
func TestLiveLabelFollowsASet(t *testing.T) {
	h := newHost(t)
	h.bridge(bridge.Config{Name: "br1"})
	s := h.runSwitch()
	g, _ := h.launched(testvm.Config{Paused: true}, nic.Spec{NIC: "net0", Bridge: "br0", Vhost: nic.VhostOff})
	attached, socket := g.spec("net1"), s.on(g, "net2", nic.BySocket)
	h.attach(attached)
	h.attach(socket)
	for _, id := range []string{"net0", "net1", "net2"} {
		edit := func(s *nic.Spec) {
			if s.Port.Isolated = true; s.Switch == nil {
				s.Bridge = "br1"
			}
		}
		if _, err := h.setNIC(g, id, edit); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range h.three(g) {
		if n.Type == nic.TypeTap {
			h.ip("link", "del", n.Interface)
		}
	}
	s.kill()
	s.start()
	s.asksAgain()
	for _, n := range h.three(g) {
		want := nic.NIC{Source: "br1", State: nic.Gone}
		if n.Type == nic.TypeSocket {
			want = nic.NIC{Source: s.path, State: nic.NoSwitch}
		}
		if n.Source != want.Source || n.State != want.State || n.Port != "isolated" {
			t.Errorf("%+v", n)
		}
	}
}

func (h *host) three(g *guest) []nic.NIC {
	h.Helper()
	nics, err := h.List(g.name)
	if err != nil || len(nics) != 3 {
		h.Fatalf("list %+v, %v: want three", nics, err)
	}
	return nics
}
