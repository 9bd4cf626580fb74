package tapmgr

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"vmnet/internal/change"
	"vmnet/internal/guest"
	"vmnet/internal/inventory"
	"vmnet/internal/routed"
	"vmnet/internal/vmm/qemu"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// Prepare is Attach for a guest that is to come from another QEMU, by migration or from a snapshot:
// the NIC is complete, and its device is down until Commit. So the guest's address is never on the
// network twice. Only root may prepare a NIC with a device; one by a socket or by vhost-user needs
// no privilege.
func (m *Manager) Prepare(ctx context.Context, spec nic.Spec) (nic.Result, error) {
	spec.Prepared = true
	if err := cmp.Or(spec.Validate(), spec.CheckLinkUp(), spec.CheckPlace()); err != nil {
		return nic.Result{}, err
	}
	requested := spec
	spec = spec.WithDefaults()
	res, err := m.attach(ctx, spec, requested)
	if err != nil {
		return nic.Result{}, fmt.Errorf("prepare %s/%s: %w", spec.VM, spec.NIC, err)
	}
	return res, nil
}

// Commit raises the prepared NICs of a guest, or the one of that id if it is not empty, and
// announces the guest on their networks. A NIC that is committed stays as it is. The error matches
// guest.ErrNotArrived while the guest's QEMU waits for its migration; if wait is set, Commit waits
// for that. Each NIC is committed by itself: if a step of one fails, that one is as it was.
//
// With a Run that calls no step, Commit returns the NICs that it would raise.
func (m *Manager) Commit(ctx context.Context, t nic.Target, nicID string, wait bool) ([]nic.ChangeResult, error) {
	var done []nic.ChangeResult
	err := m.withPrepared(ctx, t, nicID, func(g *guest.Guest, all []inventory.Device) error {
		if len(all) == 0 {
			return nothingToCommit(g, nicID)
		}
		var early []*change.Plan
		if slices.ContainsFunc(all, isUncommitted) {
			if wait {
				early = m.planEarly(ctx, g, all)
			}
			if err := m.awaitGuest(ctx, g, wait); err != nil {
				return err
			}
			if early != nil && g.Domain != nil {
				m.lookAgain(ctx, all, early)
			}
		}
		var errs []error
		for i, dev := range all {
			var planned *change.Plan
			if early != nil {
				planned = early[i]
			}
			res, err := m.commit(ctx, g, dev, planned)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", dev.Want.NIC, err))
				continue
			}
			done = append(done, res)
		}
		for i, res := range done { // once all of them are up
			if res.Changed && res.NIC.Type == nic.TypeRouted {
				errs = append(errs, m.Run.Do(ctx, []step.Step{m.answeringStep(&done[i])}))
			}
		}
		return errors.Join(errs...)
	})
	if err != nil {
		err = fmt.Errorf("commit %s: %w", t.VM, err)
	}
	return done, err
}

// CommitArrived commits the NICs that libvirt's hook has prepared for a guest of that name, or for
// any if vm is empty, of guests that have arrived.
func (m *Manager) CommitArrived(ctx context.Context, vm string) (done []nic.ChangeResult, err error) {
	all, err := m.host.ByName(ctx, vm)
	errs := []error{err}
	tried := map[int]bool{0: true} // by process; 0 means that no process holds the NIC
	for _, dev := range all {
		pid := dev.VMMPID()
		if !isUncommitted(dev) || tried[pid] || dev.IsUntrusted() {
			continue
		}
		tried[pid] = true
		some, err := m.Commit(ctx, nic.Target{VM: dev.Want.VM, PID: pid}, "", false)
		done = append(done, some...)
		if !errors.Is(err, guest.ErrNotArrived) {
			errs = append(errs, err)
		}
	}
	return done, errors.Join(errs...)
}

func nothingToCommit(g *guest.Guest, nicID string) error {
	maker := "vmnet prepare"
	if g.Domain != nil {
		maker = "vmnet attach"
	}
	if nicID != "" {
		return fmt.Errorf("NIC %s: %w (%s makes it)", nicID, fs.ErrNotExist, maker)
	}
	return fmt.Errorf("no NIC of it is there: %w (%s makes one)", fs.ErrNotExist, maker)
}

func (m *Manager) awaitGuest(ctx context.Context, g *guest.Guest, wait bool) error {
	err := g.IsHere(ctx, false)
	if wait && errors.Is(err, guest.ErrNotArrived) {
		m.progress("waiting until the guest has arrived")
		err = g.IsHere(ctx, true)
	}
	giveUp := "vmnet abort gives it up"
	if g.Domain != nil {
		giveUp = "virsh domjobabort, where it comes from, gives it up"
	}
	switch {
	case errors.Is(err, guest.ErrNotArrived) && wait:
		err = fmt.Errorf("%w (%s)", err, giveUp)
	case errors.Is(err, guest.ErrNotArrived):
		err = fmt.Errorf("%w (--wait waits for it; %s)", err, giveUp)
	case err != nil:
		err = step.WithStage(nic.ErrHandover, err)
	}
	return err
}

