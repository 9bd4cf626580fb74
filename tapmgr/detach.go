package tapmgr

import (
	"context"
	"errors"
	"fmt"
	"os"

	"vmnet/internal/backend"
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
	// Force cuts the NIC off at once instead of waiting for the guest, which then
	// keeps a dead device until it lets go of it.
	Force bool
	// Persistent removes it from what libvirt has stored of the guest, too.
	Persistent bool
}

// DetachResult is what Detach did.
type DetachResult struct {
	Changed bool     // false where there was nothing to detach
	Notices []string // what a person should know, though it is no error
}

// Detach takes a NIC away: it asks the guest, waits until that has let go of it or
// ctx ends, then removes QEMU's end, with which the tap goes. What is gone
// already is success. A guest that refuses, or does not answer, keeps a working NIC.
func (m *Manager) Detach(ctx context.Context, spec DetachSpec) (DetachResult, error) {
	if err := errors.Join(nic.ValidVM(spec.VM), nic.ValidNIC(spec.NIC)); err != nil {
		return DetachResult{}, step.WithStage(nic.ErrInvalid, err)
	}
	res, err := m.detach(ctx, spec)
	if err != nil {
		return res, fmt.Errorf("detach %s/%s: %w", spec.VM, spec.NIC, err)
	}
	return res, nil
}

func (m *Manager) detach(ctx context.Context, spec DetachSpec) (DetachResult, error) {
	link, err := m.host.Find(ctx, spec.Target, spec.NIC)
	if err != nil {
		return DetachResult{}, err
	}
	if err := mayOpen(spec.Target, link); err != nil {
		return DetachResult{}, err
	}
	d := &detachment{m: m, spec: spec, link: link}
	if err := d.cutFirst(ctx); err != nil {
		return DetachResult{}, err
	}
	d.vm, err = m.openHolder(ctx, spec.Target, link)
	switch {
	case errors.Is(err, qemu.ErrNotFound) && spec.Persistent:
		return m.detachStored(ctx, spec, link)
	case errors.Is(err, qemu.ErrNotFound) && spec.PID == 0 && spec.QMP == "":
		return m.detachDead(ctx, spec, link)
	case err != nil && d.cut:
		return DetachResult{Changed: true}, fmt.Errorf("%w; %s is cut off, down and on no bridge: detach again when the monitor answers", err, link.Name)
	case err != nil:
		return DetachResult{}, err
	}
	defer func() { _ = d.vm.Close() }()
	return d.run(ctx)
}

// cutFirst cuts a NIC off before its guest is asked for anything, where that is wanted: it
// needs no monitor. Not where the guest is named by its monitor alone, which may be another's.
func (d *detachment) cutFirst(ctx context.Context) error {
	if !d.spec.Force || !d.mayChange() || d.link.VMMPID() == 0 || d.spec.QMP != "" || d.link.IsSocket() && d.link.SwitchPort.Err != nil {
		return nil
	}
	if err := d.isOurs(d.spec.PID); err != nil {
		return err
	}
	d.cut = true
	return d.m.run(ctx, []step.Step{d.markStep(), d.cutStep()})
}

// isOurs tells by an error that the link is held by another process than the guest's; 0 is any.
func (d *detachment) isOurs(pid int) error {
	if held := d.link.VMMPID(); pid != 0 && held != 0 && held != pid {
		return fmt.Errorf("%w: interface %s belongs to process %d, not to %d (two guests of one name?)", nic.ErrInUse, d.link.Name, held, pid)
	}
	return nil
}

// run detaches, now that the guest is locked.
func (d *detachment) run(ctx context.Context) (res DetachResult, err error) {
	if d.link, err = d.m.host.Find(ctx, nic.Target{VM: d.spec.VM, PID: d.vm.process()}, d.spec.NIC); err != nil { // again: it may have changed
		return res, err
	}
	if d.link != nil {
		if err := d.isOurs(d.vm.process()); err != nil {
			return res, err
		}
	}
	if err := d.byMonitor(ctx); err != nil {
		return res, err
	}
	device, err := d.vm.has(ctx, d.spec.NIC)
	if err != nil {
		return res, step.WithStage(nic.ErrHandover, err)
	}
	forget, err := d.forget(ctx)
	if err != nil {
		return res, err
	}
	res.Changed = d.link != nil || device || len(forget) > 0
	err = d.m.run(ctx, append(d.steps(device), forget...))
	if errors.Is(err, qmp.ErrClosed) && d.wentWithGuest(ctx) {
		d.notices, err = append(d.notices, "the guest ended meanwhile, and the NIC with it"), nil
	}
	if err == nil {
		d.endLabels()
	}
	res.Notices = d.notices
	return res, err
}

// endLabels has the guest's process say no more that it has the NIC.
func (d *detachment) endLabels() {
	if err := d.m.host.EndLabels(d.vm.process(), d.spec.VM, d.spec.NIC); err != nil {
		d.notices = append(d.notices, fmt.Sprintf("its label in process %d stays, so the NIC is listed as gone if another one there loses its device: %v", d.vm.process(), err))
	}
}

