package tapmgr

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vmnet/internal/backend"
	"vmnet/internal/inventory"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/vmm/qemu"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// Attach gives a running guest a NIC, or leaves nothing of it behind. The same
// Spec again is success without a change; another one under the same id is an
// error that Is ErrExist and tells the difference. What a crashed attach of the same
// NIC left is taken away first.
func (m *Manager) Attach(ctx context.Context, spec nic.Spec) (nic.Result, error) {
	if err := spec.Validate(); err != nil {
		return nic.Result{}, err
	}
	asked := spec
	spec = spec.WithDefaults()
	res, err := m.attachVia(ctx, spec, asked)
	if err != nil {
		return nic.Result{}, fmt.Errorf("attach %s/%s: %w", spec.VM, spec.NIC, err)
	}
	return res, nil
}

// attachVia decides how the guest gets the NIC, without waiting for anything.
func (m *Manager) attachVia(ctx context.Context, spec, asked nic.Spec) (nic.Result, error) {
	ofLibvirt, err := managed(spec.Target)
	switch {
	case err != nil:
		return nic.Result{}, err
	case !ofLibvirt && (spec.Via != "" || spec.Persistent):
		if _, err := locate(spec.Target); errors.Is(err, qemu.ErrNotFound) {
			return nic.Result{}, err
		}
		return nic.Result{}, step.WithStage(nic.ErrInvalid, fmt.Errorf("guest %s is not libvirt's: --via and --persistent do not concern it", spec.VM))
	case ofLibvirt && spec.Via == "" && spec.Switch != nil:
		return nic.Result{}, step.WithStage(nic.ErrInvalid, fmt.Errorf("guest %s is libvirt's, which cannot plug a port of a userspace switch (--via monitor hands it to QEMU, without libvirt's knowledge)", spec.VM))
	case ofLibvirt && spec.Via == "":
		spec.Via = nic.ViaLibvirt
	}
	if spec.Via == nic.ViaLibvirt {
		if err := spec.CheckLibvirt(); err != nil {
			return nic.Result{}, step.WithStage(nic.ErrInvalid, err)
		}
	}
	if spec.Via == nic.ViaLibvirt && m.HasHelper() {
		return nic.Result{}, step.WithStage(nic.ErrLink, fmt.Errorf("to hand libvirt a device by its name takes root (--via monitor does without, of which libvirt then knows nothing)"))
	}
	return m.attach(ctx, spec, asked)
}

func (m *Manager) attach(ctx context.Context, spec, asked nic.Spec) (nic.Result, error) {
	a := &attachment{NIC: m.host.New(spec, nic.PhaseAttaching), m: m, asked: asked}
	// What is wrong on this side is told without waiting for the guest.
	err := a.PlanInterface(ctx)
	if now := m.renamed(ctx, spec, err); now != "" {
		a.NIC = m.host.New(spec.WithSource(now), nic.PhaseAttaching)
		a.Notices = append(a.Notices, fmt.Sprintf("%s is called %s now", spec.Source(), now))
		err = a.PlanInterface(ctx)
	}
	if err != nil {
		return nic.Result{}, step.WithStage(nic.ErrLink, err)
	}
	a.AnyModel = asked.Model == ""
	a.asked = a.asked.WithSource(a.Record.Source) // it may have been named by an altname
	if a.vm, err = m.open(ctx, spec.Target, spec.Via); err != nil {
		return nic.Result{}, err
	}
	defer a.vm.Close()
	there, err := a.existing(ctx)
	if err != nil {
		return nic.Result{}, err
	}
	if there != nil {
		return a.repaired(ctx, there)
	}
	if a.dead != nil { // first: it may have the only free place
		if err := m.run(ctx, []step.Step{a.replaceStep()}); err != nil {
			return nic.Result{}, err
		}
	}
	if err := a.Plan(ctx); err != nil {
		return nic.Result{}, err
	}
	list, err := a.steps()
	if err != nil {
		return nic.Result{}, err
	}
	if err := m.run(ctx, list); err != nil {
		return nic.Result{}, err
	}
	if spec.Via == nic.ViaMonitor {
		a.Notices = append(a.Notices, costOfMonitor)
	}
	return a.Result(a.made, true), nil
}

// costOfMonitor is what a person should know of a NIC that libvirt does not.
const costOfMonitor = "libvirt does not know this NIC: it is not in the guest's XML, virsh does not show it, the guest cannot be migrated with it, and the domain is marked as tainted (custom-monitor)"

// attachment is one attach under way, while its guest is locked.
type attachment struct {
	*backend.NIC
	m     *Manager
	vm    vmm
	asked nic.Spec          // without its defaults
	left  *inventory.Device // what a crash left under our id
	dead  *inventory.Device // what leads nowhere under our id, as its switch has ended
	made  *inventory.Device
}

// Plan decides everything that the steps need; it changes nothing.
func (a *attachment) Plan(ctx context.Context) error {
	queues, err := a.queues(ctx)
	if err != nil {
		return err
	}
	if err := a.PlanDevice(queues); err != nil {
		return err
	}
	return step.WithStage(nic.ErrHandover, a.vm.prepare(ctx, a.NIC))
}

func (a *attachment) queues(ctx context.Context) (int, error) {
	if a.Spec.Queues != nic.QueuesAuto {
		return a.Spec.Queues, nil
	}
	if !a.Spec.IsVirtio() || a.Record.Type == nic.TypeSocket {
		return 1, nil
	}
	cpus, err := a.vm.cpus(ctx)
	if err != nil {
		return 0, step.WithStage(nic.ErrHandover, err)
	}
	return max(1, min(cpus, nic.MaxAutoQueues)), nil
}

// WaitForwarding waits until the NIC's bridge port forwards. What is on none of the kernel's
// bridges does so at once.
func (m *Manager) WaitForwarding(ctx context.Context, found nic.NIC) error {
	if found.Type != nic.TypeTap || found.Switch {
		return nil
	}
	for {
		l, err := m.host.NL.Link(found.Interface)
		if err != nil {
			return fmt.Errorf("wait for %s: %w", found.Interface, err)
		}
		if l.Port != nil && l.Port.State == rtnl.Forwarding {
			return nil
		}
		if l.Port == nil {
			return fmt.Errorf("wait for %s: it is on no bridge any more", found.Interface)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s, which is %s: %w", found.Interface, l.Port.State, context.Cause(ctx))
		case <-time.After(20 * inventory.PollEvery):
		}
	}
}
