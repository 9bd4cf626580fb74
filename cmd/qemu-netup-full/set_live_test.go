package main

import (
	"testing"
	"time"

	"vmnet/tapmgr/nic"
)

// TestLiveSet changes the NIC of a QEMU that a user has started by qemu-netup: it moves, its link
// goes down and comes back, and it stays the user's.
func TestLiveSet(t *testing.T) {
	h := newHost(t)
	h.policy("{users: [65534], bridges: [br0]}")
	h.start(h.command(h.program,
		"--qmp", h.path("run/M2.qmp"), "--vhost", "off", "--bridge", "br0", "--", qemuProgram, "-name", "guest=M2",
		"-S", "-nodefaults", "-machine", "pc,accel=tcg", "-m", "32", "-display", "none"))
	h.await("QEMU's monitor", func() error { return listens(h.path("run/M2.qmp")) })
	was := h.nicOf("M2")
	index := h.linkOf(was.Interface)
	set := func(edit func(*nic.Spec)) nic.NIC {
		t.Helper()
		res, err := h.Set(h.context(20*time.Second), nic.Target{VM: "M2", PID: was.PID}, "net0",
			func(s nic.Spec) (nic.Spec, error) { edit(&s); return s, nil })
		if err != nil || !res.Changed {
			t.Fatalf("%+v, %v", res, err)
		}
		h.asItShouldBe()
		return res.NIC
	}
	now := set(func(s *nic.Spec) { s.Bridge, s.Port.Isolated, s.LinkDown = "br1", true, true })
	if br, _ := h.port(now.Interface); br != "br1" || now.Port != "isolated" || now.UID != nobody {
		t.Errorf("on %s: %+v", br, now)
	}
	now = set(func(s *nic.Spec) { s.Bridge, s.Port.Isolated, s.LinkDown = "br0", false, false })
	if now.State != was.State || now.MAC != was.MAC || h.linkOf(now.Interface) != index {
		t.Errorf("it was %+v, and is %+v", was, now)
	}
}

// linkOf returns the index of a link.
func (h *host) linkOf(name string) int {
	h.Helper()
	l, err := h.nl.Link(name)
	if err != nil {
		h.Fatal(err)
	}
	return l.Index
}
