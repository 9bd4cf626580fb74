package why

import (
	"net"
	"net/netip"
	"slices"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/network/config"
	"vmnet/internal/network/firewall"
	"vmnet/internal/ovs"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

// Facts are what is known about the way of one frame. A part that could not be read is missing, and
// Missing says why.
type Facts struct {
	Frame Frame
	To    Target
	NIC   *NIC // of the guest that sends the frame
	Peer  *NIC // of the guest that it is for; nil for other targets

	Others []tapmgr.Sighting // all NICs of guests, with their addresses

	Links      []*rtnl.Link // of the host's network namespace
	VLANs      map[int][]rtnl.VLANs
	FDB        []rtnl.FDBEntry   // of the NIC's bridge
	Addrs      []Addr            // of the host
	Radios     []string          // links that are Wi-Fi cards
	Out, Back  Route             // to the target, and to the guest
	Settings   map[string]string // of the kernel, by their names below /proc/sys
	Proxies    []rtnl.Proxy
	Neighbours NeighbourTable

	Network     *config.Network // that the NIC is on; nil for none
	Differences []Difference    // of the network from its file
	ServesDHCP  bool            // a program of the host listens for DHCP clients
	Firewall    *firewall.Host

	OVS    []ovs.Port
	Trace  *Trace  // what ovs-vswitchd says of the frame
	Switch *Switch // that the NIC is on

	Missing map[Part]string
}

// A Part is a part of the facts.
type Part string

// Parts.
const (
	PartVLANs    Part = "VLANs of ports"
	PartFDB      Part = "forwarding database"
	PartFirewall Part = "firewall"
	PartNetwork  Part = "network"
	PartRoutes   Part = "routes"
	PartProxies  Part = "proxy entries"
	PartOVS      Part = "Open vSwitch"
	PartSwitch   Part = "switch"
	PartTrace    Part = "flows"
)

// NIC is a guest's NIC, and its VMM.
type NIC struct {
	tapmgr.Detail
	Link    *rtnl.Link // its host interface, also in a netns of its own; nil for none
	Process Process    // the VMM
	// Choked is how many frames for the guest were dropped at its full queue while the facts were
	// read, if it read none meanwhile.
	Choked uint64
}

// Process is a VMM's process.
type Process struct {
	Halted bool // by a signal, or a debugger
	Vhost  bool // it is seen to have a vhost thread
	Seen   bool
}

// An Addr is an address of the host, with the index of its link.
type Addr struct {
	Link int
	netip.Prefix
}

// A Route is where the kernel sends packets; Link is 0 if there is no route.
type Route struct {
	Addr netip.Addr
	Link int
}

// Difference is how a network differs from its file.
type Difference struct{ What, Want, Found, Mend string }

// NeighbourTable is how full the kernel's table of IPv4 neighbours is.
type NeighbourTable struct{ Entries, Most int }

// Trace is what ovs-vswitchd would do with the frame (ofproto/trace).
type Trace struct {
	Actions string          // of the datapath; "drop"
	Ports   map[string]bool // names of the ports to which it goes
}

// Switch is what a userspace switch says.
type Switch struct {
	Ports   []control.Port
	Learned []control.FDBEntry
	Ways    map[netip.Addr]int // to the other hosts of its VXLAN ports: indexes of links, 0 for no route
}

// Title returns the names of guest and NIC.
func (n *NIC) Title() string {
	switch {
	case n.VM == "":
		return n.Interface
	case n.ID == "":
		return n.VM
	}
	return n.VM + "/" + n.ID
}

// IsTap reports whether the NIC is a tap for a bridge of the kernel.
func (n *NIC) IsTap() bool { return n.Type == nic.TypeTap && !n.Switch }

// IsOVS reports whether the NIC is a port of Open vSwitch.
func (n *NIC) IsOVS() bool { return n.Type == nic.TypeOVS }

// IsRouted reports whether the host routes the NIC's addresses to it.
func (n *NIC) IsRouted() bool { return n.Type == nic.TypeRouted }

// mac is the address that the guest's driver uses.
func (n *NIC) mac() net.HardwareAddr {
	if n.Guest != nil {
		if mac, err := net.ParseMAC(n.Guest.MAC); err == nil && len(mac) == 6 {
			return mac
		}
	}
	mac, err := net.ParseMAC(n.MAC)
	if err != nil || len(mac) != 6 {
		return nil
	}
	return mac
}

// address is the guest's address of the same IP version as another; the zero value if none is
// known. What the guest really uses comes before what it should use.
func (n *NIC) address(like netip.Addr) netip.Addr {
	var should netip.Addr
	for _, a := range n.Addresses {
		if a.IP.Is4() == like.Is6() || a.IP.IsLinkLocalUnicast() {
			continue
		}
		if slices.ContainsFunc(a.From, func(from string) bool {
			return slices.Contains([]string{"lease", "neighbour", "agent"}, from)
		}) {
			return a.IP
		}
		should = a.IP
	}
	if !should.IsValid() {
		for _, a := range n.IP {
			if a.Is4() != like.Is6() {
				return a
			}
		}
	}
	return should
}

// link returns the host's link of that name, or nil.
func (f *Facts) link(name string) *rtnl.Link {
	return find(f.Links, func(l *rtnl.Link) bool { return l.Name == name })
}

// at returns the host's link of that index, or nil.
func (f *Facts) at(index int) *rtnl.Link { return linkAt(f.Links, index) }

// linkAt returns the link of that index, or nil.
func linkAt(all []*rtnl.Link, index int) *rtnl.Link {
	return find(all, func(l *rtnl.Link) bool { return l.Index == index && index != 0 })
}

func find(all []*rtnl.Link, is func(*rtnl.Link) bool) *rtnl.Link {
	if i := slices.IndexFunc(all, is); i >= 0 {
		return all[i]
	}
	return nil
}

// on lists the addresses of a link of the same IP version as a.
func (f *Facts) on(index int, a netip.Addr) (found []netip.Prefix) {
	for _, addr := range f.Addrs {
		if addr.Link == index && addr.Addr().Is4() != a.Is6() && !addr.Addr().IsLinkLocalUnicast() {
			found = append(found, addr.Prefix)
		}
	}
	return found
}

// own returns the link that has an address of the host, or nil.
func (f *Facts) own(a netip.Addr) *rtnl.Link {
	for _, addr := range f.Addrs {
		if addr.Addr() == a {
			return f.at(addr.Link)
		}
	}
	return nil
}