// isUncommitted reports whether a commit of the NIC is yet to come, or was cut short.
func isUncommitted(dev inventory.Device) bool { return dev.Want.Prepared || change.IsUnfinished(&dev) }

// planEarly plans the commits of NICs while their guest is still to come, which is without network
// from its arrival to the commit. A plan is nil if it failed: the commit says why.
func (m *Manager) planEarly(ctx context.Context, g *guest.Guest, all []inventory.Device) []*change.Plan {
	plans := make([]*change.Plan, len(all))
	for i, dev := range all {
		if isUncommitted(dev) {
			plans[i], _ = m.planCommit(ctx, g, &dev)
		}
	}
	return plans
}

// lookAgain reads the NICs again of a domain whose lock was given up meanwhile. The plan for one
// that has changed is dropped.
func (m *Manager) lookAgain(ctx context.Context, all []inventory.Device, early []*change.Plan) {
	for i, dev := range all {
		now, err := m.host.Refresh(ctx, dev)
		if err != nil { // which its commit meets
			early[i] = nil
			continue
		}
		if !dev.HasLink() || now.Alias != dev.Alias {
			early[i] = nil
		}
		all[i] = now
	}
}

// planCommit plans to raise one NIC, whose guest is locked.
func (m *Manager) planCommit(ctx context.Context, g *guest.Guest, dev *inventory.Device) (*change.Plan, error) {
	plugged, err := g.Has(ctx, dev.Want.NIC)
	switch {
	case err != nil:
		return nil, step.WithStage(nic.ErrHandover, err)
	case !plugged, dev.Deleted, dev.Want.Phase == nic.PhaseDetaching:
		return nil, fmt.Errorf("%w: its state is %s (vmnet abort, or the same vmnet prepare, first)",
			nic.ErrInUse, dev.NIC().State)
	}
	return change.Commit(ctx, m.host, g, dev)
}

// commit raises one NIC, whose guest is locked and is there. If a plan was made early and fails,
// the NIC has changed meanwhile: it is planned again.
func (m *Manager) commit(ctx context.Context, g *guest.Guest, dev inventory.Device, early *change.Plan) (
	nic.ChangeResult, error,
) {
	if !isUncommitted(dev) {
		return nic.ChangeResult{NIC: dev.NIC()}, nil
	}
	p := early
	if p != nil && m.Run.Do(ctx, p.Steps) == nil {
		return m.changed(ctx, &dev, nic.ChangeResult{Changed: true, Notices: p.Notices})
	}
	if p != nil {
		now, err := m.host.Refresh(ctx, dev)
		if err != nil {
			return nic.ChangeResult{}, err
		}
		dev = now
	}
	p, err := m.planCommit(ctx, g, &dev)
	if err != nil {
		return nic.ChangeResult{}, err
	}
	if err := m.Run.Do(ctx, p.Steps); err != nil {
		return nic.ChangeResult{}, err
	}
	return m.changed(ctx, &dev, nic.ChangeResult{Changed: true, Notices: p.Notices})
}

// answeringStep tells of a machine that still answers for the addresses of a routed guest, most
// likely the host that it comes from: a neighbour that asks may take either answer.
func (m *Manager) answeringStep(res *nic.ChangeResult) step.Step {
	n := res.NIC
	return step.Step{
		Name: "answering",
		Text: fmt.Sprintf("ask %s for %s for %v, that nobody else answers",
			n.Source, nic.FormatIPs(n.IP), routed.ProbeTime),
		Do: func(ctx context.Context) error {
			uplink, err := m.host.NL.Link(n.Source)
			if err != nil || !uplink.Carrier {
				return nil // which check says
			}
			which, mac, err := m.host.Routed().Answering(ctx, uplink, n.IP)
			switch {
			case err != nil:
				res.Notices = append(res.Notices,
					fmt.Sprintf("whether another machine answers for %s on %s is not known: %v",
						nic.FormatIPs(n.IP), n.Source, err))
			case mac != nil:
				res.Notices = append(res.Notices,
					fmt.Sprintf("%s still answers for %s on %s: end the QEMU that the guest comes from; "+
						"then vmnet watch, or vmnet reconcile, withdraws the answers there", mac, which, n.Source))
			}
			return nil
		},
	}
}

