package tapmgr_test

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	ofguest "vmnet/internal/guest"
	"vmnet/internal/nstest"
	"vmnet/internal/vmm/qmptest"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// incoming is a fake QEMU that waits for its guest.
func incoming(t *testing.T) (*host, *fakeGuest) {
	t.Helper()
	t.Parallel()
	h := newUserHost(t)
	g := h.fake(qmptest.Config{Args: []string{"-incoming", "defer"}})
	g.Behave(qmptest.Behaviour{State: "inmigrate"})
	return h, g
}

func (g *fakeGuest) tryCommit(nicID string, wait bool) ([]nic.ChangeResult, error) {
	g.h.Helper()
	return g.h.Commit(g.h.context(20*time.Second), nic.Target{VM: g.Name}, nicID, wait)
}

func (g *fakeGuest) tryAbort(nicID string) (removed []nic.NIC, notices []string, err error) {
	g.h.Helper()
	return g.h.Abort(g.h.context(20*time.Second), nic.Target{VM: g.Name}, nicID)
}

// isPrepared demands that the guest has a complete NIC whose device is down.
func (g *fakeGuest) isPrepared(what, nicID string) {
	g.h.Helper()
	l := g.tap(nicID)
	if r, ok := nic.ParseRecord(l.Alias); !ok || !r.Prepared || l.Up || g.h.masterOf(l) != "br0" ||
		g.state() != nic.Prepared {
		g.h.Errorf("%s: state %s, %+v", what, g.state(), l)
	}
	g.has(nicID)
}

// TestPrepareAndCommit: a prepared NIC stays down until its guest is there and it is committed, and
// is committed once.
func TestPrepareAndCommit(t *testing.T) {
	h, g := incoming(t)
	target := nic.Target{VM: g.Name}
	if err := h.Arrived(h.context(20*time.Second), target); !errors.Is(err, ofguest.ErrNotArrived) {
		t.Errorf("on its way: %v", err)
	}
	if _, err := g.tryCommit("", false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("commit of no NIC: %v", err)
	}
	if n := h.prepare(prepared(g.spec("net0"))); n.State != nic.Prepared {
		t.Errorf("prepared: %+v", n)
	}
	g.isPrepared("prepared", "net0")
	if res, err := h.Prepare(h.context(20*time.Second), prepared(g.spec("net0"))); err != nil || res.Changed {
		t.Errorf("the same again: %+v, %v", res, err)
	}
	h.reconciled()
	if got := h.check(); len(got) > 0 {
		t.Errorf("check finds %+v", got)
	}
	if _, err := g.tryCommit("net1", false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("commit of another: %v", err)
	}
	if _, err := g.tryCommit("", false); !errors.Is(err, ofguest.ErrNotArrived) ||
		!strings.Contains(err.Error(), "--wait") {
		t.Errorf("commit before the guest is there: %v", err)
	}
	_, err := h.Set(h.context(20*time.Second), target, "net0", func(now nic.Spec) (nic.Spec, error) { return now, nil })
	if !errors.Is(err, nic.ErrInUse) || !strings.Contains(err.Error(), "vmnet commit") {
		t.Errorf("set before the commit: %v", err)
	}
	g.isPrepared("refused", "net0")

	g.Behave(qmptest.Behaviour{})
	if err := h.Arrived(h.context(20*time.Second), target); err != nil {
		t.Errorf("arrived: %v", err)
	}
	done, err := g.tryCommit("", true)
	if err != nil || len(done) != 1 || !done[0].Changed || done[0].NIC.State != "forwarding" {
		t.Errorf("commit: %+v, %v", done, err)
	}
	if l := g.tap("net0"); !l.Up {
		t.Errorf("committed: %+v", l)
	}
	if asked := g.State().Asked; !slices.Contains(asked, "announce-self") {
		t.Errorf("the guest was asked for %q, and did not announce itself", asked)
	}
	if done, err := g.tryCommit("net0", false); err != nil || len(done) != 1 || done[0].Changed {
		t.Errorf("commit again: %+v, %v", done, err)
	}
	if _, _, err := g.tryAbort("net0"); !errors.Is(err, nic.ErrInUse) {
		t.Errorf("abort of what was committed: %v", err)
	}
	if removed, _, err := g.tryAbort(""); err != nil || len(removed) != 0 {
		t.Errorf("abort of all that is prepared: %+v, %v", removed, err)
	}
	g.has("net0")
}

