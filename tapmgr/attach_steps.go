package tapmgr

import (
	"context"
	"errors"
	"fmt"

	"vmnet/internal/step"
	"vmnet/vhost"
)

// steps is an attach from the first device to the last check, in order. It is
// what a run does and undoes, a dry run prints, and tests break.
func (a *attachment) steps() []step.Step {
	var list []step.Step
	if a.left != nil {
		list = append(list, a.releaseStep())
	}
	list = append(list, inStage(ErrLink, a.hostSteps()...)...)
	list = append(list, inStage(ErrHandover, a.vm.PlugSteps(a.nic)...)...)
	return append(list, a.closeStep(), a.verifyStep())
}

func (a *attachment) releaseStep() step.Step {
	return step.Step{
		Name: "release",
		Text: fmt.Sprintf("take back what a crash left of %s in the guest", a.left.Name),
		Do:   func(ctx context.Context) error { return a.m.release(ctx, a.vm, a.left) },
	}
}

// hostSteps make the device and open vhost-net.
func (a *attachment) hostSteps() []step.Step {
	alias, _ := a.record.encode() // plan has tried it
	list := a.side.steps(a.vm.pid, alias, a.record.Queues)
	for i := range list {
		do := list[i].Do
		list[i].Do = func(ctx context.Context) error {
			if err := do(ctx); err != nil {
				return err
			}
			a.take()
			return nil
		}
	}
	for i := range a.nic.Vhosts {
		list = append(list, a.vhostStep(i))
	}
	return list
}

// take tells the hand-over which fds are open by now.
func (a *attachment) take() {
	copy(a.nic.Queues, a.side.queues())
	for i := range a.nic.Netns {
		a.nic.Netns[i] = a.side.netns()
	}
}

func (a *attachment) vhostStep(i int) step.Step {
	return step.Step{
		Name: fmt.Sprintf("vhost %d", i),
		Text: fmt.Sprintf("open %s: queue %d", vhost.Device, i),
		Do: func(context.Context) error {
			f, err := vhost.Open()
			if err != nil {
				return err
			}
			a.vhosts = append(a.vhosts, f)
			a.nic.Vhosts[i] = f
			return nil
		},
		Undo: func(context.Context) error { return a.closeVhosts() },
	}
}

func (a *attachment) closeVhosts() error {
	var errs []error
	for _, f := range a.vhosts {
		errs = append(errs, f.Close())
	}
	a.vhosts = nil
	return errors.Join(errs...)
}

// closeStep leaves the device to QEMU: from here on it lives as long as QEMU holds it.
func (a *attachment) closeStep() step.Step {
	return step.Step{
		Name: "close",
		Text: "close our copies of the fds",
		Do:   func(context.Context) error { return errors.Join(a.side.close(), a.closeVhosts()) },
	}
}

// verifyStep reads back from the kernel what should be, and only then says in
// the alias that the NIC is plugged.
func (a *attachment) verifyStep() step.Step {
	r := a.record
	r.Phase = plugged
	alias, _ := r.encode() // shorter than the one that plan has tried
	return step.Step{
		Name: "verify",
		Text: fmt.Sprintf("read the device back; RTM_SETLINK: alias %q", alias),
		Do: func(context.Context) error {
			made, err := a.side.verify(a.vm.pid, alias)
			if err != nil {
				return in(ErrLink, err)
			}
			made.want = r
			a.made = made
			return nil
		},
	}
}
