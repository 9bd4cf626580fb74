package tapmgr_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	ofguest "vmnet/internal/guest"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/nstest"
	"vmnet/libvirt/libvirttest/fakelibvirt"
	"vmnet/step"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

// incomingDomain is a libvirt guest that is still to come, whose NIC net0 is as libvirt's hook
// prepares it.
func incomingDomain(t *testing.T) (*host, *fakeDomain, string) {
	t.Helper()
	h, g := libvirtTest(t)
	device := h.attach(g.spec("net0")).Interface
	g.Behave(fakelibvirt.Behaviour{Incoming: true})
	g.rewrite(device, func(r *nic.Record) { r.Prepared = true }, rtnl.Up(false))
	g.isPrepared("as the hook makes it", device)
	return h, g, device
}

// rewrite changes the record of a NIC, and settings of its link.
func (g *fakeDomain) rewrite(device string, change func(*nic.Record), attrs ...rtnl.Attr) {
	g.h.Helper()
	l, err := g.h.nl.Link(device)
	if err != nil {
		g.h.Fatal(err)
	}
	r, _ := nic.ParseRecord(l.Alias)
	change(&r)
	text, err := r.Encode()
	if err == nil {
		err = g.h.nl.Set(l.Index, append(attrs, rtnl.Alias(text))...)
	}
	if err != nil {
		g.h.Fatal(err)
	}
}

// is compares a NIC with the wanted state, and whether it is up.
func (g *fakeDomain) is(what, device string, state nic.State, up bool) {
	g.h.Helper()
	list, err := g.h.List(g.Name)
	l, linkErr := g.h.nl.Link(device)
	if err != nil || linkErr != nil || len(list) != 1 || list[0].State != state || l.Up != up {
		g.h.Errorf("%s: %+v, %v, link %+v, %v", what, list, err, l, linkErr)
	}
	g.has(what, 1, 0)
}

func (g *fakeDomain) isPrepared(what, device string) {
	g.h.Helper()
	g.is(what, device, nic.Prepared, false)
}

func (g *fakeDomain) tryCommit(wait bool) ([]nic.ChangeResult, error) {
	g.h.Helper()
	return g.h.Commit(g.h.context(20*time.Second), nic.Target{VM: g.Name}, "", wait)
}

// commits has a commit wait for the guest, until do has been called.
func (g *fakeDomain) commits(do func()) ([]nic.ChangeResult, error) {
	g.h.Helper()
	type outcome struct {
		done []nic.ChangeResult
		err  error
	}
	waits, committed := make(chan struct{}), make(chan outcome, 1)
	g.h.Progress = func(_ tapmgr.ProgressKind, text string) {
		if strings.Contains(text, "has arrived") {
			close(waits)
		}
	}
	defer func() { g.h.Progress = nil }()
	go func() {
		done, err := g.h.Commit(g.h.context(60*time.Second), nic.Target{VM: g.Name}, "", true)
		committed <- outcome{done, err}
	}()
	select {
	case <-waits:
		do()
	case o := <-committed:
		g.h.Errorf("it does not wait: %+v, %v", o.done, o.err)
		return o.done, o.err
	}
	o := <-committed
	return o.done, o.err
}

// TestLibvirtCommit: until libvirt has brought the guest, its NIC stays as it is, and a commit that
// waits leaves the guest's lock to others.
func TestLibvirtCommit(t *testing.T) {
	h, g, device := incomingDomain(t)
	target := nic.Target{VM: g.Name}
	if err := h.Arrived(h.context(20*time.Second), target); !errors.Is(err, ofguest.ErrNotArrived) {
		t.Errorf("on its way: %v", err)
	}
	if _, err := g.tryCommit(false); !errors.Is(err, ofguest.ErrNotArrived) ||
		!strings.Contains(err.Error(), "virsh domjobabort") {
		t.Errorf("commit: %v", err)
	}
	abort := func(what string) {
		_, _, err := h.Abort(h.context(20*time.Second), target, "")
		if !errors.Is(err, ofguest.ErrNotArrived) || !strings.Contains(err.Error(), "virsh domjobabort") {
			t.Errorf("abort%s: %v", what, err)
		}
	}
	abort("")
	if _, err := h.Prepare(h.context(20*time.Second), prepared(g.spec("net1"))); !errors.Is(err, nic.ErrInvalid) ||
		!strings.Contains(err.Error(), "its hook prepares") {
		t.Errorf("prepare: %v", err)
	}
	if got := h.check(); len(got) > 0 {
		t.Errorf("check finds %+v", got)
	}
	h.reconciled()
	g.isPrepared("refused", device)
	done, err := g.commits(func() {
		abort(" while a commit waits")
		g.isPrepared("on its way", device)
		g.Arrive()
	})
	if err != nil || len(done) != 1 || !done[0].Changed || done[0].NIC.State != "forwarding" {
		t.Errorf("commit: %+v, %v", done, err)
	}
	g.is("committed", device, "forwarding", true)
	if done, err := g.tryCommit(true); err != nil || len(done) != 1 || done[0].Changed {
		t.Errorf("commit again: %+v, %v", done, err)
	}
	if removed, _, err := h.Abort(h.context(20*time.Second), target, ""); err != nil || len(removed) != 0 {
		t.Errorf("abort of all that is prepared: %+v, %v", removed, err)
	}
	if asked := g.Asked(); slices.ContainsFunc(asked, func(call string) bool {
		return strings.HasPrefix(call, "DOMAIN_MONITOR_COMMAND")
	}) {
		t.Errorf("the domain is tainted by %q", asked)
	}
}

