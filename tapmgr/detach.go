package tapmgr

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vmnet/internal/backend"
	"vmnet/internal/guest"
	"vmnet/internal/inventory"
	"vmnet/internal/vmm/qemu"
	"vmnet/qmp"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// DetachSpec says which NIC a guest should lose.
type DetachSpec struct {
	nic.Target
	NIC string
	// Force disconnects the NIC at once instead of waiting for the guest, which then keeps a dead
	// device until it releases that.
	Force bool
	// Persistent also removes the NIC from the domain that libvirt stores.
	Persistent bool
}

// DetachResult is what Detach did.
type DetachResult struct {
	Changed bool     // false if there was nothing to detach
	Notices []string // what a person should know although it is no error
}

// Detach takes a NIC away. Under the one ctx it waits for the guest's lock (another vmnet or client
// of the monitor), for the guest's release of the device, and for the end of the host interface,
// which goes with QEMU's end. If the NIC is gone already, Detach succeeds.
//
// A guest that refuses (qmp.ErrGuestRefused), or whose VMM refuses to ask it, keeps a working NIC.
// A guest that has not answered when ctx ends (qmp.ErrUnplugTimeout) keeps it too, marked as
// detaching: it may still release the device, and then the next Detach, Attach or Reconcile removes
// the rest. If the guest ends meanwhile, Detach succeeds.
func (m *Manager) Detach(ctx context.Context, spec DetachSpec) (DetachResult, error) {
	if err := errors.Join(nic.ValidVM(spec.VM), nic.ValidNIC(spec.NIC)); err != nil {
		return DetachResult{}, step.WithStage(nic.ErrInvalid, err)
	}
	res, err := m.detach(ctx, spec)
	if err == nil {
		err = m.leaveRows(ctx, spec, &res)
	}
	if err != nil {
		return res, fmt.Errorf("detach %s/%s: %w", spec.VM, spec.NIC, err)
	}
	return res, nil
}

func (m *Manager) detach(ctx context.Context, spec DetachSpec) (DetachResult, error) {
	dev, err := m.host.Find(ctx, spec.Target, spec.NIC)
	if err != nil {
		return DetachResult{}, err
	}
	if dev != nil && dev.IsOpenedByName() {
		return m.detachByName(ctx, spec, dev)
	}
	if dev != nil {
		if err := guest.MayOpen(spec.Target, dev.Name, dev.VMMPID()); err != nil {
			return DetachResult{}, err
		}
	}
	found, findErr := m.findHolder(spec.Target, dev)
	if findErr == nil {
		defer found.Close()
	}
	isCut, err := m.cutFirst(ctx, spec, dev)
	if err != nil {
		return DetachResult{}, err
	}
	g, err := m.openFound(ctx, found, findErr, dev)
	switch {
	case errors.Is(err, qemu.ErrNotFound) && spec.Persistent:
		return m.detachStored(ctx, spec, dev)
	case errors.Is(err, qemu.ErrNotFound) && spec.PID == 0 && spec.QMP == "":
		return m.detachDead(ctx, spec, dev)
	case err != nil && isCut:
		return DetachResult{Changed: true},
			fmt.Errorf("%w; %s is cut off, down and on no bridge: detach again when the monitor answers", err, dev.Name)
	case err != nil:
		return DetachResult{}, err
	}
	return m.detachFrom(ctx, spec, g, dev, isCut)
}

// findHolder finds the guest that holds the NIC, which is more certain than one of that name. If
// there is no NIC, or no holder is seen, it finds the guest that the target names.
func (m *Manager) findHolder(t nic.Target, dev *inventory.Device) (*guest.Found, error) {
	if dev != nil && t.PID == 0 && t.QMP == "" {
		if dev.IsOrphaned() {
			return nil, fmt.Errorf("%w: nobody holds %s", qemu.ErrNotFound, dev.Name)
		}
		t.PID = dev.VMMPID()
	}
	return m.finder().Find(t)
}

func (m *Manager) openFound(ctx context.Context, found *guest.Found, findErr error,
	dev *inventory.Device,
) (*guest.Guest, error) {
	if findErr != nil {
		return nil, findErr
	}
	via := nic.Via("")
	if dev != nil {
		via = dev.Want.Via
	}
	g, err := m.finder().Open(ctx, found, via)
	if err != nil && found.HasEnded() {
		err = fmt.Errorf("%w: it ended meanwhile: %w", qemu.ErrNotFound, err)
	}
	return g, err
}

