package tapmgr

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"vmnet/internal/inventory"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// TapSpec is the request for a tap that a VMM opens by its name.
type TapSpec struct {
	nic.Spec
	User int           // uid of the VMM, which then needs no privilege to open the tap; 0 for root
	Wait time.Duration // how long the tap waits for its VMM, in whole seconds
}

// CreateTap makes a tap for a VMM that opens it by its name, such as Firecracker, and that has no
// monitor which vmnet knows. The tap waits for the VMM, and ends with it: it is persistent until
// the process that Keep starts has seen the VMM open it. A tap that waits already is replaced; if a
// VMM has it, the error matches nic.ErrExist. Only root may do so.
func (m *Manager) CreateTap(ctx context.Context, spec TapSpec) (nic.Result, error) {
	spec.Via, spec.Vhost = nic.ViaName, nic.VhostOff
	if err := errors.Join(spec.Validate(), spec.CheckPlace()); err != nil {
		return nic.Result{}, err
	}
	spec.Spec = spec.WithDefaults()
	res, err := m.createTap(ctx, spec)
	if err != nil {
		return nic.Result{}, fmt.Errorf("tap %s/%s: %w", spec.VM, spec.NIC, err)
	}
	return res, nil
}

func (m *Manager) createTap(ctx context.Context, spec TapSpec) (nic.Result, error) {
	if m.HasHelper() {
		return nic.Result{}, step.WithStage(nic.ErrLink, errors.New("a tap that a VMM opens by its name takes root "+
			"(qemu-netup gives a VMM its taps as fds, for users too)"))
	}
	h := m.host.New(spec.Spec, nic.PhaseAttaching)
	h.Opener = spec.User
	steps, err := m.host.PlanTap(ctx, h, spec.Wait, func(ctx context.Context) error {
		return m.Keep(ctx, spec.VM, spec.NIC)
	})
	if err != nil {
		return nic.Result{}, err
	}
	if err := m.Run.Do(ctx, steps); err != nil {
		return nic.Result{}, err
	}
	l, err := m.host.NL.Link(h.Interface.Name)
	if errors.Is(err, fs.ErrNotExist) { // a dry run
		return h.Result(nil, true), nil
	}
	if err != nil {
		return nic.Result{}, err
	}
	dev := &inventory.Device{Link: l, Want: h.Record, MasterName: m.host.MasterName(l)}
	res := h.Result(dev, true)
	res.NIC = dev.NIC() // which nobody holds yet
	return res, nil
}

// KeepTap waits until a VMM has opened the tap of that NIC, and makes it end with the VMM: see
// backend.Maker.KeepTap, also for its errors.
func (m *Manager) KeepTap(ctx context.Context, vm, nicID string, ready func() error) error {
	dev, err := m.host.Find(ctx, nic.Target{VM: vm}, nicID)
	if err != nil {
		return err
	}
	if dev == nil || !dev.IsOpenedByName() {
		return fmt.Errorf("NIC %s/%s: %w: no tap waits for a VMM", vm, nicID, fs.ErrNotExist)
	}
	return m.host.KeepTap(ctx, dev, ready)
}

// openedByName mends a NIC whose VMM has opened it by its name, and completes it if the process
// that waited for that has ended before.
func (r *reconciler) openedByName(ctx context.Context, dev inventory.Device) {
	if dev.Want.Phase == nic.PhaseStarting {
		r.Do(dev, "its VMM has opened it, and it goes with that", func() error { return r.m.host.GiveTo(ctx, &dev) })
		return
	}
	r.Mend(ctx, dev)
}

// detachByName removes a tap that waits for a VMM. A VMM that has opened it by its name cannot be
// asked to close it: the tap can only be cut off.
func (m *Manager) detachByName(ctx context.Context, spec DetachSpec, dev *inventory.Device) (DetachResult, error) {
	pid := dev.VMMPID()
	switch {
	case spec.PID != 0 && spec.PID != pid, spec.QMP != "":
		return DetachResult{}, fmt.Errorf("%w: interface %s %s (leave --pid and --qmp out)",
			nic.ErrInUse, dev.Name, ownerOf(dev))
	case !dev.Tun.Attached && pid == 0:
		err := m.Run.Do(ctx, m.andTidy(dev, m.removeNamedStep(dev)))
		return DetachResult{Changed: true}, err
	case !spec.Force:
		return DetachResult{}, fmt.Errorf("%w: interface %s, which %s has opened by its name, and nobody can ask it "+
			"to close it (end it, and the tap goes; --force cuts the tap off)", nic.ErrInUse, dev.Name, programOf(pid))
	}
	res := DetachResult{Changed: true, Notices: []string{
		fmt.Sprintf("%s is down and on no bridge; it goes when %s closes it or ends", dev.Name, programOf(pid)),
	}}
	return res, m.Run.Do(ctx, m.cutSteps(dev))
}

// ownerOf says whose a tap is that a VMM opens by its name.
func ownerOf(dev *inventory.Device) string {
	pid := dev.VMMPID()
	if pid == 0 && !dev.Tun.Attached {
		return "waits for a VMM, and belongs to no process"
	}
	return "belongs to " + programOf(pid) + ", which vmnet knows no monitor of"
}

func (m *Manager) removeNamedStep(dev *inventory.Device) step.Step {
	return step.Step{
		Name: "delete", Stage: nic.ErrLink,
		Text: fmt.Sprintf("TUNSETPERSIST 0 on %s, which waits for a VMM; close it", dev.Name),
		Do: func(ctx context.Context) error {
			if err := m.host.RemoveNamed(ctx, dev.Link); err != nil {
				return err
			}
			if there, err := m.host.Exists(ctx, dev); err != nil || !there {
				return err
			}
			return fmt.Errorf("%w: interface %s, which a VMM has opened meanwhile", nic.ErrInUse, dev.Name)
		},
	}
}

// programOf names a process for an error; 0 is one that is not seen.
func programOf(pid int) string {
	if pid == 0 {
		return "a process that cannot be seen from here"
	}
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return fmt.Sprintf("process %d", pid)
	}
	return fmt.Sprintf("process %d (%s)", pid, strings.TrimSpace(string(name)))
}
