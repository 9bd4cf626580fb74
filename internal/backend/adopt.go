package backend

import (
	"bytes"
	"context"
	"fmt"

	"vmnet/internal/inventory"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/stablemac"
	"vmnet/internal/step"
	"vmnet/tapmgr/nic"
)

// adoptedTap is a tap that libvirt has made and holds.
type adoptedTap struct{ bridgeTap }

// NewAdopted begins a NIC on a tap that libvirt makes.
func (m *Maker) NewAdopted(spec nic.Spec, p nic.Phase) *NIC {
	h := m.New(spec, p)
	h.Device = &adoptedTap{bridgeTap{m: m, Spec: spec}}
	return h
}

// FindAdopted finds the tap that libvirt has made, by the name that the Spec of NewAdopted has.
// adopted reports that it is the NIC's already. That there is none Is fs.ErrNotExist; one that is not
// libvirt's for that MAC is an error that Is nic.ErrExist.
func (h *NIC) FindAdopted() (adopted bool, err error) {
	s := h.Device.(*adoptedTap)
	if s.Link, err = h.m.NL.Link(h.Spec.Device); err != nil {
		return false, step.WithStage(nic.ErrLink, err)
	}
	if r, ok := nic.ParseRecord(s.Link.Alias); ok && r.VM == h.Spec.VM && r.NIC == h.Spec.NIC {
		return true, nil
	}
	return false, s.isLibvirts()
}

// isLibvirts returns an error where the device is not a tap that libvirt has made for the guest and
// put nowhere.
func (s *adoptedTap) isLibvirts() error {
	l := s.Link
	switch {
	case !inventory.IsForeign(l, "tun") || l.Tun == nil || !l.Tun.Attached || !bytes.Equal(l.MAC, stablemac.HostMAC(s.Spec.MAC)):
		return fmt.Errorf("%w: interface %s, %s, and not the tap that libvirt makes for MAC %s", nic.ErrExist, l.Name, OwnerText(l), s.Spec.MAC)
	case l.Master != 0 && l.Master != s.br.Index:
		return fmt.Errorf("%w: somebody has made %s a port of %s", nic.ErrExist, l.Name, s.m.MasterName(l))
	}
	return nil
}

// steps begin with the tap down, which libvirt has set up: so it loses the addresses of the host's
// IPv6.
func (s *adoptedTap) steps(_ int, alias string, _ int) []step.Step {
	return append([]step.Step{{
		Name: "down",
		Text: fmt.Sprintf("RTM_SETLINK %s: down", s.name),
		Do:   func(context.Context) error { return s.m.NL.Set(s.Link.Index, rtnl.Up(false)) },
	}}, s.portSteps(alias)...)
}
