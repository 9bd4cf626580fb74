package bridge

import (
	"slices"
	"strings"

	"vmnet/bridge/brport"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/rtnl"
)

// Info is the current state of a bridge.
type Info struct {
	Name string `json:"bridge"`
	MAC  string `json:"mac"`

	// MACOf is the guest's or container's port from which the bridge has its address. The bridge
	// may lose the address with that port.
	MACOf string `json:"mac_of,omitempty"`

	MTU    int     `json:"mtu"` // bytes
	Up     bool    `json:"up"`
	STP    bool    `json:"stp"`
	Ageing float64 `json:"ageing_seconds"`

	VLANFiltering bool `json:"vlan_filtering"`
	DefaultVLAN   int  `json:"default_vlan,omitempty"` // of new ports, if the bridge filters; 0 for none

	Addresses []string `json:"addresses"`
	Ports     []Port   `json:"ports"`

	VXLAN *VXLAN `json:"vxlan,omitempty"` // of the segment that it shares with other hosts
}

// Port is the current state of a bridge's port.
type Port struct {
	Interface string           `json:"interface"`
	State     string           `json:"state"`                         // of IEEE 802.1D, such as "forwarding"
	ForwardIn float64          `json:"forwards_in_seconds,omitempty"` // until it forwards; 0 if it does
	MTU       int              `json:"mtu"`                           // bytes
	Alias     string           `json:"alias,omitempty"`
	Config    brport.Settings  `json:"config"`
	Learned   []brport.Learned `json:"learned"`
}

// List reads all bridges and sorts them by name.
func (h *Host) List() ([]Info, error) {
	links, err := h.nl.Links("bridge", 0)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(links, func(a, b *rtnl.Link) int { return strings.Compare(a.Name, b.Name) })
	infos := make([]Info, 0, len(links))
	for _, l := range links {
		info, err := h.describe(l)
		if err != nil {
			return nil, err
		}
		infos = append(infos, info)
	}
	return infos, nil
}

// Show reads one bridge.
func (h *Host) Show(name string) (Info, error) {
	br, err := bridges.Get(h.nl, name)
	if err != nil {
		return Info{}, err
	}
	return h.describe(br)
}

func (h *Host) describe(br *rtnl.Link) (Info, error) {
	info := Info{
		Name: br.Name, MAC: br.MAC.String(), MTU: br.MTU, Up: br.Up,
		STP: br.Bridge.STP, Ageing: br.Bridge.Ageing.Seconds(), Addresses: []string{},
	}
	if bridges.Filters(br) {
		info.VLANFiltering, info.DefaultVLAN = true, br.Bridge.DefaultPVID
	}
	addrs, err := h.nl.Addrs(br.Index)
	if err != nil {
		return info, err
	}
	for _, a := range addrs {
		info.Addresses = append(info.Addresses, a.String())
	}
	links, err := h.nl.Links("", br.Index)
	if err != nil {
		return info, err
	}
	info.MACOf = bridges.MACOf(br, links)
	if info.VXLAN, err = h.vxlan(br, links); err != nil {
		return info, err
	}
	info.Ports, err = h.ports(br, links)
	return info, err
}

// ports describes a bridge's ports. It reads the FDB and the VLANs of all ports with one request
// each.
func (h *Host) ports(br *rtnl.Link, links []*rtnl.Link) ([]Port, error) {
	learned, err := bridges.LearnedBy(h.nl, br.Index, 0)
	if err != nil {
		return nil, err
	}
	var vlans map[int][]rtnl.VLANs
	if bridges.Filters(br) {
		if vlans, err = h.nl.PortVLANs(0); err != nil {
			return nil, err
		}
	}
	found := []Port{}
	for _, l := range links {
		if l.Port == nil {
			continue
		}
		macs := learned[l.Index]
		if macs == nil {
			macs = []brport.Learned{}
		}
		found = append(found, Port{
			Interface: l.Name, State: l.Port.State.String(), ForwardIn: bridges.ForwardsIn(l, br).Seconds(),
			MTU: l.MTU, Alias: l.Alias, Config: bridges.SettingsOf(l, vlans[l.Index]), Learned: macs,
		})
	}
	return found, nil
}
