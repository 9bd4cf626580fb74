package tapmgr

import (
	"context"
	"fmt"
	"time"

	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// steps is an attach from the first device to the last check, in order. It is
// what a run does and undoes, a dry run prints, and tests break.
func (a *attachment) steps() ([]step.Step, error) {
	host, err := a.HostSteps(a.vm.process())
	if err != nil {
		return nil, err
	}
	var list []step.Step
	if a.left != nil {
		list = append(list, a.releaseStep())
	}
	list = append(list, step.InStage(nic.ErrLink, host...)...)
	list = append(list, step.InStage(nic.ErrHandover, a.vm.plugSteps(a.NIC)...)...)
	return append(list, a.verifyStep()), nil
}

func (a *attachment) releaseStep() step.Step {
	return step.Step{
		Name: "release",
		Text: fmt.Sprintf("take back what a crash left of %s in the guest", a.left.Name),
		Do:   func(ctx context.Context) error { return a.m.release(ctx, a.vm, a.left) },
	}
}

// replaceStep takes away a NIC that leads nowhere: QEMU's end of its socket cannot be given another
// peer.
func (a *attachment) replaceStep() step.Step {
	why := fmt.Sprintf("switch %s has lost %s", a.dead.Want.Source, a.dead.Name)
	if a.dead.Deleted {
		why = fmt.Sprintf("%s was deleted under the guest", a.dead.Name)
	}
	return step.Step{
		Name: "replace",
		Text: fmt.Sprintf("%s: %s", why, a.vm.unplugText(a.Spec.NIC)),
		Do: func(ctx context.Context) error {
			err := a.vm.unplug(ctx, a.Spec.NIC, func(elapsed time.Duration) {
				a.m.progress("waiting for the guest to let go of the former %s for %.0f s", a.Spec.NIC, elapsed.Seconds())
			})
			return step.WithStage(nic.ErrHandover, err)
		},
	}
}

// verifyStep reads back from the kernel what should be, and only then says in
// the alias that the NIC is plugged.
func (a *attachment) verifyStep() step.Step {
	return step.Step{
		Name: "verify",
		Text: fmt.Sprintf("read the device back; set its alias %q", a.FinalAlias()),
		Do: func(ctx context.Context) error {
			made, err := a.Verify(ctx)
			if err != nil {
				return step.WithStage(nic.ErrLink, err)
			}
			if err := a.vm.alive(); err != nil { // all steps have named it by its number
				return step.WithStage(nic.ErrHandover, err)
			}
			a.made = made
			return nil
		},
	}
}
