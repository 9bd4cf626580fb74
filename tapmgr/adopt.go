package tapmgr

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"

	"vmnet/internal/inventory"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/stablemac"
	"vmnet/internal/step"
	"vmnet/tapmgr/nic"
)

// What the hook does for a tap that libvirt makes for a guest that it starts, and that is to be
// ours: it goes with whoever holds it from the first on, and its name may be libvirt's choice. So a
// clone of a guest starts with a NIC of its own.

// adoptedTap is a tap that libvirt has made and holds.
type adoptedTap struct{ tapSide }

// Expect clears the way for a tap that libvirt is about to make: the bridge of the Spec is there,
// and no device has its name. What a former start of the guest has left is removed. One of that
// name is an error that Is ErrExist and tells whose it is.
func (m *Manager) Expect(ctx context.Context, spec nic.Spec) error {
	h, err := m.adoption(ctx, spec)
	if err != nil {
		return err
	}
	return explainPrepare(spec, m.expect(ctx, h))
}

func (m *Manager) expect(ctx context.Context, h *half) error {
	former, err := m.unstarted(ctx, h.spec)
	if err != nil {
		return err
	}
	if former != nil {
		if err := m.run(ctx, []step.Step{m.deleteFormer(former)}); err != nil {
			return err
		}
	}
	if h.spec.Device == "" { // libvirt finds a name
		return nil
	}
	l, err := m.host.NL.Link(h.spec.Device)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return step.WithStage(nic.ErrLink, err)
	}
	return fmt.Errorf("%w: interface %s, %s (remove <target dev='%s'/> from the interface of one of the two, and libvirt finds a name: virsh edit %s)",
		nic.ErrExist, l.Name, ownerText(l), h.spec.Device, h.spec.VM)
}

// Adopt puts a tap that libvirt has made for a guest, and that the Spec names as its Device, on its
// bridge. Its alias says from then on that it is the NIC's. One that was adopted is left as it is.
// That there is no such device Is fs.ErrNotExist; one that is not libvirt's for that MAC is an
// error that Is ErrExist.
func (m *Manager) Adopt(ctx context.Context, spec nic.Spec) (nic.Result, error) {
	h, err := m.adoption(ctx, spec)
	if err != nil {
		return nic.Result{}, err
	}
	res, err := m.adopt(ctx, h)
	return res, explainPrepare(spec, err)
}

func (m *Manager) adopt(ctx context.Context, h *half) (nic.Result, error) {
	side := h.side.(*adoptedTap)
	var err error
	if side.link, err = m.host.NL.Link(h.spec.Device); err != nil {
		return nic.Result{}, step.WithStage(nic.ErrLink, err)
	}
	if r, ok := nic.ParseRecord(side.link.Alias); ok && r.VM == h.spec.VM && r.NIC == h.spec.NIC {
		return nic.Result{}, nil
	}
	if err := side.isLibvirts(); err != nil {
		return nic.Result{}, err
	}
	if err := m.run(ctx, step.InStage(nic.ErrLink, h.hostSteps(0)...)); err != nil {
		return nic.Result{}, err
	}
	return h.prepared()
}

// adoption decides all that Expect and Adopt need; it changes nothing.
func (m *Manager) adoption(ctx context.Context, spec nic.Spec) (*half, error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	spec = spec.WithDefaults()
	spec.Via = nic.ViaLibvirt
	h := m.half(spec, nic.PhaseStarting)
	h.side = &adoptedTap{tapSide{m: m, spec: spec}}
	return h, explainPrepare(spec, m.planPrepare(ctx, h))
}

// isLibvirts tells by an error that the device is not a tap that libvirt has made for the guest and
// put nowhere.
func (s *adoptedTap) isLibvirts() error {
	l := s.link
	switch {
	case !inventory.IsForeign(l, "tun") || l.Tun == nil || !l.Tun.Attached || !bytes.Equal(l.MAC, stablemac.HostMAC(s.spec.MAC)):
		return fmt.Errorf("%w: interface %s, %s, and not the tap that libvirt makes for MAC %s", nic.ErrExist, l.Name, ownerText(l), s.spec.MAC)
	case l.Master != 0 && l.Master != s.br.Index:
		return fmt.Errorf("%w: somebody has made %s a port of %s", nic.ErrExist, l.Name, s.m.host.MasterName(l))
	}
	return nil
}

// steps begin with the tap down, which libvirt has set up: so it loses the addresses of the host's
// IPv6.
func (s *adoptedTap) steps(_ int, alias string, _ int) []step.Step {
	return append([]step.Step{{
		Name: "down",
		Text: fmt.Sprintf("RTM_SETLINK %s: down", s.name),
		Do:   func(context.Context) error { return s.m.host.NL.Set(s.link.Index, rtnl.Up(false)) },
	}}, s.portSteps(alias)...)
}
