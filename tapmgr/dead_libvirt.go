package tapmgr

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"

	"vmnet/internal/kernel/procfd"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/libvirthook/declared"
	"vmnet/internal/vmm/qemu"
	"vmnet/libvirt/domainxml"
	"vmnet/tapmgr/nic"
)

// A device that libvirt opens by its name has no label in QEMU, which libvirt alone could hand over. When it was deleted,
// libvirt still knows what it was: its interface is in the running definition, and in the metadata where it was.

// deadOfLibvirt are NICs as deadNICs, of libvirt's guests. Libvirt is asked of those alone whose QEMU holds a queue of
// no device that is known; all are the NICs that are there.
func (m *Manager) deadOfLibvirt(ctx context.Context, op *opened, all []ours) (found []ours) {
	if !m.AskLibvirt {
		return nil
	}
	var procs []qemu.Process
	for pid := range op.suspects(all) {
		if p, err := qemu.ByPID(pid); err == nil && p.Libvirt {
			procs = append(procs, p)
		}
	}
	asked := libvirtReader{m: m}
	defer asked.close()
	for _, p := range procs {
		def := asked.definition(ctx, p)
		if def == nil {
			continue
		}
		for _, x := range def.Interfaces {
			if o, ok := m.deadInterface(p, def, x); ok && !slices.ContainsFunc(all, func(a ours) bool { return a.want.VM == o.want.VM && a.want.NIC == o.want.NIC }) {
				found = append(found, o)
			}
		}
	}
	return found
}

// suspects are the processes that hold a queue of a tap that is gone, or of a macvtap of which none of these NICs has
// the file: it may be libvirt's own.
func (op *opened) suspects(all []ours) map[int]bool {
	suspects := map[int]bool{}
	for pid := range op.orphans {
		suspects[pid] = true
	}
	for pid, files := range op.nodes {
		suspects[pid] = suspects[pid] || slices.ContainsFunc(files, func(f procfd.File) bool { return !isQueueOf(all, f) })
	}
	return suspects
}

// deadInterface is the NIC of an interface of ours whose device is gone.
func (m *Manager) deadInterface(p qemu.Process, def *domainxml.Definition, x domainxml.Interface) (ours, bool) {
	id := domainxml.AliasNIC(x.Alias)
	if nic.ValidNIC(id) != nil || x.Target == "" || len(x.MAC) != 6 {
		return ours{}, false
	}
	if _, err := m.nl.Link(x.Target); !errors.Is(err, fs.ErrNotExist) {
		return ours{}, false
	}
	element, _ := def.Metadata(declared.Namespace)
	spec, err := declared.Of(element, id)
	if err != nil || spec.Bridge == "" && spec.Lower == nil {
		return ours{}, false
	}
	spec.VM, spec.NIC, spec.MAC, spec.Via = p.Name, id, x.MAC, nic.ViaLibvirt
	spec.Model = cmp.Or(nic.ModelOf(x.Model), nic.DefaultModel)
	spec = spec.WithDefaults()
	r := nic.Record{
		VM: spec.VM, NIC: spec.NIC, Type: nic.TypeTap, Source: spec.Bridge, Port: spec.Port.String(), MAC: spec.MAC, Model: spec.Model,
		Options: spec.OptionsHash(), Queues: max(x.Queues, 1), Vhost: x.Driver == "vhost", MTU: x.MTU, Via: spec.Via,
	}
	if l := spec.Lower; l != nil {
		r.Type, r.Source, r.Mode, r.RxFilter = string(l.Kind), l.Device, l.Mode, l.RxFilter
	}
	link := &rtnl.Link{Name: x.Target, Kind: r.Type, MTU: r.GuestMTU()}
	return ours{ // libvirt vouches for it, which the caller has chosen
		Link: link, want: r, gone: true, allSeen: true, uid: os.Geteuid(), vouched: true, holders: []Holder{{PID: p.PID, FDs: []int{}}},
	}, true
}
