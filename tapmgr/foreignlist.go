package tapmgr

import (
	"context"
	"errors"
	"slices"
	"time"

	"vmnet/bridge/brport"
	"vmnet/internal/inventory"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/vmm/qemu"
	"vmnet/libvirt"
	"vmnet/libvirt/domainxml"
	"vmnet/tapmgr/nic"
)

// libvirtWait bounds how long a list waits for libvirt to say what the kernel does not.
const libvirtWait = time.Second

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
	asked := libvirtReader{m: m}
	defer asked.Close()
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
		found = append(found, describeForeign(p, links, asked.interfaces(ctx, p))...)
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

// libvirtReader asks libvirt what it knows of its guests, by one connection that is made when it is
// needed.
type libvirtReader struct {
	m      *Manager
	conn   *libvirt.Conn
	failed error
}

// interfaces are those of a running guest; none where libvirt does not tell.
func (r *libvirtReader) interfaces(ctx context.Context, p qemu.Process) []domainxml.Interface {
	if def := r.definition(ctx, p); def != nil {
		return def.Interfaces
	}
	return nil
}

// definition is a running guest's; nil where libvirt does not tell.
func (r *libvirtReader) definition(ctx context.Context, p qemu.Process) *domainxml.Definition {
	uuid, err := domainxml.ParseUUID(p.UUID)
	if err != nil || r.failed != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, libvirtWait)
	defer cancel()
	if r.conn == nil {
		if r.conn, r.failed = r.m.dialLibvirt(ctx, []qemu.Process{p}, true); r.failed != nil {
			return nil
		}
	}
	text, err := r.conn.XML(ctx, libvirt.Domain{Name: p.Name, UUID: uuid, ID: -1}, 0)
	if err != nil {
		if !errors.Is(err, libvirt.ErrNoDomain) {
			r.failed = err
		}
		return nil
	}
	def, err := domainxml.Parse(text)
	if err != nil {
		return nil
	}
	return def
}

func (r *libvirtReader) Close() {
	if r.conn != nil {
		_ = r.conn.Close()
	}
}

// foreignDetails explain the NICs of a guest that libvirt has made itself.
func (m *Manager) foreignDetails(ctx context.Context, vm string) ([]Detail, error) {
	all, err := m.foreignNICs(ctx, vm)
	details := []Detail{}
	for _, f := range all {
		d := Detail{
			NIC: f.NIC, Index: f.Link.Index, AltNames: f.Link.AltNames, HostMAC: f.Link.MAC.String(), HostMTU: f.Link.MTU,
			Holders: []nic.Holder{{PID: f.PID, FDs: f.ForeignLink.Queues}}, VhostFDs: []int{}, Learned: []brport.Learned{}, Counters: f.Link.Stats,
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
