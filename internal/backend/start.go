package backend

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"vmnet/internal/inventory"
	"vmnet/internal/kernel/macvlan"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// What the hook does for a guest that libvirt starts: the devices that its XML names must be there
// before libvirt opens them, and nobody may ask libvirt anything meanwhile.

// Prepare makes the device of a NIC for a guest that libvirt is about to start: a persistent tap on
// its bridge, or a macvtap in the Manager's netns. Its alias says so, and Reconcile leaves it alone
// for a while. QueuesAuto must have been decided. One that a former start of the same guest has
// left and nobody holds is replaced; any other of that id is an error that Is ErrExist. Nothing is
// left on an error.
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
	list = append(list, step.InStage(nic.ErrLink, h.HostSteps(0)...)...)
	if err := m.run(ctx, list); err != nil {
		return nic.Result{}, err
	}
	return h.Prepared()
}

// planPrepare decides what the steps need, of a guest that is not there yet; it changes nothing.
func (m *Maker) planPrepare(ctx context.Context, h *NIC) error {
	if h.Spec.Queues == nic.QueuesAuto {
		return step.WithStage(nic.ErrInvalid, errors.New("the number of queues is not decided"))
	}
	if err := h.Spec.CheckLibvirt(); err != nil {
		return step.WithStage(nic.ErrInvalid, err)
	}
	h.Record.Since = inventory.SinceBoot()
	if err := h.Device.Plan(ctx, &h.Record); err != nil {
		return step.WithStage(nic.ErrLink, err)
	}
	if err := h.Plan(h.Spec.Queues); err != nil {
		return err
	}
	if h.Spec.MTU == 0 { // its XML tells the guest none, whatever the bridge has
		h.Record.MTU = 0
	}
	return nil
}

// deleteFormer removes what a former start of the guest has left.
func (m *Maker) deleteFormer(former *inventory.Device) step.Step {
	return step.Step{
		Name:  "delete",
		Text:  fmt.Sprintf("RTM_DELLINK %s, which a former start of the guest has left", former.Name),
		Stage: nic.ErrLink,
		Do:    func(context.Context) error { return m.Delete(former) },
	}
}

// unstarted is what a former start of the guest has left under the NIC's id, which nobody holds;
// nil for nothing.
func (m *Maker) unstarted(ctx context.Context, spec nic.Spec) (*inventory.Device, error) {
	all, err := m.Named(ctx, spec.VM, spec.NIC)
	all = slices.DeleteFunc(all, func(dev inventory.Device) bool { return dev.IsUnconfirmed() }) // anybody's word must not keep a guest from starting
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

// Started finishes what Prepare has begun, once the guest's QEMU, process pid, has opened the
// devices: a tap goes with it from then on, and the aliases say that the NICs are plugged. So it
// does for an attach that was cut short. Failures are told in the actions; the error is about the
// reading of what is.
func (m *Maker) Started(ctx context.Context, vm string, pid int) ([]nic.Action, error) {
	links, err := m.ByName(ctx, vm)
	if err != nil {
		return nil, err
	}
	r := NewMending(m, false)
	for _, dev := range links {
		if ctx.Err() != nil {
			return r.Actions, context.Cause(ctx)
		}
		if !dev.IsHeldBy(pid) {
			continue
		}
		r.Mend(ctx, dev)
		if dev.Want.Phase == nic.PhaseStarting || dev.Want.Phase == nic.PhaseAttaching {
			r.Do(dev, "the guest has started with it", func() error { return m.MarkPlugged(ctx, dev) })
		}
	}
	return r.Actions, nil
}

// Opened tells by an error that libvirt has started a guest without opening the tap of that name,
// which Prepare has made: the node of a macvtap in another netns was quicker in /dev than libvirt.
func (m *Maker) Opened(name string) error {
	l, err := m.NL.Link(name)
	switch {
	case err != nil:
		return fmt.Errorf("interface %s: %w", name, err)
	case l.Tun != nil && l.Tun.Attached:
		return nil
	}
	if node := macvlan.NodeInTheWay(l); node != "" {
		return fmt.Errorf("%w: libvirt has not opened %s, but %s in its place, of a macvtap in another netns", nic.ErrInUse, name, node)
	}
	return fmt.Errorf("libvirt has not opened %s", name)
}

// Release removes what was handed over by name to a guest that libvirt says has ended: of that
// nobody who can be seen holds anything. Failures are told in the actions; the error is about the
// reading of what is.
func (m *Maker) Release(ctx context.Context, vm string) ([]nic.Action, error) {
	links, err := m.ByName(ctx, vm)
	if err != nil {
		return nil, err
	}
	r := NewMending(m, false)
	for _, dev := range links {
		switch {
		case ctx.Err() != nil:
			return r.Actions, context.Cause(ctx)
		case len(dev.Holders) > 0 || dev.Tun != nil && dev.Tun.Attached:
			r.Note(dev, "left alone: it is held")
		case dev.Tun != nil && !dev.Tun.Persist: // the kernel is about to
		default:
			r.Do(dev, "removed: its guest has ended", func() error { return m.Delete(&dev) })
		}
	}
	return r.Actions, nil
}
