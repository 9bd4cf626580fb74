package guest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vmnet/libvirt"
	"vmnet/qmp"
	"vmnet/tapmgr/nic"
)

// UnplugText describes Unplug.
func (d *Domain) UnplugText(nicID string) string {
	return fmt.Sprintf("libvirt: detach %s from %s, again each second until the guest releases it",
		nic.LibvirtAlias(nicID), d.dom.Name)
}

// RequestUnplug asks libvirt to detach the NIC, and does not wait. It is success if the guest was
// asked before.
func (d *Domain) RequestUnplug(ctx context.Context, nicID string) error {
	err := d.DetachDeviceAlias(ctx, d.dom, nic.LibvirtAlias(nicID), libvirt.AffectLive)
	var refusal *libvirt.Error
	if errors.As(err, &refusal) && qmp.IsUnplugPending(refusal.Message) {
		return nil
	}
	return explainRefusal(err)
}

// Unplug asks libvirt to detach the NIC, and again until the guest has released it. If ctx ends
// first, the error matches qmp.ErrUnplugTimeout.
func (d *Domain) Unplug(ctx context.Context, nicID string, waiting func(time.Duration)) error {
	events, err := d.Subscribe(ctx, &d.dom, 64, libvirt.DeviceRemoved, libvirt.DeviceRemovalFailed, libvirt.Lifecycle)
	if err != nil {
		return unplugError(ctx, err)
	}
	defer events.Close()
	u := &unplugging{domain: d, events: events.C, nicID: nicID}
	return unplugError(ctx, u.run(ctx, waiting))
}

// unplugError makes the error of an unplug that the end of ctx has caused match
// qmp.ErrUnplugTimeout, regardless of the call that ctx has ended.
func unplugError(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil && errors.Is(err, context.Cause(ctx)) {
		return fmt.Errorf("%w: %w", qmp.ErrUnplugTimeout, err)
	}
	return err
}

// unplugging is an Unplug that waits for the guest.
type unplugging struct {
	domain interface {
		RequestUnplug(ctx context.Context, nicID string) error
		Has(ctx context.Context, nicID string) (bool, error)
		Err() error // why the events have ended
	}
	events <-chan libvirt.Event
	nicID  string
}

func (u *unplugging) run(ctx context.Context, waiting func(time.Duration)) error {
	start := time.Now()
	for {
		if err := u.domain.RequestUnplug(ctx, u.nicID); err != nil {
			return u.refused(ctx, err)
		}
		done, err := u.awaitRemoved(ctx)
		if done || err != nil {
			return err
		}
		waiting(time.Since(start))
	}
}

// refused decides what the refusal of a request means, in any language of libvirt: nil if the
// device is not there (any more).
func (u *unplugging) refused(ctx context.Context, refusal error) error {
	if ended := explainStopped(refusal); ended != refusal {
		return ended
	}
	has, err := u.domain.Has(ctx, u.nicID)
	if err == nil && !has {
		return nil
	}
	return refusal
}

// awaitRemoved waits for the answer to a request, which takes precedence over the end of ctx. done
// is false if libvirt should be asked again.
func (u *unplugging) awaitRemoved(ctx context.Context) (done bool, err error) {
	device := nic.LibvirtAlias(u.nicID)
	again := time.NewTimer(qmp.UnplugRepeat)
	defer again.Stop()
	for {
		select {
		case e, open := <-u.events:
			switch {
			case !open:
				return false, explainStopped(u.domain.Err())
			case e.Kind == libvirt.DeviceRemoved && e.Device == device:
				return true, nil
			case e.Kind == libvirt.DeviceRemovalFailed && e.Device == device:
				return false, fmt.Errorf("%w (libvirt: device %s)", qmp.ErrGuestRefused, device)
			case e.Kind == libvirt.Lifecycle && (e.Change == libvirt.Stopped || e.Change == libvirt.Crashed):
				return false, errEnded
			}
		case <-again.C:
			return u.isAbsent(ctx)
		case <-ctx.Done():
			if len(u.events) == 0 {
				return false, context.Cause(ctx)
			}
		}
	}
}

// isAbsent reports whether the device has gone, of which an event may have been lost. If libvirt
// refuses to say, the next request decides.
func (u *unplugging) isAbsent(ctx context.Context) (bool, error) {
	has, err := u.domain.Has(ctx, u.nicID)
	err = explainStopped(err)
	var refusal *libvirt.Error
	if errors.As(err, &refusal) && !errors.Is(err, errEnded) {
		return false, nil
	}
	return !has && err == nil, err
}

// errEnded is returned for a guest that has ended. It matches the error of a closed monitor.
var errEnded = fmt.Errorf("%w: the domain has ended", qmp.ErrClosed)

// explainStopped makes an error of libvirt that means that the domain has ended match errEnded.
func explainStopped(err error) error {
	if errors.Is(err, libvirt.ErrOperationInvalid) || errors.Is(err, libvirt.ErrNoDomain) {
		return fmt.Errorf("%w: %w", errEnded, err)
	}
	return err
}
