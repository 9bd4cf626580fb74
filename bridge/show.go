package bridge

import (
	"slices"
	"strings"

	"vmnet/internal/kernel/rtnl"
)

// Info is the current state of a bridge.
type Info struct {
	Name   string  `json:"bridge"`
	MAC    string  `json:"mac"`
	MACOf  string  `json:"mac_of,omitempty"` // the guest's or container's port with the same address, with which the bridge may lose it
	MTU    int     `json:"mtu"`
	Up     bool    `json:"up"`
	STP    bool    `json:"stp"`
	Ageing float64 `json:"ageing_seconds"`

	VLANFiltering bool `json:"vlan_filtering"`
	DefaultVLAN   int  `json:"default_vlan,omitempty"` // of new ports, if the bridge filters; 0 for none

	Addresses []string `json:"addresses"`
	Ports     []Port   `json:"ports"`
}

// Port is the current state of a bridge's port.
type Port struct {
	Interface string     `json:"interface"`
	State     string     `json:"state"`
	ForwardIn float64    `json:"forwards_in_seconds,omitempty"`
	MTU       int        `json:"mtu"`
	Alias     string     `json:"alias,omitempty"`
	Config    PortConfig `json:"config"`
	Learned   []Learned  `json:"learned"`
}

// Learned is a MAC address that the FDB has behind a port.
type Learned struct {
	MAC    string `json:"mac"`
	VLAN   int    `json:"vlan,omitempty"`
	Static bool   `json:"static,omitempty"`
}

// List reads all bridges and sorts them by name.
func List(c *rtnl.Conn) ([]Info, error) {
	links, err := c.Links("bridge", 0)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(links, func(a, b *rtnl.Link) int { return strings.Compare(a.Name, b.Name) })
	infos := make([]Info, 0, len(links))
	for _, l := range links {
		info, err := describe(c, l)
		if err != nil {
			return nil, err
		}
		infos = append(infos, info)
	}
	return infos, nil
}

// Show reads one bridge.
func Show(c *rtnl.Conn, name string) (Info, error) {
	br, err := Get(c, name)
	if err != nil {
		return Info{}, err
	}
	return describe(c, br)
}

func describe(c *rtnl.Conn, br *rtnl.Link) (Info, error) {
	info := Info{
		Name: br.Name, MAC: br.MAC.String(), MTU: br.MTU, Up: br.Up,
		STP: br.Bridge.STP, Ageing: br.Bridge.Ageing.Seconds(), Addresses: []string{},
	}
	if filters(br) {
		info.VLANFiltering, info.DefaultVLAN = true, br.Bridge.DefaultPVID
	}
	addrs, err := c.Addrs(br.Index)
	if err != nil {
		return info, err
	}
	for _, a := range addrs {
		info.Addresses = append(info.Addresses, a.String())
	}
	links, err := c.Links("", br.Index)
	if err != nil {
		return info, err
	}
	info.MACOf = follows(br, links)
	info.Ports, err = ports(c, br, links)
	return info, err
}

// ports describes a bridge's ports. It reads the FDB and the VLANs of all ports with one request
// each.
func ports(c *rtnl.Conn, br *rtnl.Link, links []*rtnl.Link) ([]Port, error) {
	learned, err := LearnedBy(c, br.Index, 0)
	if err != nil {
		return nil, err
	}
	var vlans map[int][]rtnl.VLANs
	if filters(br) {
		if vlans, err = c.PortVLANs(0); err != nil {
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
			macs = []Learned{}
		}
		found = append(found, Port{
			Interface: l.Name, State: l.Port.State.String(), ForwardIn: ForwardsIn(l, br).Seconds(),
			MTU: l.MTU, Alias: l.Alias, Config: portConfig(l, vlans[l.Index]), Learned: macs,
		})
	}
	return found, nil
}
