package qmp

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// RunState is the state of a machine (RunState in qapi/run-state.json).
type RunState string

// States of a guest that moves from one QEMU to another.
const (
	StateRunning   RunState = "running"
	StatePaused    RunState = "paused"
	StateUnstarted RunState = "prelaunch" // QEMU was started with -S
	StateIncoming  RunState = "inmigrate" // QEMU was started with -incoming, and the guest has not arrived
	StateLeaving   RunState = "finish-migrate"
	StateLeft      RunState = "postmigrate" // it has moved to another QEMU
)

// RunState returns the state of the machine (query-status).
func (c *Conn) RunState(ctx context.Context) (RunState, error) {
	var reply struct{ Status RunState }
	err := c.Execute(ctx, "query-status", nil, &reply)
	return reply.Status, err
}

// MigrationStatus returns the state of the last migration into or out of this QEMU, such as
// "active" or "failed" (MigrationStatus in qapi/migration.json); empty if there was none.
func (c *Conn) MigrationStatus(ctx context.Context) (string, error) {
	var reply struct{ Status string }
	err := c.Execute(ctx, "query-migrate", nil, &reply)
	return reply.Status, err
}

// arrivalEvery is the pause between two looks at a guest that has not arrived. QEMU sends the event
// RESUME when it starts the guest, and none if it leaves it paused. Nobody asks after RESUME: a
// guest that has just begun to run may keep QEMU from answering, and is without network meanwhile.
const arrivalEvery = 250 * time.Millisecond

// AwaitArrival waits until a guest has arrived in this QEMU, which was started with -incoming, and
// returns the machine's state then. It does not wait for a guest that is there. It fails if the
// migration does.
func (c *Conn) AwaitArrival(ctx context.Context) (RunState, error) {
	events := c.Subscribe(1, "RESUME") // before the first look, so that none is missed
	defer events.Close()
	tick := time.NewTicker(arrivalEvery)
	defer tick.Stop()
	for {
		state, err := c.RunState(ctx)
		if err != nil || state != StateIncoming {
			return state, err
		}
		switch status, err := c.MigrationStatus(ctx); {
		case err != nil:
			return state, err
		case status == "failed" || status == "cancelled":
			return state, fmt.Errorf("the guest has not arrived: its migration has ended as %s", status)
		}
		select {
		case <-ctx.Done():
			return state, fmt.Errorf("the guest has not arrived: %w", context.Cause(ctx))
		case <-c.Done():
			return state, c.Err()
		case _, open := <-events.C:
			if open {
				return StateRunning, nil
			}
			<-c.Done()
			return state, c.Err()
		case <-tick.C:
		}
	}
}

// ErrArriving is returned for a machine that must not be reset, since a guest is arriving.
var ErrArriving = errors.New("a guest is arriving by migration")

// UnplugByReset takes a NIC away from a machine in which no guest runs yet: device_del, and
// system_reset, which completes it, since no guest answers. Otherwise it is [Conn.Unplug].
// endsOnReset reports that QEMU ends when its machine is reset (-no-reboot), which this one reset
// must not do. The error matches [ErrArriving] if a migration into this QEMU goes on: its data
// would be lost.
func (c *Conn) UnplugByReset(ctx context.Context, deviceID string, endsOnReset bool,
	progress func(elapsed time.Duration),
) error {
	gone, err := c.askUnplug(ctx, deviceID)
	if err != nil {
		return fmt.Errorf("unplug %s: %w", deviceID, err)
	}
	if !gone {
		if err := c.resetUnused(ctx, endsOnReset); err != nil {
			return fmt.Errorf("unplug %s: %w", deviceID, err)
		}
	}
	return c.Unplug(ctx, deviceID, progress)
}

// resetUnused resets a machine in which no guest runs.
func (c *Conn) resetUnused(ctx context.Context, endsOnReset bool) (err error) {
	status, err := c.MigrationStatus(ctx)
	switch {
	case err != nil:
		return err
	case IsMigrating(status):
		return fmt.Errorf("%w: its state is %s", ErrArriving, status)
	}
	if endsOnReset { // QEMU decides about that when it gets the request
		if err := c.setRebootAction(ctx, "reset"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, c.setRebootAction(context.WithoutCancel(ctx), "shutdown")) }()
	}
	return c.Execute(ctx, "system_reset", nil, nil)
}

// setRebootAction sets what a reset of the machine does (RebootAction in qapi/run-state.json, since
// QEMU 6.0).
func (c *Conn) setRebootAction(ctx context.Context, action string) error {
	ctx, cancel := context.WithTimeout(ctx, rebootActionWait)
	defer cancel()
	return c.Execute(ctx, "set-action", map[string]any{"reboot": action}, nil)
}

// rebootActionWait bounds the wait for an answer that comes after ctx may have ended.
const rebootActionWait = 5 * time.Second

// IsMigrating reports whether a MigrationStatus means that data of a guest is on its way. Newer
// QEMUs that only listen for it are in "setup".
func IsMigrating(status string) bool {
	switch status {
	case "", "none", "setup", "completed", "failed", "cancelled":
		return false
	}
	return true
}
