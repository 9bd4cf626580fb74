package tapmgr

import (
	"context"

	"vmnet/internal/guest"
	"vmnet/internal/inventory"
	"vmnet/tapmgr/nic"
)

// Recorded is a NIC with its record.
type Recorded struct {
	nic.NIC
	Record nic.Record
	// Names are other names of the bridge, uplink or parent device that Record.Source names: that
	// before it was renamed, and its altnames.
	Names []string
	// Stored says that libvirt has stored it, so that the guest starts with it.
	Stored bool
	// Off are the properties that differ from the record, and that a Set mends.
	Off []nic.Difference
}

// Records returns the NICs of the guest that t means, and those of its name that nobody holds. NICs
// of other users' guests of that name are not among them, nor what such users claim.
func (m *Manager) Records(ctx context.Context, t nic.Target) ([]Recorded, error) {
	all, err := m.host.Devices(ctx)
	if err != nil {
		return nil, err
	}
	var found []Recorded
	for i := range all {
		dev := &all[i]
		if dev.Want.VM != t.VM || !isOf(dev, t) {
			continue
		}
		r := Recorded{NIC: dev.NIC(), Record: dev.Want}
		if dev.FormerSource != "" {
			r.Names = append(r.Names, dev.FormerSource)
		}
		if !dev.Want.Switch {
			if l, err := m.host.NL.Link(dev.Want.Source); err == nil {
				r.Names = append(r.Names, l.AltNames...)
			}
		}
		if dev.Want.Phase == nic.PhasePlugged {
			r.Off = m.off(dev)
		}
		if r.Stored, err = m.isStored(ctx, dev); err != nil {
			return nil, err
		}
		found = append(found, r)
	}
	return found, nil
}

// isStored asks libvirt whether it has stored a NIC of a guest that runs.
func (m *Manager) isStored(ctx context.Context, dev *inventory.Device) (bool, error) {
	if dev.Want.Via != nic.ViaLibvirt || dev.VMMPID() == 0 {
		return false, nil
	}
	g, err := m.openToRead(ctx, *dev)
	if err != nil {
		return false, err
	}
	defer g.Close()
	return g.Domain.Stored(ctx, dev.Want.NIC)
}

// off returns what differs from a NIC's record and a Set mends. What cannot be read counts as
// equal.
func (m *Manager) off(dev *inventory.Device) (list []nic.Difference) {
	changing := *dev
	changing.Want.Phase = nic.PhaseChanging // a Set also takes it from another bridge, reconcile does not
	v, err := m.host.View(&changing)
	if err != nil {
		return nil
	}
	for _, f := range v.Compare() {
		if f.Fix.Kind != inventory.NotFixed {
			list = append(list, f.Difference(dev))
		}
	}
	return list
}

// isOf reports whether a NIC belongs to the guest that t means: by its holder, if one is seen.
func isOf(dev *inventory.Device, t nic.Target) bool {
	holder := dev.VMMPID()
	if t.PID != 0 && holder != 0 {
		return holder == t.PID
	}
	return !dev.IsUntrusted() && guest.MayOpen(t, dev.Name, holder) == nil
}
