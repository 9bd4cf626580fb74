package tapmgr_test

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"vmnet/bridge/brport"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
)

// TestLiveDeviceDeleted: NICs whose devices were deleted under their guest are still listed, with
// the cure, and can be detached and replaced.
func TestLiveDeviceDeleted(t *testing.T) {
	t.Parallel()
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
	if len(diff) != 3 || diff[1].MendedBy != nic.MendAttach || !strings.Contains(diff[1].Found, "parent device") ||
		!strings.Contains(diff[1].Mend, "vmnet detach --vm "+g.name+" --nic net1") {
		t.Errorf("check %+v", diff)
	}
	details, err := h.Show(h.context(20*time.Second), g.name)
	if err != nil || len(details) != 3 || details[1].State != nic.Gone || details[1].Guest == nil ||
		!details[1].Guest.Plugged {
		t.Errorf("show %+v, %v", details, err)
	}
	actions, err := h.Reconcile(h.context(20*time.Second), false)
	if err != nil || len(actions) != 3 || actions[0].Changed ||
		!strings.Contains(actions[0].Action, "left alone: device on the host") {
		t.Errorf("reconcile %+v, %v", actions, err)
	}

	h.detach(g, "net1")
	h.nothingLeft(g, "net1")
	res, err := h.Attach(h.context(60*time.Second), tap)
	if err != nil || !res.Changed || res.NIC.State != "forwarding" {
		t.Errorf("the same attach again: %+v, %v", res, err)
	}
	h.reach(g, res.NIC, guestAddr)
	if nics, err = h.List(g.name); err != nil || len(nics) != 2 || nics[0].State != "forwarding" ||
		nics[1].State != nic.Gone {
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

// TestLiveLaunchedDeviceDeleted: a tap and a macvtap with which a guest was started are listed as
// well after they were deleted, until the guest releases their devices.
func TestLiveLaunchedDeviceDeleted(t *testing.T) {
	h := newHost(t)
	h.wire()
	h.Host().Owner = 65534 // as for another user, whose QEMU this one would be
	g, l := h.launched(testvm.Config{Paused: true},
		nic.Spec{NIC: "net0", Bridge: "br0", Queues: 2, Vhost: nic.VhostOff, Port: brport.Settings{Isolated: true}},
		nic.Spec{NIC: "net1", Bridge: "br0", Vhost: nic.VhostOff},
		nic.Spec{NIC: "net2", Lower: &nic.Lower{Kind: vtap.Macvtap, Device: "eth0"}, Vhost: nic.VhostOff})
	h.Host().Owner = 0
	h.ip("link", "del", "eth0")
	h.ip("link", "del", l.NICs[0].NIC.Interface)
	nics, err := h.List(g.name)
	if err != nil || len(nics) != 3 {
		t.Fatalf("list %+v, %v", nics, err)
	}
	for i, want := range []nic.State{nic.Gone, "forwarding", nic.Gone} {
		if n := nics[i]; n.State != want || n.PID != g.Pid() || n.Port != l.NICs[i].NIC.Port ||
			n.Source != l.NICs[i].NIC.Source {
			t.Errorf("listed as %+v, want %s", n, want)
		}
	}
	if diff := h.check(); len(diff) != 2 || diff[0].NIC != "net0" || diff[0].MendedBy != nic.MendAttach {
		t.Errorf("check %+v", diff)
	}
}

// TestLiveLibvirtDeviceDeleted: NICs whose devices libvirt has opened by name are listed after
// these were deleted, since libvirt knows what they were. They can be detached and replaced.
func TestLiveLibvirtDeviceDeleted(t *testing.T) {
	h := newLibvirtHost(t)
	h.AskLibvirt()
	h.wire()
	g := h.domain(testvm.Domain{})
	tap, lower := h.spec(g, "net0"), h.spec(g, "net1")
	tap.Port = brport.Settings{Isolated: true}
	lower.Bridge, lower.Lower = "", &nic.Lower{Kind: vtap.Macvtap, Device: "eth0", Mode: "private"}
	first, second := h.attach(tap), h.attach(lower)
	h.ip("link", "del", first.Interface)
	h.ip("link", "del", second.Interface)
	for i, was := range []nic.NIC{first, second} {
		nics, err := h.List(g.Name)
		if err != nil || len(nics) != 2 {
			t.Fatalf("list %+v, %v", nics, err)
		}
		was.State, was.PID = nic.Gone, g.QEMU()
		if !reflect.DeepEqual(nics[i], was) {
			t.Errorf("listed as %+v, want\n%+v", nics[i], was)
		}
	}
	diff := h.check()
	if len(diff) != 2 || diff[0].MendedBy != nic.MendAttach ||
		!strings.Contains(diff[1].Mend, "vmnet detach --vm "+g.Name+" --nic net1") {
		t.Errorf("check %+v", diff)
	}
	details, err := h.Show(h.context(20*time.Second), g.Name)
	if err != nil || len(details) != 2 || details[0].State != nic.Gone || details[0].Guest == nil ||
		!details[0].Guest.Plugged {
		t.Errorf("show %+v, %v", details, err)
	}
	res, err := h.Attach(h.context(40*time.Second), tap)
	if err != nil || !res.Changed || res.NIC.State != "forwarding" || res.NIC.Port != "isolated" {
		t.Errorf("the same attach again: %+v, %v", res, err)
	}
	h.take(g, "net1")
	if nics, err := h.List(g.Name); err != nil || len(nics) != 1 || nics[0].State != "forwarding" {
		t.Errorf("list %+v, %v; its QEMU runs as %d", nics, err, g.QEMU())
	}
}