// byMonitor goes on over the monitor of a guest of libvirt's, where it is seen only now that the
// NIC was handed over by that: the label of a QEMU of libvirt's user counts since libvirt has
// vouched for the process.
func (d *detachment) byMonitor(ctx context.Context) error {
	dom, ok := d.vm.(*domain)
	if !ok || d.link == nil || d.link.Want.Via != nic.ViaMonitor {
		return nil
	}
	vm, err := dom.monitor(ctx)
	if err == nil {
		d.vm = vm
	}
	return err
}

// forget are the steps after which the NIC does not come back: when the guest is restored, and
// where that is asked for when it starts.
func (d *detachment) forget(ctx context.Context) ([]step.Step, error) {
	dom, ok := d.vm.(*domain)
	if !ok {
		if d.spec.Persistent {
			return nil, step.WithStage(nic.ErrInvalid, errors.New("libvirt has not stored this NIC (without --persistent)"))
		}
		return nil, nil
	}
	list, err := dom.forgetSteps(ctx, d.spec.NIC, d.spec.Persistent)
	if err != nil || d.spec.Persistent {
		return step.InStage(nic.ErrHandover, list...), step.WithStage(nic.ErrHandover, err)
	}
	stored, err := dom.stored(ctx, d.spec.NIC)
	if err != nil {
		return nil, step.WithStage(nic.ErrHandover, err)
	}
	if stored != nil {
		d.notices = append(d.notices, "libvirt has it stored, the guest will start with it again (vmnet detach --persistent)")
	}
	return step.InStage(nic.ErrHandover, list...), nil
}

// wentWithGuest tells whether the guest has ended, and so nothing is left to detach.
func (d *detachment) wentWithGuest(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), backend.ReleaseWait)
	defer cancel()
	if _, err := qemu.ByPID(d.vm.process()); !errors.Is(err, qemu.ErrNotFound) && d.vm.alive() == nil {
		return false
	}
	return d.link == nil || d.m.host.WaitGone(ctx, d.link) == nil
}

// mayOpen refuses the monitor of a holder of the link that is run by another user than root and the
// caller, unless the guest is named by more than its name, as qemu.Find does: anybody may choose
// that.
func mayOpen(t nic.Target, link *inventory.Device) error {
	if link == nil || t.PID != 0 || t.QMP != "" {
		return nil
	}
	proc, err := qemu.ByPID(link.VMMPID())
	if err != nil || proc.UID == 0 || proc.UID == os.Geteuid() || proc.Libvirt { // no holder is seen: qemu.Find decides; libvirt knows its own
		return nil
	}
	return fmt.Errorf("%w: %s is held by process %d, which uid %d runs (name it with --pid %d if that is the guest you mean)", qemu.ErrOtherUser, link.Name, proc.PID, proc.UID, proc.PID)
}

// openHolder opens the guest that holds the link, which is surer than one of
// that name; without a link, or where no holder is seen, the one that is named.
func (m *Manager) openHolder(ctx context.Context, t nic.Target, link *inventory.Device) (vmm, error) {
	if link != nil && t.PID == 0 && t.QMP == "" {
		if link.IsOrphaned() {
			return nil, fmt.Errorf("%w: nobody holds %s", qemu.ErrNotFound, link.Name)
		}
		t.PID = link.VMMPID()
	}
	via := nic.Via("")
	if link != nil {
		via = link.Want.Via
	}
	return m.open(ctx, t, via)
}

// detachDead detaches from a guest that is not there (any more): at most its link is.
func (m *Manager) detachDead(ctx context.Context, spec DetachSpec, link *inventory.Device) (DetachResult, error) {
	if link == nil {
		return DetachResult{Notices: []string{fmt.Sprintf("nothing to do: no guest %q runs, and no link is its %s", spec.VM, spec.NIC)}}, nil
	}
	err := m.run(ctx, []step.Step{m.deleteStep(link)})
	return DetachResult{Changed: true}, err
}

// detachStored detaches from a guest of libvirt's that is off.
func (m *Manager) detachStored(ctx context.Context, spec DetachSpec, link *inventory.Device) (DetachResult, error) {
	d, err := m.openStored(ctx, spec.VM)
	if err != nil {
		return DetachResult{}, err
	}
	defer d.Close()
	forget, err := d.forgetSteps(ctx, spec.NIC, true)
	if err != nil {
		return DetachResult{}, step.WithStage(nic.ErrHandover, err)
	}
	var list []step.Step
	if link != nil {
		list = append(list, m.deleteStep(link))
	}
	list = append(list, step.InStage(nic.ErrHandover, forget...)...)
	return DetachResult{Changed: len(list) > 0}, m.run(ctx, list)
}

// deleteStep deletes a link that nobody holds.
func (m *Manager) deleteStep(dev *inventory.Device) step.Step {
	return step.Step{
		Name: "delete",
		Text: deleteText(dev),
		Do: func(ctx context.Context) error {
			now, err := m.host.Reread(ctx, dev)
			if err != nil || now == nil {
				return err
			}
			if !now.IsOrphaned() || dev.NetnsFile != nil { // QEMU would spin on a tap that is deleted under it
				return fmt.Errorf("%w: interface %s", nic.ErrInUse, dev.Name)
			}
			return m.host.Delete(now)
		},
	}
}

func deleteText(dev *inventory.Device) string {
	if dev.IsSocket() {
		return dev.SwitchPortText() + ", which nobody holds"
	}
	return fmt.Sprintf("RTM_DELLINK %s, which nobody holds", dev.Name)
}
