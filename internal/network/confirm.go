package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"vmnet/internal/network/config"
	"vmnet/internal/network/uplink"
	"vmnet/step"
)

// ConfirmMove makes a move last: it is not taken back, and made again at boot. changed is false if
// it was confirmed before. That it was taken back is an error.
func (m *Manager) ConfirmMove(ctx context.Context, name string) (changed bool, err error) {
	unlock, err := m.lock(ctx)
	if err != nil {
		return false, err
	}
	steps, err := m.confirmSteps(name)
	if err == nil {
		err = m.Run.Do(ctx, steps)
	}
	return len(steps) > 0, errors.Join(err, unlock())
}

func (m *Manager) confirmSteps(name string) ([]step.Step, error) {
	n, err := m.Dir.Read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w; a move that nobody confirms in time is taken back, with the network that was "+
			"created for it (vmnet network create again, with a longer --confirm)", err)
	}
	if err != nil {
		return nil, err
	}
	_, r, err := m.bridge(name)
	switch {
	case err != nil:
		return nil, err
	case n.Uplink == nil || n.Uplink.Move == config.NoMove:
		return nil, fmt.Errorf("network %s: nothing was moved that could be confirmed", name)
	case !r.moved:
		return nil, fmt.Errorf("network %s: too late, all was taken back (vmnet network apply %[1]s --confirm 60s "+
			"moves again)", name)
	case !r.pending() && n.Uplink.Move == config.Confirmed:
		return nil, nil
	}
	was := n.Uplink.Move
	write := func(move config.Move) error {
		n.Uplink.Move = move
		return m.Dir.Write(n)
	}
	return []step.Step{
		{
			Name: "file", Text: "move-address: true in " + m.Dir.Path(name),
			Do:   func(context.Context) error { return write(config.Confirmed) },
			Undo: func(context.Context) error { return write(was) },
		},
		{
			Name: "alias", Text: "remember that the move is confirmed",
			Do: func(context.Context) error { return m.record(name, func(r *record) { r.deadline = 0 }) },
			Undo: func(context.Context) error {
				return m.record(name, func(now *record) { now.deadline = r.deadline })
			},
		},
		{
			Name: "snapshot", Text: "remove " + m.snapshot(name).Path,
			Do: func(context.Context) error { return m.snapshot(name).Remove() },
		},
	}, nil
}

// guardPoll is how often a guard looks whether somebody has confirmed.
const guardPoll = 200 * time.Millisecond

// AwaitConfirm takes a move back unless somebody confirms it in time: what the guard of a move
// does. It calls ready when it has begun. taken reports whether it took back.
func (m *Manager) AwaitConfirm(ctx context.Context, name string, ready func()) (taken bool, err error) {
	unlock, err := m.snapshot(name).Lock(ctx)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	ready()
	for {
		wait, err := m.remaining(name)
		if err != nil || wait < 0 {
			return false, err
		}
		if wait == 0 {
			return m.takeBackForSure(ctx, name)
		}
		select {
		case <-ctx.Done():
			return false, context.Cause(ctx)
		case <-time.After(min(wait, guardPoll)):
		}
	}
}

// remaining returns how long a move may still be confirmed: 0 if it has to be taken back, less if
// there is none to confirm. If the bridge has gone, what was moved to it has gone too.
func (m *Manager) remaining(name string) (time.Duration, error) {
	const none = -1
	br, r, err := m.bridge(name)
	switch {
	case errors.Is(err, ErrForeign) || err == nil && br == nil:
		saved, err := m.snapshot(name).Read()
		if err != nil || saved == nil {
			return none, err
		}
		return 0, nil
	case err != nil:
		return none, err
	case !r.pending():
		return none, nil
	}
	now, err := uplink.Now()
	return max(0, r.deadline-now), err
}

// overdue reports whether a move should have been taken back, and no process will do so.
func (m *Manager) overdue(name string) bool {
	_, r, err := m.bridge(name)
	if err != nil || !r.pending() {
		return false
	}
	now, err := uplink.Now()
	return err == nil && now >= r.deadline && !m.snapshot(name).Guarded()
}

// How long and how often a guard tries to take back.
const (
	guardLock  = 5 * time.Second
	guardPause = time.Second
	guardTries = 60
)

func (m *Manager) takeBackForSure(ctx context.Context, name string) (taken bool, err error) {
	for try := 1; ; try++ {
		taken, err = m.takeBack(ctx, name)
		if err == nil || try == guardTries {
			return taken, err
		}
		select {
		case <-ctx.Done():
			return taken, errors.Join(err, context.Cause(ctx))
		case <-time.After(guardPause):
		}
	}
}

// takeBack undoes an unconfirmed move whose time has come. A network that was created with it is
// deleted, unless guests are on it. A process that holds the lock and does not go on, such as one
// that writes to a terminal that is out of reach, does not keep the host's addresses from coming
// back.
func (m *Manager) takeBack(ctx context.Context, name string) (taken bool, err error) {
	lockCtx, cancel := context.WithTimeout(ctx, guardLock)
	defer cancel()
	unlock, lockErr := m.lock(lockCtx)
	if lockErr == nil {
		defer func() { err = errors.Join(err, unlock()) }()
	}
	if wait, err := m.remaining(name); err != nil || wait != 0 {
		return false, err // somebody has confirmed it while this process waited for the lock
	}
	saved, err := m.snapshot(name).Read()
	if err != nil {
		return false, err
	}
	_, r, err := m.bridge(name)
	if err != nil && !errors.Is(err, ErrForeign) {
		return false, err
	}
	steps, err := m.backSteps(name, r)
	if err == nil {
		err = m.Run.Do(ctx, steps)
	}
	if err != nil || saved == nil || !saved.Created || lockErr != nil {
		return true, err
	}
	// The host is as it was; what follows only tidies up.
	steps, err = m.deleteSteps(ctx, name, false)
	if errors.Is(err, ErrGuests) || errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err == nil {
		err = m.Run.Do(ctx, steps)
	}
	return true, err
}
