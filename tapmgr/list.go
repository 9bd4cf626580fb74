package tapmgr

import (
	"context"

	"vmnet/tapmgr/nic"
)

// List returns the NICs of all guests that are ours, or of one where vm is not empty, by
// guest and id. It opens no monitor, so it never waits for anybody.
func (m *Manager) List(ctx context.Context, vm string) ([]nic.NIC, error) {
	all, err := m.inventory(ctx)
	return m.nics(all, vm), err
}

// nics describes those of an inventory that a guest of that name has, or all where vm is empty.
func (m *Manager) nics(all []ours, vm string) []nic.NIC {
	nics := []nic.NIC{}
	for _, o := range all {
		if vm == "" || o.want.VM == vm {
			nics = append(nics, o.state(m.describe(o)))
		}
	}
	return nics
}

// ListAll returns the NICs of all guests as List does, or of one where vm is not empty, and after them those that
// libvirt has made itself, whose guest's side libvirt is asked for, a second at most. With all guests' go the taps of
// which qemu-netup knows the bridge alone, and the host accesses, which have no guest.
func (m *Manager) ListAll(ctx context.Context, vm string) ([]nic.NIC, error) {
	links, err := m.inOwn()
	if err != nil {
		return nil, err
	}
	op, err := m.look(ctx, links)
	if err != nil {
		return nil, err
	}
	all, err := m.inventoryOf(ctx, links, op)
	if err != nil {
		return nil, err
	}
	nics := m.nics(all, vm)
	hidden, err := m.hidden(all, vm)
	if err != nil {
		return nil, err
	}
	nics = append(nics, hidden...)
	foreign, err := m.foreignNICs(ctx, vm)
	for _, f := range foreign {
		nics = append(nics, f.NIC)
	}
	if err != nil || vm != "" {
		return nics, err
	}
	nics = append(nics, m.plainNICs(ctx, links, op)...)
	accesses, err := m.HostAccesses()
	for _, h := range accesses {
		nics = append(nics, h.NIC())
	}
	return nics, err
}

// describe tells how a link of ours is, provided that its guest holds it.
func (m *Manager) describe(o ours) nic.NIC {
	r := o.want
	return nic.NIC{
		VM: r.VM, ID: r.NIC, Interface: o.Name, Type: r.Type, Source: r.Source, Switch: r.Switch, Limits: r.Limits.String(), Mode: r.Mode, Port: r.Port, Model: r.Model,
		MAC: r.MAC.String(), Queues: r.Queues, Vhost: nic.OnOff(r.Vhost), MTU: r.GuestMTU(), State: o.ownState(), UID: o.owner(), Via: r.Via,
	}
}
