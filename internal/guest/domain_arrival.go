package guest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vmnet/libvirt"
)

const (
	// arrivalEvents is how many events of a domain may be queued while its guest is awaited.
	arrivalEvents = 16
	// askArrival is how often libvirt is asked although it has reported nothing, in case an event
	// was lost.
	askArrival = 2 * time.Second
)

// isHere is [Guest.IsHere] of a domain. libvirt reports when it continues the guest, so QEMU's
// monitor is not needed for that, whose use would mark the domain as tainted. While it waits, it
// gives up the domain's lock: nothing is changed, and libvirt refuses what others could want to
// change.
func (d *Domain) isHere(ctx context.Context, wait bool) error {
	if !wait {
		return d.arrival(ctx)
	}
	if d.lock != nil {
		err := d.lock.Close()
		d.lock = nil
		if err != nil {
			return err
		}
	}
	if err := d.awaitArrival(ctx); err != nil {
		return err
	}
	return d.takeLock(ctx, func(string, ...any) {})
}

func (d *Domain) awaitArrival(ctx context.Context) error {
	events, err := d.Subscribe(ctx, &d.dom, arrivalEvents, libvirt.Lifecycle)
	if err != nil {
		return fmt.Errorf("domain %s: %w", d.dom.Name, err)
	}
	defer events.Close()
	for {
		err := d.arrival(ctx)
		if !errors.Is(err, ErrNotArrived) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", err, context.Cause(ctx))
		case _, open := <-events.C: // of its continuation, or its end
			if !open {
				return fmt.Errorf("domain %s: %w", d.dom.Name, events.Err())
			}
		case <-time.After(askArrival):
		}
	}
}

// arrival asks libvirt once whether the guest has arrived.
func (d *Domain) arrival(ctx context.Context) error {
	state, err := d.State(ctx, d.dom)
	switch {
	case err != nil:
		return fmt.Errorf("domain %s: %w", d.dom.Name, err)
	case state.IsOff():
		return fmt.Errorf("domain %s: %w", d.dom.Name, errEnded)
	case state.IsIncoming():
		return ErrNotArrived
	}
	return nil
}
