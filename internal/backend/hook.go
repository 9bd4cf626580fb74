package backend

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"vmnet/internal/inventory"
	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/rtnl"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// What libvirt's hook does as a guest starts and ends. The interfaces that a domain's XML names
// must be there before libvirt opens them, and nobody may call libvirt meanwhile.

// Prepare makes the interface of a NIC for a guest that libvirt is about to start: a persistent tap
// on its bridge, or a macvtap in the Maker's netns. Its alias says so, and Reconcile leaves it
// alone for a while. If spec is Prepared, the interface stays down. QueuesAuto must have been
// decided. An interface that a former start of the same guest has left and that nobody holds is
// replaced; for any other of that id the error matches nic.ErrExist. Nothing is left on an error.
func (m *Maker) Prepare(ctx context.Context, spec nic.Spec) (nic.Result, error) {
	if err := spec.Validate(); err != nil {
		return nic.Result{}, err
	}
	spec = spec.WithDefaults()
	spec.Via = nic.ViaLibvirt
	res, err := m.prepare(ctx, m.New(spec, nic.PhaseStarting))
	return res, explainPrepare(spec, err)
}

// explainPrepare names the NIC that an error is about.
func explainPrepare(spec nic.Spec, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("prepare %s/%s: %w", spec.VM, spec.NIC, err)
}

func (m *Maker) prepare(ctx context.Context, h *NIC) (nic.Result, error) {
	if err := m.planPrepare(ctx, h); err != nil {
		return nic.Result{}, err
	}
	former, err := m.unstarted(ctx, h.Spec)
	if err != nil {
		return nic.Result{}, err
	}
	var list []step.Step
	if former != nil {
		list = append(list, m.deleteFormer(former))
	}
	steps, err := h.HostSteps(0)
	if err != nil {
		return nic.Result{}, err
	}
	list = append(list, step.InStage(nic.ErrLink, steps...)...)
	if err := m.Run.Do(ctx, list); err != nil {
		return nic.Result{}, err
	}
	return h.prepared()
}

// planPrepare decides what the steps need, for a guest that is not there yet; it changes nothing.
func (m *Maker) planPrepare(ctx context.Context, h *NIC) error {
	if h.Spec.Queues == nic.QueuesAuto {
		return step.WithStage(nic.ErrInvalid, errors.New("the number of queues is not decided"))
	}
	if err := h.Spec.CheckLibvirt(); err != nil {
		return step.WithStage(nic.ErrInvalid, err)
	}
	h.Record.Since = inventory.SinceBoot()
	if err := h.PlanInterface(ctx); err != nil {
		return step.WithStage(nic.ErrLink, err)
	}
	if err := h.PlanDevice(h.Spec.Queues); err != nil {
		return err
	}
	if h.Spec.MTU == 0 { // the domain's XML then gives the guest none, whatever the bridge has
		h.Record.MTU = 0
	}
	return nil
}

// prepared reads the interface back.
func (h *NIC) prepared() (nic.Result, error) {
	l, err := h.m.NL.Link(h.Interface.Name)
	if errors.Is(err, fs.ErrNotExist) { // a dry run
		return h.Result(nil, true), nil
	}
	if err != nil {
		return nic.Result{}, err
	}
	return h.Result(&inventory.Device{Link: l, Want: h.Record, MasterName: h.m.MasterName(l)}, true), nil
}

// deleteFormer removes what a former start of the guest has left.
func (m *Maker) deleteFormer(former *inventory.Device) step.Step {
	return step.Step{
		Name:  "delete",
		Text:  fmt.Sprintf("RTM_DELLINK %s, which %s", former.Name, reason(former)),
		Stage: nic.ErrLink,
		Do:    func(context.Context) error { return m.Delete(former) },
	}
}

func reason(former *inventory.Device) string {
	if former.IsOpenedByName() {
		return "waits for a VMM"
	}
	return "a former start of the guest has left"
}

// unstarted returns what a former start of the guest has left under the NIC's id, and nobody holds;
// nil for nothing.
func (m *Maker) unstarted(ctx context.Context, spec nic.Spec) (*inventory.Device, error) {
	all, err := m.Named(ctx, spec.VM, spec.NIC)
	// An unconfirmed claim must not keep a guest from starting.
	all = slices.DeleteFunc(all, func(dev inventory.Device) bool { return dev.IsUnconfirmed() })
	if err != nil || len(all) == 0 {
		return nil, err
	}
	dev := all[0]
	switch {
	case len(all) > 1:
		return nil, fmt.Errorf("%w: %s", nic.ErrExist, inventory.Whose(all))
	case len(dev.Holders) > 0 || dev.NetnsFile != nil || dev.Tun != nil && dev.Tun.Attached:
		return nil, fmt.Errorf("%w: interface %s, %s", nic.ErrExist, dev.Name, inventory.Whose(all))
	case dev.Pending:
		return nil, fmt.Errorf("%w: interface %s, which is being attached", nic.ErrExist, dev.Name)
	}
	return &dev, nil
}

