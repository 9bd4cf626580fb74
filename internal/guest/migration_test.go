package guest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"vmnet/internal/backend"
	"vmnet/internal/nstest"
	"vmnet/internal/vmm/qmptest"
	"vmnet/libvirt/libvirttest/fakelibvirt"
	"vmnet/qmp"
	"vmnet/tapmgr/nic"
)

// TestIsHere: a guest's NICs go up where it is, whether it runs or is paused there, and nowhere
// else.
func TestIsHere(t *testing.T) {
	for state, want := range map[qmp.RunState]error{
		qmp.StateRunning:   nil,
		qmp.StatePaused:    nil,
		qmp.StateUnstarted: nil,
		"suspended":        nil,
		qmp.StateIncoming:  ErrNotArrived,
		qmp.StateLeaving:   nic.ErrOtherGuest,
		qmp.StateLeft:      nic.ErrOtherGuest,
	} {
		if err := isHere(state); !errors.Is(err, want) || (err == nil) != (want == nil) {
			t.Errorf("%s: %v, want %v", state, err, want)
		}
	}
}

// TestUnplugOfAnIdleMachine: who unplugs a NIC follows from the machine's state: the guest, or a
// reset while none runs, or nobody that answers.
func TestUnplugOfAnIdleMachine(t *testing.T) {
	t.Parallel()
	for state, tc := range map[string]struct {
		text string
		dead bool
	}{
		"inmigrate":   {"system_reset", false},
		"prelaunch":   {"system_reset", false},
		"running":     {"until the guest releases it", false},
		"paused":      {"until the guest releases it", true},
		"postmigrate": {"until the guest releases it", true},
	} {
		t.Run(state, func(t *testing.T) {
			t.Parallel()
			m := newMonitored(t, 1)
			if err := m.plug(t, m.nic(t, asItIs), ""); err != nil {
				t.Fatal(err)
			}
			m.q.Behave(qmptest.Behaviour{State: state})
			idle, dead, err := m.Idle(within(t))
			if err != nil || dead != tc.dead || !strings.Contains(idle.UnplugText("net0"), tc.text) {
				t.Fatalf("dead %v, %v", dead, err)
			}
			if err := idle.Unplug(within(t), "net0", nil); err != nil {
				t.Error(err)
			}
			m.has(t, "unplugged", 0, 0, 0)
			if asked := m.q.State().Asked; slices.Contains(asked, "system_reset") != (tc.text == "system_reset") {
				t.Errorf("asked %q", asked)
			}
		})
	}
}

// TestUndoOfAPreparedNIC: a device that no guest runs to release is taken away by a reset, and if
// one does run, by that.
func TestUndoOfAPreparedNIC(t *testing.T) {
	t.Parallel()
	for state, resets := range map[string]bool{"inmigrate": true, "running": false} {
		m := newMonitored(t, 1)
		m.q.Behave(qmptest.Behaviour{State: state})
		prepared := m.nic(t, func(n *backend.NIC) { n.Record.Prepared = true })
		if err := m.plug(t, prepared, "close"); !errors.Is(err, errBroken) {
			t.Errorf("%s: %v", state, err)
		}
		m.has(t, state, 0, 0, 0)
		if asked := m.q.State().Asked; slices.Contains(asked, "system_reset") != resets {
			t.Errorf("%s: asked %q", state, asked)
		}
	}
}

// TestWaitForAGuest that is to come: until QEMU runs it, or the caller does not wait any longer.
func TestWaitForAGuest(t *testing.T) {
	t.Parallel()
	m := newMonitored(t, 1)
	m.q.Behave(qmptest.Behaviour{State: "inmigrate"})
	if err := m.IsHere(within(t), false); !errors.Is(err, ErrNotArrived) {
		t.Errorf("on its way: %v", err)
	}
	arrived := make(chan error, 1)
	go func() { arrived <- m.IsHere(within(t), true) }()
	nstest.Eventually(t, 20*time.Second, "QEMU is asked again", func() bool {
		return slices.Contains(m.q.State().Asked, "query-migrate")
	})
	m.q.Behave(qmptest.Behaviour{State: "running"})
	if err := <-arrived; err != nil {
		t.Errorf("arrived: %v", err)
	}
	m.q.Behave(qmptest.Behaviour{Refuse: map[string]string{"query-status": "no"}})
	if err := m.IsHere(within(t), false); err == nil || errors.Is(err, ErrNotArrived) {
		t.Errorf("refused: %v", err)
	}
	if _, _, err := m.Idle(within(t)); err == nil {
		t.Error("refused: the guest is idle")
	}

	f := newDomain(t)
	g, _ := f.open()
	f.Behave(fakelibvirt.Behaviour{Incoming: true})
	for _, wait := range []bool{false, true} { // without the caller's patience
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		err := g.IsHere(ctx, wait)
		cancel()
		if !errors.Is(err, ErrNotArrived) {
			t.Errorf("of libvirt, on its way: %v", err)
		}
	}
	f.Arrive()
	if err := g.IsHere(within(t), true); err != nil {
		t.Errorf("of libvirt: %v", err)
	}
	if idle, dead, err := g.Idle(within(t)); idle != g || dead || err != nil {
		t.Errorf("of libvirt: %v, %v, %v", idle, dead, err)
	}
}
