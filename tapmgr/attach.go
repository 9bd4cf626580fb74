package tapmgr

import (
	"context"
	"fmt"
	"time"

	"vmnet/internal/rtnl"
	"vmnet/internal/step"
)

// Result is what Attach did.
type Result struct {
	NIC       NIC
	Changed   bool          // false where the NIC was there already, as asked for
	ForwardIn time.Duration // until the bridge port forwards; 0 where it does
	Notices   []string      // what a person should know, though it is no error
}

// Attach gives a running guest a NIC, or leaves nothing of it behind. The same
// Spec again is success without a change; another one under the same id is an
// error that Is ErrExist and tells the difference. What a crashed attach of the same
// NIC left is taken away first.
func (m *Manager) Attach(ctx context.Context, spec Spec) (Result, error) {
	if err := spec.Validate(); err != nil {
		return Result{}, err
	}
	asked := spec
	spec = spec.withDefaults()
	res, err := m.attach(ctx, spec, asked)
	if err != nil {
		return Result{}, fmt.Errorf("attach %s/%s: %w", spec.VM, spec.NIC, err)
	}
	return res, nil
}

func (m *Manager) attach(ctx context.Context, spec, asked Spec) (Result, error) {
	a := &attachment{half: m.half(spec, attaching), asked: asked}
	// What is wrong on this side is told without waiting for the guest.
	if err := a.side.plan(&a.record); err != nil {
		return Result{}, in(ErrLink, err)
	}
	a.asked = a.asked.on(a.record.Source) // it may have been named by an altname
	var err error
	if a.vm, err = m.open(ctx, spec.Target); err != nil {
		return Result{}, err
	}
	defer a.vm.Close()
	there, err := a.existing(ctx)
	if err != nil {
		return Result{}, err
	}
	if there != nil {
		return a.repaired(ctx, there)
	}
	if err := a.plan(ctx); err != nil {
		return Result{}, err
	}
	if err := m.run(ctx, a.steps()); err != nil {
		return Result{}, err
	}
	return a.result(a.made, true), nil
}

// attachment is one attach under way, while its guest is locked.
type attachment struct {
	*half
	vm    *vm
	asked Spec  // without its defaults
	left  *ours // what a crash left under our id
	made  *ours
}

// plan decides everything that the steps need; it changes nothing.
func (a *attachment) plan(ctx context.Context) error {
	queues, err := a.queues(ctx)
	if err != nil {
		return err
	}
	if err := a.half.plan(queues); err != nil {
		return err
	}
	if err := a.place(ctx); err != nil {
		return err
	}
	a.nic, err = a.vm.TypeOptions(ctx, a.nic)
	return in(ErrHandover, err)
}

// place finds where the device can be plugged, unless options say so.
func (a *attachment) place(ctx context.Context) error {
	if a.nic.Bus != "" {
		return nil
	}
	port, err := a.vm.FreePort(ctx)
	if err != nil {
		return in(ErrHandover, err)
	}
	a.nic.Bus = port.Bus
	if a.nic.Addr == "" {
		a.nic.Addr = port.Addr
	}
	return nil
}

func (a *attachment) queues(ctx context.Context) (int, error) {
	if a.spec.Queues != QueuesAuto {
		return a.spec.Queues, nil
	}
	if !a.spec.virtio() {
		return 1, nil
	}
	cpus, err := a.vm.CPUs(ctx)
	if err != nil {
		return 0, in(ErrHandover, err)
	}
	return max(1, min(cpus, MaxAutoQueues)), nil
}

// WaitForwarding waits until the NIC's bridge port forwards. What is on no bridge does so at once.
func (m *Manager) WaitForwarding(ctx context.Context, nic NIC) error {
	if nic.Type != TypeTap {
		return nil
	}
	for {
		l, err := m.nl.Link(nic.Interface)
		if err != nil {
			return fmt.Errorf("wait for %s: %w", nic.Interface, err)
		}
		if l.Port != nil && l.Port.State == rtnl.Forwarding {
			return nil
		}
		if l.Port == nil {
			return fmt.Errorf("wait for %s: it is on no bridge any more", nic.Interface)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s, which is %s: %w", nic.Interface, l.Port.State, context.Cause(ctx))
		case <-time.After(20 * pollEvery):
		}
	}
}

// inStage makes the errors of all steps Is the stage.
func inStage(stage error, steps ...step.Step) []step.Step {
	for i := range steps {
		do := steps[i].Do
		steps[i].Do = func(ctx context.Context) error { return in(stage, do(ctx)) }
	}
	return steps
}
