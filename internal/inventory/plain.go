package inventory

import (
	"context"
	"slices"
	"strings"

	"vmnet/internal/access/plaintap"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/vmm/qemu"
	"vmnet/tapmgr/nic"
)

// IsPlain reports whether only the tap's bridge is known, and no guest or NIC.
func (dev *Device) IsPlain() bool { return dev.Want.VM == "" }

// plain are the plain taps among links, by name.
func (h *Host) plain(links []*rtnl.Link) (found []Device) {
	for _, l := range links {
		if t, ok := plaintap.Parse(l.Alias); ok && l.Tun != nil {
			want := nic.Record{Type: nic.TypeTap, Source: t.Source, Port: t.Port, Owner: t.Owner}
			found = append(found, h.own(l, want, h.MasterOf(l)))
		}
	}
	slices.SortFunc(found, func(a, b Device) int { return strings.Compare(a.Name, b.Name) })
	return found
}

// plainOf is plain, and who of those that the caller may look into holds them.
func (h *Host) plainOf(ctx context.Context, links []*rtnl.Link, op *openFiles) []Device {
	found := h.plain(links)
	for i := range found {
		found[i].addHolders(op, op.queuesOf(ctx, found[i].Name))
	}
	return found
}

// PlainHeld is plainOf for all links and processes.
func (h *Host) PlainHeld(ctx context.Context) ([]Device, error) {
	links, err := h.ownLinks()
	if err != nil {
		return nil, err
	}
	op, err := h.look(ctx, links)
	if err != nil {
		return nil, err
	}
	return h.plainOf(ctx, links, op), context.Cause(ctx)
}

// plainNICs are the plain taps as rows of ListAll, with the guest's name where QEMU tells it.
func (h *Host) plainNICs(ctx context.Context, links []*rtnl.Link, op *openFiles) (nics []nic.NIC) {
	for _, dev := range h.plainOf(ctx, links, op) {
		nic := dev.withHolders(nic.NIC{
			Interface: dev.Name, Type: nic.TypeTap, Source: dev.Want.Source, Port: dev.Want.Port, Queues: 1, Vhost: "",
			MTU: dev.MTU, State: LinkState(dev.Link), UID: dev.Want.Owner,
		})
		if p, err := qemu.ByPID(nic.PID); err == nil {
			nic.VM = p.Name
		}
		nics = append(nics, nic)
	}
	return nics
}
