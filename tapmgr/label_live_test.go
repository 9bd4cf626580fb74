package tapmgr_test

import (
	"testing"
	"time"

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
