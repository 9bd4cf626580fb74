package tapmgr

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"vmnet/bridge/brport"
	"vmnet/internal/addresses"
	"vmnet/internal/holders"
	"vmnet/internal/hostaccess"
	"vmnet/internal/inventory"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/network/dhcp"
	"vmnet/internal/vmm/qemu"
	"vmnet/libvirt/domainxml"
	"vmnet/tapmgr/nic"
)

// List returns the managed NICs of all guests, or of one if vm is not empty, by guest and id. It
// opens no monitor, so it does not wait for a guest.
func (m *Manager) List(ctx context.Context, vm string) ([]nic.NIC, error) {
	all, err := m.host.Devices(ctx)
	return inventory.NICs(all, vm), err
}

// ListAll returns the NICs that List returns, and after them those that libvirt has made itself. It
// asks libvirt for the guests' half of these, for a second at most for each guest. If vm is empty,
// it also returns the taps of which qemu-netup knows only the bridge, and the host accesses, which
// have no guest.
func (m *Manager) ListAll(ctx context.Context, vm string) ([]nic.NIC, error) {
	all, err := m.sightings(ctx, vm)
	nics := []nic.NIC{}
	for i := range all {
		nics = append(nics, all[i].NIC)
	}
	return nics, err
}

// foreignNIC is a NIC that libvirt has made itself, and its link.
type foreignNIC struct {
	nic.NIC
	inventory.ForeignLink
}

