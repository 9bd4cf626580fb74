package backend

import (
	"context"
	"fmt"

	"vmnet/internal/kernel/procfd"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// What a NIC is, its link's alias tells. But the link may be deleted under its guest: a macvtap
// goes with its parent device, and who administers the host can delete a tap. The guest then keeps
// a dead NIC, whose VMM holds queues that lead nowhere. So the VMM is given a label as well, which
// tells what the NIC was.

// planLabel decides whether the VMM gets a label: not from a helper that an attach asks, which
// gives it one; and not where libvirt opens the device.
func (h *NIC) planLabel() error {
	r := h.Record
	if r.Via == nic.ViaLibvirt || h.m.Owner != 0 && r.Phase == nic.PhaseAttaching {
		return nil
	}
	own, err := h.m.NS.Inode()
	h.labelText = r.Label(own)
	return err
}

// labelStep makes the label, which close closes.
func (h *NIC) labelStep() step.Step {
	return step.Step{
		Name: "label",
		Text: fmt.Sprintf("memfd_create %q, for QEMU to hold", h.labelText),
		Do:   func(context.Context) (err error) { h.label, err = procfd.NewLabel(h.labelText); return err },
		Undo: func(context.Context) error { return closeFile(&h.label) },
	}
}