// Abort removes the prepared NICs of a guest, or the one of that id if it is not empty. If its QEMU
// waits for the guest's migration, the machine is reset, which is needed to remove a device from
// it, and QEMU goes on to wait; the error matches qmp.ErrArriving if the guest is just arriving. A
// guest that is there is asked as by Detach. It is success if there is no such NIC. One that is not
// prepared, or not any more, is refused if it is named, and otherwise left alone. While libvirt
// brings a guest of its own, the error matches guest.ErrNotArrived: libvirt can give up the whole
// migration only.
func (m *Manager) Abort(ctx context.Context, t nic.Target, nicID string) (removed []nic.NIC, notices []string,
	err error,
) {
	err = m.withPrepared(ctx, t, nicID, func(g *guest.Guest, all []inventory.Device) error {
		for _, dev := range all {
			if !dev.Want.Prepared && nicID != "" {
				return fmt.Errorf("%w: NIC %s is not prepared, or was committed (vmnet detach --vm %s --nic %[2]s)",
					nic.ErrInUse, nicID, t.VM)
			}
			if !dev.Want.Prepared {
				continue
			}
			told, err := m.abort(ctx, g, t, dev)
			notices = append(notices, told...)
			if err != nil {
				return fmt.Errorf("%s: %w", dev.Want.NIC, err)
			}
			removed = append(removed, dev.NIC())
		}
		return nil
	})
	switch {
	case errors.Is(err, qemu.ErrNotFound) && t.PID == 0 && t.QMP == "": // and its NICs with it
		return removed, append(notices, fmt.Sprintf("nothing to do: no guest %q runs", t.VM)), nil
	case err != nil:
		err = fmt.Errorf("abort %s: %w", t.VM, err)
	}
	return removed, notices, err
}

// abort removes one NIC, whose guest is locked.
func (m *Manager) abort(ctx context.Context, g *guest.Guest, t nic.Target, dev inventory.Device) ([]string, error) {
	if g.Domain != nil {
		if err := g.IsHere(ctx, false); errors.Is(err, guest.ErrNotArrived) {
			return nil, fmt.Errorf(
				"%w: libvirt takes its NICs back with it (virsh domjobabort %s, where it comes from)", err, t.VM)
		}
	}
	idle, dead, err := g.Idle(ctx)
	if err != nil {
		return nil, step.WithStage(nic.ErrHandover, err)
	}
	d := &detachment{m: m, guest: idle, dev: &dev, spec: DetachSpec{Target: t, NIC: dev.Want.NIC, Force: dead}}
	_, err = d.run(ctx)
	return d.notices, err
}

// Arrived returns an error that matches guest.ErrNotArrived if the guest is still to come from
// another QEMU. Only Prepare, or libvirt's hook, should give it NICs.
func (m *Manager) Arrived(ctx context.Context, t nic.Target) error {
	g, err := m.open(ctx, t, "")
	if err != nil {
		return err
	}
	defer g.Close()
	err = g.IsHere(ctx, false)
	if err != nil && g.Domain == nil {
		err = fmt.Errorf("%w (vmnet prepare gives it NICs that are down until then)", err)
	}
	return err
}

// withPrepared calls do with the guest, locked, and those of its NICs that a commit or abort
// concerns: the one of that id or, if it is empty, all.
func (m *Manager) withPrepared(ctx context.Context, t nic.Target, nicID string,
	do func(*guest.Guest, []inventory.Device) error,
) error {
	err := nic.ValidVM(t.VM)
	if nicID != "" {
		err = errors.Join(err, nic.ValidNIC(nicID))
	}
	if err != nil {
		return step.WithStage(nic.ErrInvalid, err)
	}
	if t, err = m.holderOfPrepared(ctx, t); err != nil {
		return err
	}
	g, err := m.open(ctx, t, "")
	if err != nil {
		return err
	}
	defer g.Close()
	all, err := m.host.AllDevices(ctx) // again, for it may have taken long to get the lock
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(dev inventory.Device) bool {
		return dev.Want.VM != t.VM || nicID != "" && dev.Want.NIC != nicID || !dev.IsHeldBy(g.PID())
	})
	for _, dev := range all {
		if isUncommitted(dev) && !m.hasPrivilege(&dev) {
			return step.WithStage(nic.ErrLink, fmt.Errorf("to change %s takes root", dev.Name))
		}
	}
	return do(g.Guest, all)
}

// holderOfPrepared returns the target with the process that holds the guest's prepared NICs, which
// is more certain than one of that name: where a guest comes from and where it goes to may be on
// one machine.
func (m *Manager) holderOfPrepared(ctx context.Context, t nic.Target) (nic.Target, error) {
	if t.PID != 0 || t.QMP != "" {
		return t, nil
	}
	all, err := m.host.AllDevices(ctx)
	if err != nil {
		return t, err
	}
	all = slices.DeleteFunc(all, func(dev inventory.Device) bool {
		return dev.Want.VM != t.VM || !isUncommitted(dev) || dev.VMMPID() == 0 || dev.IsUntrusted()
	})
	for _, dev := range all {
		if err := guest.MayOpen(t, dev.Name, dev.VMMPID()); err != nil {
			return t, err
		}
		if dev.VMMPID() != all[0].VMMPID() {
			return t, fmt.Errorf("%w: %s (name one guest with --pid)", qemu.ErrAmbiguous, inventory.Whose(all))
		}
	}
	if len(all) > 0 {
		t.PID = all[0].VMMPID()
	}
	return t, nil
}