// foreignNICs returns the NICs that libvirt has made itself for its guests, or for one if vm is not
// empty. If libvirt does not answer soon, it returns what the kernel knows of them.
func (m *Manager) foreignNICs(ctx context.Context, vm string) ([]foreignNIC, error) {
	procs, err := qemu.MaybeOfLibvirt()
	if err != nil {
		return nil, err
	}
	var found []foreignNIC
	reader := m.finder().Reader()
	defer reader.Close()
	left := map[int]*inventory.Allowance{} // by user, since any user can start processes that look like libvirt's QEMUs
	for _, p := range procs {
		if !p.Libvirt || vm != "" && p.Name != vm {
			continue
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if left[p.UID] == nil {
			left[p.UID] = &inventory.Allowance{Files: holders.MaxUserFiles, Closer: holders.MaxCloser}
		}
		links, err := m.host.ForeignWithin(p.PID, left[p.UID])
		if err != nil || len(links) == 0 {
			continue // it has ended, or the caller may not look into it
		}
		m.host.AskOVS(ctx, links, m.host.Databases()...)
		found = append(found, describeForeign(p, links, reader.Interfaces(ctx, p))...)
	}
	return found, nil
}

func describeForeign(p qemu.Process, links []inventory.ForeignLink,
	interfaces []domainxml.Interface,
) (found []foreignNIC) {
	for _, l := range links {
		n := nic.NIC{
			VM: p.Name, Interface: l.Interface, Type: l.Type, Source: l.Source,
			Port: l.Port.String(), Queues: len(l.Queues),
			State: l.State, MTU: l.MTU, PID: p.PID, UID: 0, Foreign: true, Vhost: nic.OnOff(false),
		}
		if l.OVS != nil {
			n.Type, n.IfaceID, n.OVSDB = nic.TypeOVS, l.OVS.IfaceID, l.OVSDB
		}
		i := slices.IndexFunc(interfaces, func(i domainxml.Interface) bool { return i.Target == l.Interface })
		if i >= 0 {
			n.ID, n.MAC, n.Model, n.Mode = interfaces[i].Alias, interfaces[i].MAC.String(),
				nic.ModelOf(interfaces[i].Model), interfaces[i].Source.Mode
		}
		found = append(found, foreignNIC{n, l})
	}
	return found
}

// foreignDetails returns details of the NICs of a guest that libvirt has made itself.
func (m *Manager) foreignDetails(ctx context.Context, vm string) ([]Detail, error) {
	all, err := m.foreignNICs(ctx, vm)
	details := []Detail{}
	for _, f := range all {
		d := Detail{
			NIC: f.NIC, Index: f.Link.Index, AltNames: f.Link.AltNames, HostMAC: f.Link.MAC.String(),
			HostMTU: f.Link.MTU,
			Holders: []nic.Holder{{PID: f.PID, FDs: f.ForeignLink.Queues}}, VhostFDs: []int{},
			Learned: []brport.Learned{}, Counters: Counters(f.Link.Stats), OVS: ovsDetail(f.ForeignLink.OVS),
		}
		if !nic.HasTap(f.NIC.Type) {
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

// SetHostAccess switches the host access of a parent device on or off, by its name or altname: a
// macvlan by which the host and the macvtap guests on that device reach each other. It stays until
// it is switched off, or the machine shuts down. On again adds the addresses that are missing and
// changes nothing else; off again succeeds. SetHostAccess returns what is there now, or was until
// now. If it fails it leaves everything as it was.
func (m *Manager) SetHostAccess(ctx context.Context, parent string, on bool, addrs []netip.Prefix) (
	a nic.HostAccess, changed bool, err error,
) {
	return hostaccess.On(m.host).Set(ctx, parent, on, addrs)
}

// HostAccesses returns the host accesses, by parent device.
func (m *Manager) HostAccesses() ([]nic.HostAccess, error) { return hostaccess.On(m.host).List() }

// ShowParent describes the parent device of that name or altname: whether it has host access, and
// which guests' NICs are on it.
func (m *Manager) ShowParent(ctx context.Context, name string) (nic.Parent, error) {
	return hostaccess.On(m.host).Show(ctx, name)
}

// A Sighting is a NIC of [Manager.Survey], with what is known of it without its guest's monitor.
type Sighting struct {
	nic.NIC
	Addresses []nic.Address     `json:"addresses"`         // IPv4 first, link-local ones last
	Traffic   *nic.Traffic      `json:"traffic,omitempty"` // nil if nobody counts
	Drops     map[string]uint64 `json:"drops,omitempty"`   // by port security or a switch, by reason

	device inventory.Device // its Link is nil for a host access
}

// Usual returns the addresses by which others reach the NIC: those that are not link-local, or that
// its record has.
func (s *Sighting) Usual() (usual []netip.Addr) {
	for _, a := range s.Addresses {
		if !a.IP.IsLinkLocalUnicast() || slices.Contains(s.IP, a.IP) {
			usual = append(usual, a.IP)
		}
	}
	return usual
}

// Look says what Survey looks up besides the NICs themselves.
type Look struct {
	Addresses bool
	Drops     bool          // what port security has dropped
	Agents    time.Duration // how long all guest agents together are waited for; 0 asks none
}

// Survey returns the NICs that ListAll returns, with their counters and what look asks for.
func (m *Manager) Survey(ctx context.Context, vm string, look Look) ([]Sighting, error) {
	all, err := m.sightings(ctx, vm)
	if err != nil {
		return nil, err
	}
	if look.Addresses {
		nics := make([]nic.NIC, len(all))
		for i := range all {
			nics[i] = all[i].NIC
		}
		for i, found := range m.addressesOf(ctx, nics, look.Agents) {
			all[i].Addresses = found
		}
	}
	if look.Drops {
		for i := range all {
			m.surveyDrops(&all[i])
		}
	}
	return all, nil
}

// addressesOf returns the addresses of NICs, in their order, and reports what could not be read.
func (m *Manager) addressesOf(ctx context.Context, nics []nic.NIC, wait time.Duration) [][]nic.Address {
	s := addresses.Sources{
		NS: m.host.NS, NL: m.host.NL, States: append([]string{dhcp.DefaultState}, m.LeaseStates...),
		Libvirt:  addresses.LibvirtState,
		Patience: wait,
	}
	found, notices := s.Of(ctx, nics)
	for _, text := range notices {
		m.report(Unseen, text)
	}
	return found
}

// sightings lists all NICs with their counters.
func (m *Manager) sightings(ctx context.Context, vm string) ([]Sighting, error) {
	seen, plain, err := m.host.NICs(ctx, vm)
	if err != nil {
		return nil, err
	}
	all := []Sighting{}
	for _, s := range seen {
		all = append(all, sighting(s))
	}
	foreign, err := m.foreignNICs(ctx, vm)
	for _, f := range foreign {
		dev := inventory.Device{Link: f.Link}
		all = append(all, sighting(inventory.Seen{NIC: f.NIC, Device: dev}))
	}
	if err != nil || vm != "" {
		return all, err
	}
	for _, s := range plain {
		all = append(all, sighting(s))
	}
	accesses, err := m.HostAccesses()
	for _, a := range accesses {
		all = append(all, Sighting{NIC: a.NIC()})
	}
	return all, err
}

func sighting(s inventory.Seen) Sighting {
	t := Sighting{NIC: s.NIC, device: s.Device}
	if port := s.Device.SwitchPort.Port; port != nil && port.Stats != nil {
		t.Drops = port.Stats.Drops
		if s.Device.IsSocket() {
			total := port.Stats.Total()
			t.Traffic = &nic.Traffic{
				FromGuest: nic.Direction{Packets: total.RxFrames, Bytes: total.RxBytes},
				ToGuest:   nic.Direction{Packets: total.TxFrames, Bytes: total.TxBytes},
			}
		}
	}
	if l := s.Device.Link; l != nil && t.Traffic == nil && s.Device.HasLink() {
		t.Traffic = trafficOf(l.Stats, s.Type)
	}
	return t
}

// trafficOf returns a link's counters from the guest's side. A tap receives what the guest sends; a
// macvtap or ipvtap sends it.
func trafficOf(s rtnl.Stats, kind string) *nic.Traffic {
	rx := nic.Direction{Packets: s.RxPackets, Bytes: s.RxBytes, Errors: s.RxErrors, Dropped: s.RxDropped}
	tx := nic.Direction{Packets: s.TxPackets, Bytes: s.TxBytes, Errors: s.TxErrors, Dropped: s.TxDropped}
	if nic.HasTap(kind) {
		return &nic.Traffic{FromGuest: rx, ToGuest: tx}
	}
	return &nic.Traffic{FromGuest: tx, ToGuest: rx}
}

// surveyDrops adds what the kernel's port security has dropped.
func (m *Manager) surveyDrops(s *Sighting) {
	if s.device.Link == nil || s.Foreign {
		return
	}
	d := Detail{Drops: s.Drops}
	m.detailDrops(&d, s.device)
	s.Drops = d.Drops
	for _, text := range d.Notices {
		m.report(Unseen, fmt.Sprintf("%s/%s: %s", s.VM, s.ID, text))
	}
}
