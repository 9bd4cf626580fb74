package tapmgr_test

import (
	"strings"
	"testing"
	"time"

	"vmnet/tapmgr/nic"
	"vmnet/testvm"
)

// TestLiveDeviceDeleted: NICs whose devices were deleted under their guest are still told of, with what to do, and can
// be detached and replaced.
func TestLiveDeviceDeleted(t *testing.T) {
	h := newHost(t)
	h.wire()
	g := h.booted(testvm.Config{Machine: "q35", SparePorts: 4})
	tap, lower, second := g.spec("net0"), g.lowerSpec("net1", nic.Lower{}), g.lowerSpec("net2", nic.Lower{})
	found := h.attach(tap)
	h.attach(lower)
	h.attach(second)
	if got := h.check(); len(got) != 0 {
		t.Fatalf("check %+v", got)
	}
	h.ip("link", "del", "eth0")
	h.ip("link", "del", found.Interface)

	nics, err := h.List(g.name)
	if err != nil || len(nics) != 3 {
		t.Fatalf("list %+v, %v", nics, err)
	}
	for i, source := range []string{"br0", "eth0", "eth0"} {
		if n := nics[i]; n.State != nic.Gone || n.Source != source || n.PID != g.Pid() {
			t.Errorf("listed as %+v", n)
		}
	}
	diff := h.check()
	if len(diff) != 3 || diff[1].MendedBy != nic.MendAttach || !strings.Contains(diff[1].Found, "parent device") || !strings.Contains(diff[1].Mend, "vmnet detach --vm "+g.name+" --nic net1") {
		t.Errorf("check %+v", diff)
	}
	details, err := h.Show(h.context(20*time.Second), g.name)
	if err != nil || len(details) != 3 || details[1].State != nic.Gone || details[1].Guest == nil || !details[1].Guest.Plugged {
		t.Errorf("show %+v, %v", details, err)
	}
	actions, err := h.Reconcile(h.context(20*time.Second), false)
	if err != nil || len(actions) != 3 || actions[0].Changed || !strings.Contains(actions[0].Action, "left alone: device on the host") {
		t.Errorf("reconcile %+v, %v", actions, err)
	}

	h.detach(g, "net1")
	h.nothingLeft(g, "net1")
	res, err := h.Attach(h.context(60*time.Second), tap)
	if err != nil || !res.Changed || res.NIC.State != "forwarding" {
		t.Errorf("the same attach again: %+v, %v", res, err)
	}
	h.reach(g, res.NIC, guestAddr)
	if nics, err = h.List(g.name); err != nil || len(nics) != 2 || nics[0].State != "forwarding" || nics[1].State != nic.Gone {
		t.Errorf("list %+v, %v", nics, err)
	}
	if _, err := h.tryDetach(g, 20*time.Second, true); err != nil { // net0 only
		t.Errorf("forced: %v", err)
	}
	h.detach(g, "net2")
	if got := h.check(); len(got) != 0 {
		t.Errorf("check %+v", got)
	}
}
