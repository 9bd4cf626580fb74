package guest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"vmnet/qmp"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// ErrNotArrived is returned for a guest that is still to come from another QEMU.
var ErrNotArrived = errors.New("the guest has not arrived by its migration")

// IsHere returns an error unless the guest runs in this QEMU, or would if it were continued. It
// matches ErrNotArrived while QEMU waits for the guest's migration; if wait is set, IsHere waits
// for that.
func (g *Guest) IsHere(ctx context.Context, wait bool) error {
	if g.Monitor == nil {
		return g.Domain.isHere(ctx, wait)
	}
	ask := g.Monitor.conn.RunState
	if wait {
		ask = g.Monitor.conn.AwaitArrival
	}
	state, err := ask(ctx)
	if err != nil {
		return err
	}
	return isHere(state)
}

// isHere decides by a machine's state.
func isHere(state qmp.RunState) error {
	switch state {
	case qmp.StateIncoming:
		return ErrNotArrived
	case qmp.StateLeaving, qmp.StateLeft:
		return fmt.Errorf("%w: it has moved to another QEMU, and its state here is %s", nic.ErrOtherGuest, state)
	}
	return nil
}

// Idle returns the guest as it is to be unplugged: if no guest runs in the machine yet, which could
// answer, the machine is reset to complete that. dead reports that a guest is there, and does not
// run: it cannot answer, and the machine must not be reset.
func (g *Guest) Idle(ctx context.Context) (idle *Guest, dead bool, err error) {
	if g.Monitor == nil {
		return g, false, nil
	}
	state, err := g.Monitor.conn.RunState(ctx)
	if err != nil {
		return nil, false, err
	}
	switch {
	case isIdle(state):
		without := *g
		without.Unplugger = resetter{g.Monitor}
		return &without, false, nil
	case state == qmp.StateRunning:
		return g, false, nil
	}
	return g, true, nil
}

// resetter unplugs NICs of a machine in which no guest runs yet.
type resetter struct{ *Monitor }

// UnplugText describes Unplug.
func (r resetter) UnplugText(nicID string) string {
	return fmt.Sprintf("device_del %s; system_reset, since no guest answers yet; netdev_del %s",
		nic.DeviceID(nicID), qmp.NetdevID(nic.DeviceID(nicID)))
}

// Unplug removes the device and the netdev.
func (r resetter) Unplug(ctx context.Context, nicID string, waiting func(time.Duration)) error {
	return r.conn.UnplugByReset(ctx, nic.DeviceID(nicID), r.found.process.EndsOnReset(), waiting)
}

// undoByReset has the step that plugs a prepared NIC undone by a reset, if no guest runs by then
// that could release the device.
func (m *Monitor) undoByReset(steps []step.Step, nicID string) {
	for i, s := range steps {
		if s.Undo == nil || !strings.HasPrefix(s.Name, "device_add ") {
			continue
		}
		steps[i].Undo = func(ctx context.Context) error {
			asking, cancel := context.WithTimeout(ctx, Wait)
			defer cancel()
			state, err := m.conn.RunState(asking)
			if err != nil || !isIdle(state) {
				return s.Undo(ctx)
			}
			return resetter{m}.Unplug(ctx, nicID, nil)
		}
	}
}

// isIdle reports whether no guest runs in the machine yet.
func isIdle(state qmp.RunState) bool {
	return state == qmp.StateIncoming || state == qmp.StateUnstarted
}
