package tapmgr_test

import (
	"strings"
	"testing"

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
	for _, mode := range []string{"bridge", "private"} {
		res, err := h.set(g, func(s *nic.Spec) { s.Lower.Mode, s.Lower.RxFilter = mode, nic.RxNone })
		if err != nil || res.NIC.Mode != mode {
			t.Errorf("%s: %+v, %v", mode, res, err)
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
	if got := h.check(); len(got) != 0 {
		t.Errorf("check finds %+v", got)
	}
}