// cutFirst disconnects a NIC by force before its guest is asked for anything: that needs no
// monitor. It does not if the guest is named by its monitor alone, which may be another guest's.
func (m *Manager) cutFirst(ctx context.Context, spec DetachSpec, dev *inventory.Device) (isCut bool, err error) {
	if !spec.Force || !m.mayChange(dev) || dev.VMMPID() == 0 || spec.QMP != "" ||
		dev.IsSocket() && dev.SwitchPort.Err != nil {
		return false, nil
	}
	if err := isHeldBy(dev, spec.PID); err != nil {
		return false, err
	}
	return true, m.Run.Do(ctx, m.cutSteps(dev))
}

// mayChange reports whether there is a host interface that the caller has the privilege to change.
// If not, the guest and QEMU release it all the same, and it goes with that.
func (m *Manager) mayChange(dev *inventory.Device) bool {
	return dev != nil && !dev.Deleted && m.hasPrivilege(dev)
}

// isHeldBy returns an error if another process than pid holds the NIC; 0 is any.
func isHeldBy(dev *inventory.Device, pid int) error {
	if held := dev.VMMPID(); pid != 0 && held != 0 && held != pid {
		return fmt.Errorf("%w: interface %s belongs to process %d, not to %d (two guests of one name?)",
			nic.ErrInUse, dev.Name, held, pid)
	}
	return nil
}

// detachFrom detaches dev, nil if it was not found, now that the guest is locked. It closes g.
func (m *Manager) detachFrom(ctx context.Context, spec DetachSpec, g *guest.Guest, dev *inventory.Device,
	isCut bool,
) (DetachResult, error) {
	d := &detachment{m: m, spec: spec, guest: g, isCut: isCut}
	defer func() { _ = d.guest.Close() }()
	var err error
	if d.dev, err = m.findAgain(ctx, dev, nic.Target{VM: spec.VM, PID: g.PID()}, spec.NIC); err != nil {
		return DetachResult{}, err
	}
	if d.dev != nil {
		if err := isHeldBy(d.dev, g.PID()); err != nil {
			return DetachResult{}, err
		}
		if d.dev.Want.Prepared && !spec.Force {
			return DetachResult{}, fmt.Errorf("%w: it is prepared (vmnet abort --vm %s --nic %s removes it)",
				nic.ErrInUse, spec.VM, spec.NIC)
		}
	}
	// The label of a libvirt user's QEMU, which says that the NIC was handed over by its monitor,
	// counts only since libvirt has vouched for the process.
	if g.Domain != nil && d.dev != nil && d.dev.Want.Via == nic.ViaMonitor {
		if g, err = g.Domain.ByMonitor(ctx); err != nil {
			return DetachResult{}, err
		}
		d.guest = g
	}
	return d.run(ctx)
}

// findAgain finds the NIC again after the wait for the guest's lock, in which it may have changed.
// Processes are looked through only if the link that was found is not the guest's any more.
func (m *Manager) findAgain(ctx context.Context, dev *inventory.Device, t nic.Target,
	nicID string,
) (*inventory.Device, error) {
	if dev != nil && dev.HasLink() {
		now, err := m.host.Refresh(ctx, *dev)
		if err == nil {
			if held, err := m.host.HeldBy(&now, t.PID); err == nil && held {
				return &now, nil
			}
		}
	}
	return m.host.Find(ctx, t, nicID)
}

// run detaches.
func (d *detachment) run(ctx context.Context) (DetachResult, error) {
	plugged, err := d.guest.Has(ctx, d.spec.NIC)
	if err != nil {
		return DetachResult{}, step.WithStage(nic.ErrHandover, err)
	}
	forget, err := d.forgetSteps(ctx)
	if err != nil {
		return DetachResult{}, err
	}
	changed := d.dev != nil || plugged || len(forget) > 0
	err = d.m.Run.Do(ctx, append(d.steps(plugged), forget...))
	if errors.Is(err, qmp.ErrClosed) && d.wentWithGuest(ctx) {
		d.notice("the guest ended meanwhile, and the NIC with it")
		err = nil
	}
	if err == nil {
		d.endLabels()
	}
	return DetachResult{Changed: changed, Notices: d.notices}, err
}

// endLabels ends what the guest's process says of the NIC, which it has no more.
func (d *detachment) endLabels() {
	pid := d.guest.PID()
	if err := d.m.host.EndLabels(pid, d.spec.VM, d.spec.NIC, ""); err != nil {
		d.notice(
			"its label in process %d stays, so the NIC is listed as gone if another one there loses its device: %v",
			pid, err)
	}
}

// forgetSteps keep the NIC from coming back: when the guest is restored and, if the spec is
// Persistent, when it starts.
func (d *detachment) forgetSteps(ctx context.Context) ([]step.Step, error) {
	dom := d.guest.Domain
	if dom == nil {
		if d.spec.Persistent {
			return nil,
				step.WithStage(nic.ErrInvalid, errors.New("libvirt has not stored this NIC (without --persistent)"))
		}
		return nil, nil
	}
	list, err := dom.ForgetSteps(ctx, d.spec.NIC, d.spec.Persistent)
	if err == nil && !d.spec.Persistent {
		isStored := false
		if isStored, err = dom.Stored(ctx, d.spec.NIC); isStored {
			d.notice("libvirt has it stored, the guest will start with it again (vmnet detach --persistent)")
		}
	}
	if err != nil {
		return nil, step.WithStage(nic.ErrHandover, err)
	}
	return step.InStage(nic.ErrHandover, list...), nil
}