// TestLibvirtCommitFindsOthers: what others have done to a NIC while a commit has waited stays.
func TestLibvirtCommitFindsOthers(t *testing.T) {
	for name, test := range map[string]struct {
		change  func(*nic.Record)
		up      bool
		changed bool
	}{
		"committed":  {func(r *nic.Record) { r.Prepared = false }, true, false},
		"other port": {func(r *nic.Record) { r.Port = "isolated" }, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			h, g, device := incomingDomain(t)
			done, err := g.commits(func() {
				g.rewrite(device, test.change, rtnl.Up(test.up))
				g.Arrive()
			})
			if err != nil || len(done) != 1 || done[0].Changed != test.changed {
				t.Errorf("commit: %+v, %v", done, err)
			}
			g.is("committed", device, "forwarding", true)
			var want nic.Record
			test.change(&want)
			if l, err := h.nl.Link(device); err != nil {
				t.Error(err)
			} else if r, _ := nic.ParseRecord(l.Alias); r.Port != want.Port || r.Phase != nic.PhasePlugged {
				t.Errorf("its record is %+v", r)
			}
			if got := h.check(); len(got) > 0 {
				t.Errorf("check finds %+v", got)
			}
		})
	}
}

// TestLibvirtGuestThatDoesNotArrive: a commit ends with its guest, and with libvirt.
func TestLibvirtGuestThatDoesNotArrive(t *testing.T) {
	t.Run("its QEMU ends", func(t *testing.T) {
		h, g, device := incomingDomain(t)
		if done, err := g.commits(g.Kill); err == nil {
			t.Errorf("commit: %+v", done)
		}
		h.gone(device)
	})
	t.Run("libvirt restarts", func(t *testing.T) {
		_, g, device := incomingDomain(t)
		if done, err := g.commits(g.Disconnect); err == nil {
			t.Errorf("commit: %+v", done)
		}
		g.isPrepared("its guest may still come", device)
		g.Arrive()
		if _, err := g.tryCommit(true); err != nil {
			t.Error(err)
		}
		g.is("committed", device, "forwarding", true)
	})
}

// stepsOfCommit returns the names of a commit's steps.
func (g *fakeDomain) stepsOfCommit() (names []string) {
	g.h.Helper()
	g.h.Run = func(_ context.Context, steps []step.Step) error {
		for _, s := range steps {
			names = append(names, s.Name)
		}
		return nil
	}
	defer func() { g.h.Run = nil }()
	if done, err := g.tryCommit(false); err != nil || len(done) != 1 || len(names) == 0 {
		g.h.Fatalf("steps %q: %+v, %v", names, done, err)
	}
	return names
}

// TestLibvirtCommitKilledAtEachStep: a commit that is killed is completed by reconcile, and by the
// same commit.
func TestLibvirtCommitKilledAtEachStep(t *testing.T) {
	h, g, device := incomingDomain(t)
	g.Arrive()
	for i, name := range g.stepsOfCommit() {
		o := order{Spec: g.spec("net0"), Libvirt: g.Socket, Commit: true, KillAt: name, After: true}
		if out, err := h.command(o).CombinedOutput(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("the commit that is to be killed at %s: %v: %s", name, err, out)
		}
		if list, err := h.List(g.Name); name != "verify" && (err != nil || list[0].State != nic.Changing) {
			t.Errorf("killed after %s: %+v, %v", name, list, err)
		}
		if i%2 == 0 {
			h.settled()
		} else if _, err := g.tryCommit(true); err != nil {
			t.Errorf("killed after %s: %v", name, err)
		}
		g.is("killed after "+name, device, "forwarding", true)
		g.rewrite(device, func(r *nic.Record) { r.Prepared = true }, rtnl.Up(false))
	}
}

// TestLibvirtCommitFaultAtEachStep: whatever step of a commit fails, the NIC is prepared as before.
func TestLibvirtCommitFaultAtEachStep(t *testing.T) {
	h, g, device := incomingDomain(t)
	g.Arrive()
	h.faultAtEach(g.stepsOfCommit(), func() { g.isPrepared("broken", device) }, func() error {
		_, err := g.tryCommit(false)
		return err
	})
	h.Run = nil
	removed, _, err := h.Abort(h.context(20*time.Second), nic.Target{VM: g.Name}, "")
	if err != nil || len(removed) != 1 {
		t.Errorf("abort once the guest is there: %+v, %v", removed, err)
	}
	g.nothingLeft()
	nstest.Eventually(t, 20*time.Second, "its guest is asked to release it", func() bool {
		return slices.Contains(g.Asked(), "DOMAIN_DETACH_DEVICE_ALIAS")
	})
}
