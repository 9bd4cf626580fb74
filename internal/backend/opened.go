package backend

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"vmnet/internal/inventory"
	"vmnet/internal/kernel/rtnl"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// A tap that waits for its VMM, which opens it by its name and has no monitor that vmnet knows, is
// persistent until then. A process waits for that, and makes the tap end with the VMM (KeepTap). If
// that process is killed, reconcile does so, or removes the tap once it waits no more.

// ErrNotOpened is returned for a tap that no VMM has opened in time.
var ErrNotOpened = errors.New("no VMM has opened it in time")

// PlanTap plans a tap that a VMM of user h.Opener opens by its name within wait, and returns the
// steps that make it. At their end, keep starts the process that waits, and returns once it does.
// A tap of that NIC that waits already is replaced; for any other the error matches nic.ErrExist.
func (m *Maker) PlanTap(ctx context.Context, h *NIC, wait time.Duration, keep func(context.Context) error) (
	[]step.Step, error,
) {
	if err := h.PlanInterface(ctx); err != nil {
		return nil, step.WithStage(nic.ErrLink, err)
	}
	if err := h.PlanDevice(h.Spec.Queues); err != nil {
		return nil, err
	}
	h.Record.MTU = 0 // the VMM decides what it tells its guest
	former, err := m.unstarted(ctx, h.Spec)
	if err != nil {
		return nil, err
	}
	var list []step.Step
	if former != nil {
		list = append(list, m.deleteFormer(former))
	}
	steps, err := h.HostSteps(0)
	if err != nil {
		return nil, err
	}
	waits, err := m.waitSteps(h, wait, keep)
	return append(list, step.InStage(nic.ErrLink, append(steps, waits...)...)...), err
}

// waitSteps follow the last step of a named tap, which nobody holds from there on.
func (m *Maker) waitSteps(h *NIC, wait time.Duration, keep func(context.Context) error) ([]step.Step, error) {
	r := h.Record
	r.Phase, r.Since = nic.PhaseStarting, inventory.SinceBoot()
	r.Until = r.Since + int64(wait.Seconds())
	text, err := r.Encode()
	if err != nil {
		return nil, step.WithStage(nic.ErrInvalid, err)
	}
	h.Record = r
	name := h.Interface.Name
	return []step.Step{{
		Name: "wait",
		Text: fmt.Sprintf("alias of %s: %q", name, text),
		Do: func(context.Context) error {
			l, err := m.NL.Link(name)
			if err != nil {
				return err
			}
			return m.NL.Set(l.Index, rtnl.Alias(text))
		},
	}, {
		Name: "keep",
		Text: fmt.Sprintf("start a process that waits until a VMM opens %s, %v at most, "+
			"and then makes it end with that", name, wait),
		Do: keep,
	}}, nil
}

// keepPause is how often a process that waits looks at the clock and the tap, should an event have
// been lost. The machine may have been suspended.
const keepPause = 10 * time.Second

// KeepTap waits until a VMM has opened a tap by its name, and makes it end with that VMM. It calls
// ready once it waits. If the tap has gone, the error matches fs.ErrNotExist. A tap
// that no VMM opens in time is removed, and the error matches ErrNotOpened.
func (m *Maker) KeepTap(ctx context.Context, dev *inventory.Device, ready func() error) error {
	events, err := rtnl.OpenEvents(m.NS)
	if err != nil {
		return err
	}
	changed, done := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(done)
		passOn(events, dev.Index, changed)
	}()
	defer func() { _ = events.Close(); <-done }()
	if err := ready(); err != nil {
		return err
	}
	for look := firstLook; ; {
		opened, err := m.handOver(ctx, dev)
		if !errors.Is(err, errWaits) {
			return err
		}
		pause := min(keepPause, max(firstLook, time.Duration(dev.Want.Until-inventory.SinceBoot())*time.Second))
		if opened { // by a process that was not seen, or has closed it
			pause, look = look, min(2*look, keepPause)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-changed:
		case <-time.After(pause):
		}
	}
}

// passOn reports on changed each event of a link, and that events were lost, until events is
// closed.
func passOn(events *rtnl.Events, index int, changed chan<- struct{}) {
	for {
		e, err := events.Next()
		switch {
		case errors.Is(err, rtnl.ErrLost):
		case err != nil:
			return
		case e.Index != index:
			continue
		}
		select {
		case changed <- struct{}{}:
		default:
		}
	}
}

// errWaits is handOver's error for a tap that goes on to wait.
var errWaits = errors.New("it waits")

// firstLook is the first pause until the next look for a process that has opened the tap, and that
// was not seen among all processes.
const firstLook = 100 * time.Millisecond

// handOver makes a tap end with the VMM that has opened it. Its error matches errWaits if there is
// none yet; opened says that there is one, which was not seen.
func (m *Maker) handOver(ctx context.Context, dev *inventory.Device) (opened bool, err error) {
	l, err := m.NL.LinkByIndex(dev.Index)
	if err != nil {
		return false, err
	}
	r, ok := nic.ParseRecord(l.Alias)
	switch {
	case !ok || r.Via != nic.ViaName || r.Phase != nic.PhaseStarting || l.Tun == nil:
		return false, fmt.Errorf("link %s: %w: it is no tap any more that waits for a VMM", l.Name, fs.ErrNotExist)
	case l.Tun.Attached:
		now, err := m.Reread(ctx, dev)
		switch {
		case err != nil:
			return true, err
		case now == nil: // it was opened to be removed
			return true, fmt.Errorf("link %s: %w", l.Name, fs.ErrNotExist)
		}
		if len(now.Holders) > 0 {
			return true, m.GiveTo(ctx, now)
		}
	}
	if inventory.SinceBoot() < r.Until {
		return l.Tun.Attached, errWaits
	}
	return false, errors.Join(fmt.Errorf("link %s: %w", l.Name, ErrNotOpened), m.RemoveNamed(ctx, l))
}

// GiveTo makes a tap that was opened by its name end with its holder, and says in its alias that it
// is plugged. It goes on to wait if the holder has closed it meanwhile.
func (m *Maker) GiveTo(ctx context.Context, dev *inventory.Device) error {
	err := m.ClearPersist(dev, dev.Holders[0].PID)
	if errors.Is(err, fs.ErrNotExist) {
		return errWaits
	}
	if err != nil {
		return err
	}
	dev.Want.Until = 0
	return rtnl.IgnoreNotExist(m.MarkPlugged(ctx, *dev))
}
