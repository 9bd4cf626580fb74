package tapmgr

import (
	"cmp"
	"context"

	"vmnet/internal/inventory"
	"vmnet/internal/libvirthook/declared"
	"vmnet/internal/vmm/qemu"
	"vmnet/libvirt/domainxml"
	"vmnet/tapmgr/nic"
)

// AskLibvirt has libvirt asked what a guest's NIC was whose device is gone, for a second at most. A
// program that libvirt waits for, such as its hook, must not ask, nor a privileged helper.
func (m *Manager) AskLibvirt() { m.host.OfLibvirt = m.ofLibvirt }

// ofLibvirt asks libvirt what vmnet's NICs are of those of the processes that are its QEMUs. An
// interface is in the running definition, and where it was is in the metadata.
func (m *Manager) ofLibvirt(ctx context.Context, pids []int) (found []inventory.LibvirtNIC) {
	asked := libvirtReader{m: m}
	defer asked.Close()
	for _, pid := range pids {
		p, err := qemu.ByPID(pid)
		if err != nil || !p.Libvirt {
			continue
		}
		def := asked.definition(ctx, p)
		if def == nil {
			continue
		}
		for _, x := range def.Interfaces {
			if r, ok := recordOf(p.Name, def, x); ok {
				found = append(found, inventory.LibvirtNIC{Record: r, Interface: x.Target, PID: pid})
			}
		}
	}
	return found
}

// recordOf is what the alias of an interface's device said; ok is false where vmnet did not make
// the NIC.
func recordOf(vm string, def *domainxml.Definition, x domainxml.Interface) (r nic.Record, ok bool) {
	id := domainxml.AliasNIC(x.Alias)
	if nic.ValidNIC(id) != nil || x.Target == "" || len(x.MAC) != 6 {
		return nic.Record{}, false
	}
	element, _ := def.Metadata(declared.Namespace)
	spec, err := declared.Of(element, id)
	if err != nil || spec.Bridge == "" && spec.Lower == nil {
		return nic.Record{}, false
	}
	spec.VM, spec.NIC, spec.MAC, spec.Via = vm, id, x.MAC, nic.ViaLibvirt
	spec.Model = cmp.Or(nic.ModelOf(x.Model), nic.DefaultModel)
	spec = spec.WithDefaults()
	r = nic.Record{
		VM: spec.VM, NIC: spec.NIC, Type: nic.TypeTap, Source: spec.Bridge, Port: spec.Port.String(), MAC: spec.MAC, Model: spec.Model,
		Options: spec.OptionsHash(), Queues: max(x.Queues, 1), Vhost: x.Driver == "vhost", MTU: x.MTU, Via: spec.Via,
	}
	if l := spec.Lower; l != nil {
		r.Type, r.Source, r.Mode, r.RxFilter = string(l.Kind), l.Device, l.Mode, l.RxFilter
	}
	return r, true
}