// wentWithGuest reports whether the guest has ended, so that nothing is left to detach.
func (d *detachment) wentWithGuest(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), backend.ReleaseWait)
	defer cancel()
	if _, err := qemu.ByPID(d.guest.PID()); !errors.Is(err, qemu.ErrNotFound) && d.guest.Alive() == nil {
		return false
	}
	return d.dev == nil || d.m.host.WaitGone(ctx, d.dev) == nil
}

// detachDead detaches from a guest that does not run: at most its link is there.
func (m *Manager) detachDead(ctx context.Context, spec DetachSpec, dev *inventory.Device) (DetachResult, error) {
	if dev == nil {
		return DetachResult{Notices: []string{fmt.Sprintf("nothing to do: no guest %q runs, and no link is its %s",
			spec.VM, spec.NIC)}}, nil
	}
	err := m.Run.Do(ctx, m.andTidy(dev, m.deleteStep(dev)))
	return DetachResult{Changed: true}, err
}

// detachStored detaches from a libvirt guest that is off.
func (m *Manager) detachStored(ctx context.Context, spec DetachSpec, dev *inventory.Device) (DetachResult, error) {
	d, err := m.finder().OpenStored(ctx, spec.VM)
	if err != nil {
		return DetachResult{}, err
	}
	defer d.Close()
	forget, err := d.ForgetSteps(ctx, spec.NIC, true)
	if err != nil {
		return DetachResult{}, step.WithStage(nic.ErrHandover, err)
	}
	var list []step.Step
	if dev != nil {
		list = m.andTidy(dev, m.deleteStep(dev))
	}
	list = append(list, step.InStage(nic.ErrHandover, forget...)...)
	return DetachResult{Changed: len(list) > 0}, m.Run.Do(ctx, list)
}

// deleteStep deletes a link that no process holds. A process that is ending, which is not found as
// a guest any more, holds its link a little longer.
func (m *Manager) deleteStep(dev *inventory.Device) step.Step {
	text := fmt.Sprintf("RTM_DELLINK %s, which nobody holds", dev.Name)
	if dev.IsSocket() {
		text = dev.SwitchPortText() + ", which nobody holds"
	}
	return step.Step{
		Name: "delete",
		Text: text,
		Do:   func(ctx context.Context) error { return m.deleteUnheld(ctx, dev) },
	}
}

// deleteUnheld deletes a link once no process holds it, for which it waits backend.ReleaseWait.
func (m *Manager) deleteUnheld(ctx context.Context, dev *inventory.Device) error {
	ctx, cancel := context.WithTimeout(ctx, backend.ReleaseWait)
	defer cancel()
	for {
		now, err := m.host.Reread(ctx, dev)
		switch {
		case ctx.Err() != nil, err == nil && now != nil && dev.NetnsFile != nil:
			return fmt.Errorf("%w: interface %s", nic.ErrInUse, dev.Name)
		case err != nil || now == nil:
			return err
		case now.IsOrphaned(): // QEMU would spin on a tap that is deleted under it
			return m.host.Delete(now)
		}
		select {
		case <-ctx.Done():
		case <-time.After(inventory.PollEvery):
		}
	}
}

// leaveRows removes what a former NIC of that name has left in Open vSwitch's database when its
// guest ended.
func (m *Manager) leaveRows(ctx context.Context, spec DetachSpec, res *DetachResult) error {
	if m.HasHelper() {
		return nil
	}
	tidy := func(dry bool) ([]nic.Action, error) {
		of := func(vm, nicID string) bool { return vm == spec.VM && nicID == spec.NIC }
		return m.host.TidyOVS(ctx, dry, of, m.host.Databases()...)
	}
	rows, err := tidy(true)
	if err != nil { // no NIC of that name need ever have been there
		res.Notices = append(res.Notices, fmt.Sprintf("Open vSwitch was not asked whether a port is left: %v", err))
		return nil
	}
	if len(rows) == 0 {
		return nil
	}
	res.Changed, res.Notices = true, nil
	return m.Run.Do(ctx, []step.Step{{
		Name:  "leave",
		Text:  fmt.Sprintf("OVSDB transact: delete Port %s, whose device has gone", rows[0].Interface),
		Stage: nic.ErrLink,
		Do:    func(context.Context) error { _, err := tidy(false); return err },
	}})
}
