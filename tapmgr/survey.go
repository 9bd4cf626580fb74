package tapmgr

import (
	"context"
	"fmt"
	"time"

	"vmnet/internal/addresses"
	"vmnet/internal/inventory"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/network/dhcp"
	"vmnet/tapmgr/nic"
)

// A Sighting is a NIC of [Manager.Survey], with what is known of it without its guest's monitor.
type Sighting struct {
	nic.NIC
	Addresses []nic.Address     `json:"addresses"`         // IPv4 first, IPv6 link-local ones last
	Traffic   *nic.Traffic      `json:"traffic,omitempty"` // nil if nobody counts
	Drops     map[string]uint64 `json:"drops,omitempty"`   // by port security or a switch, by reason

	device inventory.Device // its Link is nil for a host access
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
	if kind == nic.TypeTap || kind == nic.TypeOVS || kind == nic.TypeRouted {
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