// Opened returns an error if libvirt has started a guest without opening the tap of that name,
// which Prepare has made: most likely it has opened the node of a macvtap in another netns instead.
func (m *Maker) Opened(name string) error {
	l, err := m.NL.Link(name)
	switch {
	case err != nil:
		return fmt.Errorf("interface %s: %w", name, err)
	case l.Tun != nil && l.Tun.Attached:
		return nil
	}
	return notOpened(l)
}

// notOpened is the error for a link that libvirt should have opened.
func notOpened(l *rtnl.Link) error {
	if node := macvlan.NodeInTheWay(l); node != "" {
		return fmt.Errorf("%w: libvirt has not opened %s, but %s in its place, of a macvtap in another netns "+
			"(start the guest again; lsns -t net shows the namespaces)", nic.ErrInUse, l.Name, node)
	}
	return fmt.Errorf("libvirt has not opened %s (start the guest again)", l.Name)
}

// Started finishes what Prepare has begun, once the guest's QEMU, process pid, has opened the
// interfaces: a tap ends with the process from then on, and the aliases say that the NICs are
// plugged. It does the same for an attach that was interrupted. Failures are in the actions; the
// error is about reading what there is.
func (m *Maker) Started(ctx context.Context, vm string, pid int) ([]nic.Action, error) {
	return m.eachByName(ctx, vm, func(r *Mending, dev inventory.Device) {
		if !dev.IsHeldBy(pid) {
			return
		}
		r.Mend(ctx, dev)
		if dev.Want.Phase == nic.PhaseStarting || dev.Want.Phase == nic.PhaseAttaching {
			r.Do(dev, "the guest has started with it", func() error { return m.MarkPlugged(ctx, dev) })
		}
	})
}

// Awaits reports whether a guest has NICs that stay down until a commit, or one that has begun a
// commit and not ended it.
func (m *Maker) Awaits(ctx context.Context, vm string) (bool, error) {
	all, err := m.ByName(ctx, vm)
	return slices.ContainsFunc(all, func(dev inventory.Device) bool {
		return dev.Want.Prepared || dev.Want.Phase == nic.PhaseChanging
	}), err
}

// Release removes what was handed over by name to a guest that has ended, as libvirt says: no
// process that can be seen holds any of it. Failures are in the actions; the error is about reading
// what there is.
func (m *Maker) Release(ctx context.Context, vm string) ([]nic.Action, error) {
	actions, err := m.eachByName(ctx, vm, func(r *Mending, dev inventory.Device) {
		switch {
		case len(dev.Holders) > 0 || dev.Tun != nil && dev.Tun.Attached:
			r.Note(dev, "left alone: it is held")
		case dev.Tun != nil && !dev.Tun.Persist: // the kernel is about to remove it
		default:
			r.Do(dev, "removed: its guest has ended", func() error { return m.Delete(&dev) })
		}
	})
	return actions, errors.Join(err, m.TidyHost(ctx))
}

// Ended removes what was handed over by name to a libvirt guest, or to any if vm is empty, and
// nobody holds any more: after the guest has ended, or a NIC was unplugged. Unlike Release it may
// come late: it leaves alone what was made since for the guest's next start, or is about to be
// handed over. remain reports that something stays that its holder may yet close. Failures are in
// the actions; the error is about reading what there is.
func (m *Maker) Ended(ctx context.Context, vm string) (actions []nic.Action, remain bool, err error) {
	actions, err = m.eachByName(ctx, vm, func(r *Mending, dev inventory.Device) {
		if dev.IsOrphaned() {
			r.Do(dev, "removed: nobody holds it any more", func() error { return m.Delete(&dev) })
		} else {
			remain = remain || dev.StaysBehind()
		}
	})
	return actions, remain, errors.Join(err, m.TidyHost(ctx))
}

// eachByName runs do for each interface that was handed over by name to a guest, or to any if vm is
// empty, until ctx ends.
func (m *Maker) eachByName(ctx context.Context, vm string, do func(*Mending, inventory.Device)) ([]nic.Action, error) {
	all, err := m.ByName(ctx, vm)
	if err != nil {
		return nil, err
	}
	r := NewMending(m, false)
	for _, dev := range all {
		if ctx.Err() != nil {
			return r.Actions, context.Cause(ctx)
		}
		do(&r, dev)
	}
	return r.Actions, nil
}
