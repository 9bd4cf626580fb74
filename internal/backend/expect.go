package backend

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// What the hook does for a tap or macvtap that libvirt makes for a guest that it starts, and that
// is to be ours: its name may be libvirt's choice, so a clone of a guest starts with a NIC of its
// own.

// Expect clears the way for a device that libvirt is about to make: the bridge or parent device of
// the Spec is there, and no device has its name. What a former start of the guest has left is
// removed. One of that name is an error that Is nic.ErrExist and tells whose it is.
func (m *Maker) Expect(ctx context.Context, spec nic.Spec) error {
	h, err := m.adoption(ctx, spec)
	if err != nil {
		return err
	}
	return explainPrepare(spec, m.expect(ctx, h))
}

func (m *Maker) expect(ctx context.Context, h *NIC) error {
	former, err := m.unstarted(ctx, h.Spec)
	if err != nil {
		return err
	}
	if former != nil {
		if err := m.run(ctx, []step.Step{m.deleteFormer(former)}); err != nil {
			return err
		}
	}
	if h.Spec.Lower != nil {
		if err := m.freeNode(); err != nil {
			return step.WithStage(nic.ErrLink, err)
		}
	}
	if h.Spec.Device == "" { // libvirt finds a name
		return nil
	}
	l, err := m.NL.Link(h.Spec.Device)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return step.WithStage(nic.ErrLink, err)
	}
	return fmt.Errorf("%w: interface %s, %s (remove <target dev='%s'/> from the interface of one of the two, and libvirt finds a name: virsh edit %s)",
		nic.ErrExist, l.Name, OwnerText(l), h.Spec.Device, h.Spec.VM)
}

// Adopt makes a device that libvirt has made for a guest, and that the Spec names as its Device,
// the NIC of the Spec: it puts a tap on its bridge, and gives a macvtap what libvirt has no words
// for. Its alias says from then on that it is the NIC's. One that was adopted is left as it is. One
// of the processes makers must hold it. That there is no such device Is fs.ErrNotExist; one that is
// not libvirt's for that MAC is an error that Is nic.ErrExist.
func (m *Maker) Adopt(ctx context.Context, spec nic.Spec, makers ...int) (nic.Result, error) {
	h, err := m.adoption(ctx, spec)
	if err != nil {
		return nic.Result{}, err
	}
	res, err := m.adopt(ctx, h, makers)
	return res, explainPrepare(spec, err)
}

func (m *Maker) adopt(ctx context.Context, h *NIC, makers []int) (nic.Result, error) {
	if adopted, err := h.FindAdopted(makers); adopted || err != nil {
		return nic.Result{}, err
	}
	if err := m.run(ctx, step.InStage(nic.ErrLink, h.HostSteps(0)...)); err != nil {
		return nic.Result{}, err
	}
	return h.Prepared()
}

// adoption decides all that Expect and Adopt need; it changes nothing.
func (m *Maker) adoption(ctx context.Context, spec nic.Spec) (*NIC, error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	spec = spec.WithDefaults()
	spec.Via = nic.ViaLibvirt
	h := m.NewAdopted(spec, nic.PhaseStarting)
	return h, explainPrepare(spec, m.planPrepare(ctx, h))
}
