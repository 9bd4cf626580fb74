package guest

import (
	"cmp"
	"context"
	"errors"
	"time"

	"vmnet/internal/inventory"
	"vmnet/internal/libvirthook/declared"
	"vmnet/internal/vmm/qemu"
	"vmnet/libvirt"
	"vmnet/libvirt/domainxml"
	"vmnet/tapmgr/nic"
)

// libvirtWait bounds how long a list waits for libvirt's answer about one guest.
const libvirtWait = time.Second

// A Reader asks libvirt what it knows of its guests, over one connection that it makes when it is
// needed. Once libvirt has failed to answer it asks no more.
type Reader struct {
	finder *Finder
	conn   *libvirt.Conn
	failed error
}

// Reader returns a Reader; close it.
func (f *Finder) Reader() *Reader { return &Reader{finder: f} }

// Interfaces returns those of a running guest; none if libvirt does not answer.
func (r *Reader) Interfaces(ctx context.Context, p qemu.Process) []domainxml.Interface {
	if def := r.Definition(ctx, p); def != nil {
		return def.Interfaces
	}
	return nil
}

// Definition returns a running guest's; nil if libvirt does not answer.
func (r *Reader) Definition(ctx context.Context, p qemu.Process) *domainxml.Definition {
	uuid, err := domainxml.ParseUUID(p.UUID)
	if err != nil || r.failed != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, libvirtWait)
	defer cancel()
	if r.conn == nil {
		if r.conn, r.failed = r.finder.dialLibvirt(ctx, []qemu.Process{p}, true); r.failed != nil {
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

// Close closes the connection.
func (r *Reader) Close() {
	if r.conn != nil {
		_ = r.conn.Close()
	}
}

// OfLibvirt asks libvirt what vmnet's NICs are of those of the processes that are its QEMUs. An
// interface is in the running definition, and its bridge or parent device in the metadata.
func (f *Finder) OfLibvirt(ctx context.Context, pids []int) (found []inventory.LibvirtNIC) {
	r := f.Reader()
	defer r.Close()
	for _, pid := range pids {
		p, err := qemu.ByPID(pid)
		if err != nil || !p.Libvirt {
			continue
		}
		def := r.Definition(ctx, p)
		if def == nil {
			continue
		}
		for _, x := range def.Interfaces {
			if record, ok := recordOf(p.Name, def, x); ok {
				found = append(found, inventory.LibvirtNIC{Record: record, Interface: x.Target, PID: pid})
			}
		}
	}
	return found
}

// recordOf returns what the alias of an interface's device said. ok is false if vmnet did not make
// the NIC.
func recordOf(vm string, def *domainxml.Definition, x domainxml.Interface) (r nic.Record, ok bool) {
	id := domainxml.AliasNIC(x.Alias)
	if nic.ValidNIC(id) != nil || x.Target == "" || len(x.MAC) != 6 {
		return nic.Record{}, false
	}
	element, _ := def.Metadata(declared.Namespace)
	spec, err := declared.Of(element, id)
	if err != nil || spec.Source() == "" {
		return nic.Record{}, false
	}
	spec.VM, spec.NIC, spec.MAC, spec.Via = vm, id, x.MAC, nic.ViaLibvirt
	spec.Model = cmp.Or(nic.ModelOf(x.Model), nic.DefaultModel)
	spec = spec.WithDefaults()
	r = nic.Record{
		VM: spec.VM, NIC: spec.NIC, Type: nic.TypeTap, Source: spec.Source(), Network: spec.Network, IP: spec.OwnIPs(),
		IfaceID: spec.IfaceID, OVSDB: spec.OVSDB,
		Port: spec.Port.String(), Security: spec.Security, AllowIn: spec.AllowIn, Rates: spec.Rates,
		MAC: spec.MAC, Model: spec.Model,
		Options: spec.OptionsHash(), Queues: max(x.Queues, 1), Vhost: x.Driver == "vhost", MTU: x.MTU, Via: spec.Via,
	}
	switch {
	case spec.Routed != "":
		r.Type = nic.TypeRouted
	case spec.IfaceID != "" || spec.OVSDB != "":
		r.Type = nic.TypeOVS
	}
	if l := spec.Lower; l != nil {
		r.Type, r.Source, r.Mode, r.RxFilter = string(l.Kind), l.Device, l.Mode, l.RxFilter
	}
	return r, true
}
