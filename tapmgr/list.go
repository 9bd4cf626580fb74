package tapmgr

import (
	"context"

	"vmnet/internal/inventory"
	"vmnet/tapmgr/nic"
)

// List returns the NICs of all guests that are vmnet's, or of one where vm is not empty, by
// guest and id. It opens no monitor, so it never waits for anybody.
func (m *Manager) List(ctx context.Context, vm string) ([]nic.NIC, error) {
	all, err := m.host.Devices(ctx)
	return inventory.NICs(all, vm), err
}

// ListAll returns the NICs of all guests as List does, or of one where vm is not empty, and after
// them those that libvirt has made itself, whose guest's side libvirt is asked for, a second at
// most. With all guests' go the taps of which qemu-netup knows the bridge alone, and the host
// accesses, which have no guest.
func (m *Manager) ListAll(ctx context.Context, vm string) ([]nic.NIC, error) {
	nics, plain, err := m.host.NICs(ctx, vm)
	if err != nil {
		return nil, err
	}
	foreign, err := m.foreignNICs(ctx, vm)
	for _, f := range foreign {
		nics = append(nics, f.NIC)
	}
	if err != nil || vm != "" {
		return nics, err
	}
	nics = append(nics, plain...)
	accesses, err := m.HostAccesses()
	for _, a := range accesses {
		nics = append(nics, a.NIC())
	}
	return nics, err
}
