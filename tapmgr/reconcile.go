package tapmgr

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"vmnet/internal/access/plaintap"
	"vmnet/internal/backend"
	"vmnet/internal/guest"
	"vmnet/internal/inventory"
	"vmnet/internal/kernel/rtnl"
	"vmnet/tapmgr/nic"
)

// Reconcile makes the host equal to the records: it removes leftovers, undoes interrupted attaches
// and completes interrupted detaches, and mends the differences that Check says it mends. It leaves
// alone what another vmnet works on, and what is on another bridge. Of the taps of which only the
// bridge is known, it removes those that no process holds, or takes them off the bridge if they
// were there before. If dry is set it changes nothing, and returns what it would do.
//
// Failures are reported in the actions; the error is set only if the present state could not be
// read.
func (m *Manager) Reconcile(ctx context.Context, dry bool) ([]nic.Action, error) {
	links, err := m.host.Devices(ctx)
	if err != nil {
		return nil, err
	}
	r := &reconciler{backend.NewMending(m.host, dry), m}
	failed := r.leftOvers(ctx, links)
	var held []inventory.Device
	for _, dev := range links {
		switch v := dev.ReconcileVerdict(); {
		case v.Do == inventory.Remove && dev.IsSocket():
			r.Do(dev, "removed: nobody holds it", func() error { return r.m.host.DisconnectSwitch(ctx, &dev) })
		case v.Do == inventory.Remove:
			r.Do(dev, "removed: nobody holds it", func() error { return failed[dev.Index] })
		case v.Do == inventory.AskGuest:
			held = append(held, dev)
		case v.Note != "":
			r.Note(dev, v.Note)
		}
	}
	for _, actions := range guest.Each(ctx, held, r.reconcileGuest) {
		r.Actions = append(r.Actions, actions...)
	}
	return r.Actions, r.plainTaps(ctx)
}

type reconciler struct {
	backend.Mending
	m *Manager
}

// leftOvers deletes the links that no process holds. It returns the errors by link index.
func (r *reconciler) leftOvers(ctx context.Context, links []inventory.Device) map[int]error {
	if r.Dry {
		return nil
	}
	var left []inventory.Device
	for _, dev := range links {
		if dev.IsOrphaned() && !dev.IsSocket() {
			left = append(left, dev)
		}
	}
	return r.m.deleteLeftOvers(ctx, left)
}

func (r *reconciler) reconcileGuest(ctx, reading context.Context, nics []inventory.Device) []nic.Action {
	one := reconciler{backend.NewMending(r.m.host, r.Dry), r.m}
	one.guest(ctx, reading, nics)
	return one.Actions
}

// guest looks at the NICs that one QEMU holds, under that guest's lock.
func (r *reconciler) guest(ctx, reading context.Context, nics []inventory.Device) {
	ctx, cancel := context.WithTimeout(ctx, guest.Wait+time.Duration(len(nics))*backend.ReleaseWait)
	defer cancel()
	pid := nics[0].VMMPID()
	if pid == 0 { // it has ended since, and its NICs with it
		return
	}
	g, err := r.m.open(reading, nic.Target{VM: nics[0].Want.VM, PID: pid}, nics[0].Want.Via)
	if err != nil {
		if nics[0].VMMPID() == 0 { // likewise
			return
		}
		for _, dev := range nics {
			if dev.Want.Phase == nic.PhasePlugged || dev.Want.Phase == nic.PhaseDetaching {
				r.Mend(ctx, dev) // needs no lock
			}
			r.Fail(dev, err)
		}
		return
	}
	defer g.Close()
	for i, dev := range nics {
		if i > 0 { // it has answered, and the work since may have taken long
			var cancel context.CancelFunc
			reading, cancel = guest.WithTimeout(ctx)
			defer cancel()
		}
		r.nic(ctx, reading, g.Guest, dev)
	}
}

// nic decides about one NIC whose guest is locked.
func (r *reconciler) nic(ctx, reading context.Context, g *guest.Guest, dev inventory.Device) {
	now, err := r.m.host.Refresh(ctx, dev)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	has := false
	if err == nil {
		has, err = g.Has(reading, dev.Want.NIC)
	}
	switch {
	case err != nil && dev.VMMPID() == 0: // it has ended since
	case err != nil:
		r.Fail(dev, err)
	case !has:
		r.Do(now, "removed: the guest has no such device", func() error {
			if err := r.m.checkReleasable(ctx, &now, g); err != nil {
				return err
			}
			return r.m.release(ctx, g, &now)
		})
	default:
		if now.Want.Phase == nic.PhaseAttaching || now.Want.Phase == nic.PhaseStarting {
			r.Do(now, "kept: it is plugged, which its alias did not say yet", func() error {
				return r.m.host.MarkPlugged(ctx, now)
			})
		}
		r.Mend(ctx, now)
	}
}

// plainTaps removes the taps of which only the bridge is known and that no process holds, and mends
// the others. A tap that was there before it was put on its bridge is taken off that instead.
func (r *reconciler) plainTaps(ctx context.Context) error {
	taps, err := r.m.host.PlainHeld(ctx)
	for _, dev := range taps {
		if !dev.IsOrphaned() {
			if dev.Want.Source != "" {
				r.Mend(ctx, dev)
			}
			continue
		}
		if t, _ := plaintap.Parse(dev.Alias); t.Elsewhere {
			t.Link = dev.Link
			r.Do(dev, "taken off its bridge: nobody holds it", func() error {
				return r.m.ifUnheld(dev, func() error { return r.m.host.TakeOff(t) })
			})
			continue
		}
		r.Do(dev, "removed: nobody holds it", func() error {
			return r.m.ifUnheld(dev, func() error { return rtnl.IgnoreNotExist(r.m.host.NL.Delete(dev.Index)) })
		})
	}
	return err
}

// ifUnheld runs do if still no process holds a plain tap.
func (m *Manager) ifUnheld(dev inventory.Device, do func() error) error {
	l, err := m.host.NL.LinkByIndex(dev.Index)
	if err != nil {
		return rtnl.IgnoreNotExist(err)
	}
	if !dev.StillUnheld(l) {
		return fmt.Errorf("%w: interface %s", nic.ErrInUse, dev.Name)
	}
	return do()
}
