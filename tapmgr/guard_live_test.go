package tapmgr_test

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/qmp"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
)

// TestLiveUnseenHolderIsNoLeftOver reconciles in a pid namespace that does not show the QEMU.
func TestLiveUnseenHolderIsNoLeftOver(t *testing.T) {
	h := newHost(t)
	g := h.empty()
	nic := h.attach(g.spec("net0"))
	cmd := h.command(order{Reconcile: true})
	cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWPID | syscall.CLONE_NEWNS
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "cannot be seen from here") {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := h.nl.Link(nic.Interface); err != nil {
		t.Errorf("the tap of a living QEMU: %v", err)
	}
	if got := h.check(); len(got) != 0 {
		t.Errorf("check: %+v", got)
	}
}

func TestLiveReconcileWhileQEMUDies(t *testing.T) {
	h := newHost(t)
	for range 3 {
		g := h.empty()
		for _, nic := range []string{"net0", "net1", "net2", "net3"} {
			h.attach(g.spec(nic))
		}
		if err := g.Kill(); err != nil {
			t.Fatal(err)
		}
		h.settled()
	}
}

func TestLiveTwoGuestsOfOneName(t *testing.T) {
	h, elsewhere := newHost(t), newHost(t)
	a := h.empty()
	b := &guest{testvm.StartT(t, testvm.Config{Name: a.name, Paused: true}), a.name}
	specA, specB := a.spec("net0"), b.spec("net0")
	specA.PID, specB.PID = a.Pid(), b.Pid()
	found := h.attach(specA)
	elsewhere.attach(specB)

	if _, err := h.Attach(h.context(10*time.Second), specB); !errors.Is(err, nic.ErrExist) ||
		!strings.Contains(err.Error(), "another process") {
		t.Errorf("attach to the other: got %v", err)
	}
	_, err := h.Detach(h.context(10*time.Second), tapmgr.DetachSpec{Target: specB.Target, NIC: "net0", Force: true})
	if !errors.Is(err, nic.ErrInUse) {
		t.Errorf("detach from the other: got %v", err)
	}
	if l, err := h.nl.Link(found.Interface); err != nil || !l.Up || l.Master == 0 {
		t.Errorf("the first one's NIC: %+v, %v: want it untouched", l, err)
	}
	if got := h.check(); len(got) != 0 {
		t.Errorf("check: %+v", got)
	}
}

func TestLiveForceNeedsNoMonitor(t *testing.T) {
	h := newHost(t)
	g := h.empty()
	nic := h.attach(g.spec("net0"))
	if err := g.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	_, err := h.tryDetach(g, time.Second, true)
	if !errors.Is(err, qmp.ErrBusy) || !strings.Contains(err.Error(), "is cut off") {
		t.Errorf("got %v, want an error that says that it is cut off", err)
	}
	if l, err := h.nl.Link(nic.Interface); err != nil || l.Up || l.Master != 0 {
		t.Errorf("%+v, %v: want it down and on no bridge", l, err)
	}
	if err := g.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if _, err := h.tryDetach(g, 10*time.Second, true); err != nil {
		t.Error(err)
	}
	h.gone(nic.Interface)
}

// TestLiveWhatWentThroughAnotherMonitor crashes an attach over a guest's first monitor; reconcile
// uses the last.
func TestLiveWhatWentThroughAnotherMonitor(t *testing.T) {
	h := newHost(t)
	second := h.TempDir() + "/second"
	g := h.booted(testvm.Config{Paused: true, ExtraArgs: []string{"-qmp", "unix:" + second + ",server=on,wait=off"}})
	spec := g.twoQueues("net0")
	spec.QMP = g.QMP // the first
	cmd := h.command(order{Spec: spec, KillAt: "getfd vmnet-net0-q1", After: true})
	if err := cmd.Run(); err == nil {
		t.Fatal("it was not killed")
	}
	h.settled()
	h.nothingLeft(g, "net0")
}

func TestLiveAttachAgainPutsRight(t *testing.T) {
	h := newHost(t)
	g := h.empty()
	cmd := h.command(order{Spec: g.spec("net0"), KillAt: "device_add vmnet-net0", After: true})
	if err := cmd.Run(); err == nil {
		t.Fatal("it was not killed")
	}
	if res, err := h.Attach(h.context(10*time.Second), g.spec("net0")); err != nil || !res.Changed {
		t.Errorf("after a crash: %+v, %v: want it put right", res, err)
	}
	h.ip("link", "set", mustName(g), "nomaster")
	if res, err := h.Attach(h.context(10*time.Second), g.spec("net0")); err != nil || !res.Changed ||
		res.NIC.State != "forwarding" {
		t.Errorf("without a master: %+v, %v: want it put back", res, err)
	}
	if got := h.check(); len(got) != 0 {
		t.Errorf("check: %+v", got)
	}
	h.ip("link", "add", "br1", "type", "bridge")
	h.ip("link", "set", mustName(g), "master", "br1")
	if _, err := h.Attach(h.context(10*time.Second), g.spec("net0")); !errors.Is(err, nic.ErrExist) ||
		!strings.Contains(err.Error(), "port of br1") {
		t.Errorf("on another bridge: got %v", err)
	}
	if list, err := h.List(g.name); err != nil || list[0].State != nic.OtherBridge {
		t.Errorf("list %+v, %v", list, err)
	}
}

// TestLiveMigrationRefusesTheUnplug: QEMU itself does not pass it on, so the guest
// cannot release the device later.
func TestLiveMigrationRefusesTheUnplug(t *testing.T) {
	h := newHost(t)
	g := h.booted(testvm.Config{})
	nic := h.attach(g.spec("net0"))
	h.reach(g, nic, guestAddr)
	ctx := h.context(30 * time.Second)
	c, err := qmp.Dial(ctx, g.QMP)
	if err != nil {
		t.Fatal(err)
	}
	// Into a pipe that nobody reads, a migration never ends.
	err = errors.Join(
		c.Execute(ctx, "migrate-set-parameters", map[string]any{"max-bandwidth": 1}, nil),
		c.Execute(ctx, "migrate", map[string]any{"uri": "exec:sleep 60"}, nil), c.Close())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.tryDetach(g, 10*time.Second, false); err == nil || !strings.Contains(err.Error(), "migrat") {
		t.Errorf("got %v, want QEMU's refusal", err)
	}
	if list, err := h.List(g.name); err != nil || list[0].State != "forwarding" {
		t.Errorf("list %+v, %v: want it as before", list, err)
	}
	h.ping(g)
}

func TestLiveTheLastWordOfAReconcileThatCouldNotLook(t *testing.T) {
	h := newHost(t)
	g := h.empty()
	h.attach(g.spec("net0"))
	c, err := qmp.Dial(h.context(20*time.Second), g.QMP)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got, err := h.Reconcile(context.Background(), false)
	if err != nil || len(got) != 1 || got[0].Error == "" {
		t.Errorf("%+v, %v: want an error that says that it was not looked into", got, err)
	}
}