// TestCommitWaits until the guest has arrived, and then raises its NICs at once.
func TestCommitWaits(t *testing.T) {
	h, g := incoming(t)
	h.prepare(prepared(g.spec("net0")))
	committed := make(chan error, 1)
	ctx := h.context(20 * time.Second)
	go func() {
		_, err := h.Commit(ctx, nic.Target{VM: g.Name}, "", true)
		committed <- err
	}()
	nstest.Eventually(t, 20*time.Second, "it waits, and asks for the migration", func() bool {
		return slices.Contains(g.State().Asked, "query-migrate")
	})
	g.isPrepared("on its way", "net0")
	g.Behave(qmptest.Behaviour{})
	if err := <-committed; err != nil {
		t.Error(err)
	}
	if l := g.tap("net0"); !l.Up {
		t.Errorf("committed: %+v", l)
	}
}

// TestCommitFaultAtEachStep: whatever step of a commit fails, the NIC is prepared as before.
func TestCommitFaultAtEachStep(t *testing.T) {
	h, g := incoming(t)
	h.prepare(prepared(g.spec("net0")))
	g.Behave(qmptest.Behaviour{})
	var names []string
	h.Run = func(_ context.Context, steps []step.Step) error {
		for _, s := range steps {
			names = append(names, s.Name)
		}
		return nil
	}
	if done, err := g.tryCommit("", false); err != nil || len(done) != 1 || len(names) == 0 {
		t.Fatalf("steps %q: %+v, %v", names, done, err)
	}
	h.faultAtEach(names, func() { g.isPrepared("broken", "net0") }, func() error {
		_, err := g.tryCommit("", false)
		return err
	})
	if _, err := g.tryCommit("", false); err != nil {
		t.Error(err)
	}
}

// TestAbort: a prepared NIC is removed: before its guest is there by a reset of its machine, and
// then by the guest.
func TestAbort(t *testing.T) {
	for state, resets := range map[string]bool{"inmigrate": true, "running": false, "paused": false} {
		t.Run(state, func(t *testing.T) {
			h, g := incoming(t)
			h.prepare(prepared(g.spec("net0")))
			g.Behave(qmptest.Behaviour{State: state})
			removed, _, err := g.tryAbort("net0")
			if err != nil || len(removed) != 1 || removed[0].ID != "net0" {
				t.Errorf("%+v, %v", removed, err)
			}
			g.nothingLeft()
			if asked := g.State().Asked; slices.Contains(asked, "system_reset") != resets {
				t.Errorf("asked %q", asked)
			}
			if removed, _, err := g.tryAbort("net0"); err != nil || len(removed) != 0 {
				t.Errorf("again: %+v, %v", removed, err)
			}
		})
	}
}

// TestPreparedGuestThatEnds: with its QEMU a prepared NIC goes, and to abort it is success.
func TestPreparedGuestThatEnds(t *testing.T) {
	h, g := incoming(t)
	h.prepare(prepared(g.spec("net0")))
	g.Kill()
	h.gone(g.link("net0"))
	_, notices, err := g.tryAbort("")
	if err != nil || len(notices) != 1 || !strings.Contains(notices[0], "no guest") {
		t.Errorf("abort: %q, %v", notices, err)
	}
	if _, err := g.tryCommit("", false); err == nil {
		t.Error("commit of a guest that has ended is success")
	}
	for what, target := range map[string]nic.Target{"no name": {}, "of a bad name": {VM: "a b\n"}} {
		if _, err := h.Commit(h.context(20*time.Second), target, "", false); !errors.Is(err, nic.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestPreparedTwice: where two QEMUs of one name hold prepared NICs, the user must say which.
func TestPreparedTwice(t *testing.T) {
	h, g := incoming(t)
	other := &fakeGuest{qmptest.Start(h, qmptest.Config{Name: g.Name}), h}
	other.Behave(qmptest.Behaviour{State: "inmigrate"})
	for id, guest := range map[string]*fakeGuest{"net0": g, "net1": other} {
		spec := prepared(guest.spec(id))
		spec.PID, spec.MAC[5] = guest.PID, id[3]
		h.prepare(spec)
	}
	if _, err := g.tryCommit("", false); err == nil || !strings.Contains(err.Error(), "--pid") {
		t.Errorf("commit: %v", err)
	}
	other.Behave(qmptest.Behaviour{})
	done, err := h.Commit(h.context(20*time.Second), nic.Target{VM: g.Name, PID: other.PID}, "", false)
	if err != nil || len(done) != 1 || done[0].NIC.ID != "net1" {
		t.Errorf("of one of them: %+v, %v", done, err)
	}
}
