package tapmgr

import (
	"context"
	"slices"

	"vmnet/bridge/brport"
	"vmnet/internal/inventory"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/vmm/qemu"
	"vmnet/libvirt/domainxml"
	"vmnet/tapmgr/nic"
)

// foreignNIC is a NIC that libvirt has made itself, and its link.
type foreignNIC struct {
	nic.NIC
	inventory.ForeignLink
}

// foreignNICs lists what libvirt has made itself for its guests, or for one where vm is not empty.
// Where libvirt does not answer at once, it is what the kernel alone knows.
func (m *Manager) foreignNICs(ctx context.Context, vm string) ([]foreignNIC, error) {
	procs, err := qemu.List()
	if err != nil {
		return nil, err
	}
	var found []foreignNIC
	reader := m.finder().Reader()
	defer reader.Close()
	left := map[int]*inventory.Allowance{} // by user: anybody may call processes QEMUs of libvirt's
	for _, p := range procs {
		if !p.Libvirt || vm != "" && p.Name != vm {
			continue
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if left[p.UID] == nil {
			left[p.UID] = &inventory.Allowance{Files: inventory.MaxUserFiles, Closer: inventory.MaxCloser}
		}
		links, err := m.host.ForeignWithin(p.PID, left[p.UID])
		if err != nil || len(links) == 0 {
			continue // it has ended meanwhile, or may not be looked into
		}
		found = append(found, describeForeign(p, links, reader.Interfaces(ctx, p))...)
	}
	return found, nil
}

func describeForeign(p qemu.Process, links []inventory.ForeignLink, interfaces []domainxml.Interface) (found []foreignNIC) {
	for _, l := range links {
		n := nic.NIC{
			VM: p.Name, Interface: l.Interface, Type: l.Type, Source: l.Source, Port: l.Port.String(), Queues: len(l.Queues),
			State: l.State, MTU: l.MTU, PID: p.PID, UID: 0, Foreign: true, Vhost: nic.OnOff(false),
		}
		i := slices.IndexFunc(interfaces, func(i domainxml.Interface) bool { return i.Target == l.Interface })
		if i >= 0 {
			n.ID, n.MAC, n.Model, n.Mode = interfaces[i].Alias, interfaces[i].MAC.String(), nic.ModelOf(interfaces[i].Model), interfaces[i].Source.Mode
		}
		found = append(found, foreignNIC{n, l})
	}
	return found
}

// foreignDetails explain the NICs of a guest that libvirt has made itself.
func (m *Manager) foreignDetails(ctx context.Context, vm string) ([]Detail, error) {
	all, err := m.foreignNICs(ctx, vm)
	details := []Detail{}
	for _, f := range all {
		d := Detail{
			NIC: f.NIC, Index: f.Link.Index, AltNames: f.Link.AltNames, HostMAC: f.Link.MAC.String(), HostMTU: f.Link.MTU,
			Holders: []nic.Holder{{PID: f.PID, FDs: f.ForeignLink.Queues}}, VhostFDs: []int{}, Learned: []brport.Learned{}, Counters: Counters(f.Link.Stats),
		}
		if f.NIC.Type != nic.TypeTap {
			d.Lower, d.RxFilter = f.NIC.Source, inventory.RxFilter(&inventory.Device{Link: f.Link})
		} else {
			d.Bridge = f.NIC.Source
		}
		if f.Link.Port != nil {
			if learned, err := bridges.LearnedBy(m.host.NL, f.Link.Master, f.Link.Index); err == nil {
				d.Learned = append(d.Learned, learned[f.Link.Index]...)
			}
		}
		details = append(details, d)
	}
	return details, err
}
