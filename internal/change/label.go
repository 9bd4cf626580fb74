package change

import (
	"context"
	"fmt"
	"slices"

	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// labelSteps renew the label that QEMU holds of the NIC. It describes the NIC once its device was
// deleted, or its switch has ended. There is nothing to renew if QEMU holds none, or none by this
// monitor.
func (p *Plan) labelSteps(final nic.Record) ([]step.Step, error) {
	if p.guest.Monitor == nil {
		return nil, nil
	}
	text, err := p.m.LabelOf(final)
	if err != nil {
		return nil, err
	}
	held, err := p.m.Labels(p.guest.PID(), final.VM, final.NIC)
	if err != nil || text == "" || !slices.ContainsFunc(held, func(t string) bool { return t != text }) {
		return nil, err
	}
	former := held[0]
	return []step.Step{{
		Name: "label",
		Text: fmt.Sprintf("memfd_create %q, for QEMU to hold; end the former one", text),
		Do:   func(ctx context.Context) error { return p.renewLabel(ctx, text) },
		Undo: func(ctx context.Context) error { return p.renewLabel(ctx, former) },
	}}, nil
}

// renewLabel has QEMU hold a label of that text, and ends its others of the NIC: those that it was
// started with stay open.
func (p *Plan) renewLabel(ctx context.Context, text string) error {
	pid, vm, id := p.guest.PID(), p.to.VM, p.to.NIC
	held, err := p.m.Labels(pid, vm, id)
	if err == nil && !slices.Contains(held, text) {
		err = p.guest.Monitor.GiveLabel(ctx, id, text)
	}
	if err != nil {
		return err
	}
	return p.m.EndLabels(pid, vm, id, text)
}
