package network

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"slices"
	"strings"

	"vmnet/internal/network/config"
	"vmnet/internal/network/dhcp"
	"vmnet/internal/network/firewall"
	"vmnet/internal/network/ruleset"
)

// States of a network.
const (
	StateUp      = "up"      // as its file says
	StateDiffers = "differs" // check says how
	StateAbsent  = "absent"  // it was not applied since the last boot
	StateBroken  = "broken"  // its file cannot be read, or its name is taken
	StateLeft    = "left"    // its file has gone
)

// Info is what there is of a network. Its JSON keys are stable.
type Info struct {
	Network   string        `json:"network"`
	State     string        `json:"state"`
	Subnet    string        `json:"subnet,omitempty"`
	IPv6      string        `json:"ipv6,omitempty"`
	Uplink    string        `json:"uplink,omitempty"`
	VXLAN     *Segment      `json:"vxlan,omitempty"`        // if the uplink is one
	Move      string        `json:"move_address,omitempty"` // "true", "false" or "unconfirmed"
	NAT       bool          `json:"nat"`
	DHCP      bool          `json:"dhcp"`
	Isolated  bool          `json:"isolated"`
	MTU       int           `json:"mtu,omitempty"` // in bytes
	Integrate bool          `json:"integrate"`
	Domain    string        `json:"domain,omitempty"`
	Hosts     []HostInfo    `json:"hosts"`
	Forwards  []ForwardInfo `json:"forwards"`
	Ports     []string      `json:"ports"`  // of the bridge, without the server's
	Guests    []GuestInfo   `json:"guests"` // that belong to the network
	Error     string        `json:"error,omitempty"`
}

// Segment is the VXLAN segment that guests share with those of other hosts, or those of the VLANs.
type Segment struct {
	VNI     int          `json:"vni"`           // 0 with a map
	Map     string       `json:"map,omitempty"` // VLANs and their VNIs, as typed
	Local   netip.Addr   `json:"local"`
	Port    int          `json:"port"`    // UDP
	Remotes []netip.Addr `json:"remotes"` // that the file lists; none if FRR adds them
}

// HostInfo is a guest whose name and address are fixed.
type HostInfo struct {
	Name string     `json:"name"`
	MAC  string     `json:"mac"`
	IP   netip.Addr `json:"ip"`
}

// GuestInfo is a guest's NIC that belongs to a network.
type GuestInfo struct {
	VM        string       `json:"vm"`
	NIC       string       `json:"nic"`
	Interface string       `json:"interface"`
	MAC       string       `json:"mac"`
	IP        []netip.Addr `json:"ip,omitempty"`   // its own addresses
	Name      string       `json:"name,omitempty"` // in the DNS, without the domain; empty if another has it
}

// ForwardInfo is a forward as it is typed.
type ForwardInfo struct {
	From   string `json:"from"`
	To     string `json:"to"`
	Listen string `json:"listen,omitempty"`
	MAC    string `json:"mac,omitempty"` // of the guest's NIC that it is bound to
	IP     string `json:"ip,omitempty"`  // which the server gives that NIC
}

// Describe returns what a network's file says.
func Describe(n *config.Network) Info {
	i := Info{
		Network: n.Name, NAT: n.NAT, DHCP: n.DHCP, Isolated: n.Isolated, MTU: n.MTU, Integrate: n.Integrate,
		Domain: n.Domain,
		Hosts:  []HostInfo{}, Forwards: []ForwardInfo{}, Ports: []string{},
		Guests: []GuestInfo{},
	}
	if n.Subnet.IsValid() {
		i.Subnet = n.Subnet.String()
	}
	if n.IPv6.IsValid() {
		i.IPv6 = n.IPv6.String()
	}
	if u := n.Uplink; u != nil {
		i.Uplink, i.Move = u.Device, u.Move.String()
		if v := u.VXLAN; v != nil {
			i.VXLAN = &Segment{v.VNI, v.Map.String(), v.Local, v.UDPPort(), append([]netip.Addr{}, v.Remotes...)}
		}
	}
	for _, h := range n.Hosts {
		i.Hosts = append(i.Hosts, HostInfo{h.Name, h.MAC.String(), h.IP})
	}
	for _, f := range n.Forwards {
		info := ForwardInfo{From: f.From(), To: f.To()}
		if f.Listen.IsValid() {
			info.Listen = f.Listen.String()
		}
		if f.Bound.IP.IsValid() {
			info.MAC, info.IP = f.Bound.MAC, f.Bound.IP.String()
		}
		i.Forwards = append(i.Forwards, info)
	}
	return i
}

// List returns all networks, by name: those with a file, and those of which only a bridge is left.
func (m *Manager) List(ctx context.Context) ([]Info, error) {
	names, err := m.Dir.Names()
	if err != nil {
		return nil, err
	}
	infos := []Info{}
	var networks []*config.Network
	for _, name := range names {
		n, err := m.Dir.Read(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			infos = append(infos, broken(name, err))
		default:
			networks = append(networks, n)
		}
	}
	left, err := m.leftovers(networks)
	if err != nil {
		return nil, err
	}
	for _, name := range left {
		i := Describe(&config.Network{Name: name})
		i.State = StateLeft
		infos = append(infos, i)
	}
	known, err := m.infos(ctx, networks)
	infos = append(infos, known...)
	slices.SortFunc(infos, func(a, b Info) int { return strings.Compare(a.Network, b.Network) })
	return infos, err
}

func broken(name string, err error) Info {
	i := Describe(&config.Network{Name: name})
	i.State, i.Error = StateBroken, err.Error()
	return i
}

// infos describes networks whose files can be read.
func (m *Manager) infos(ctx context.Context, networks []*config.Network) (infos []Info, err error) {
	if m.Elsewhere != nil {
		for _, n := range networks {
			i, _ := m.infoElsewhere(ctx, n)
			infos = append(infos, i)
		}
		return infos, nil
	}
	differs, err := m.compare(ctx, networks)
	if err != nil {
		return nil, err
	}
	for _, n := range networks {
		i := Describe(n)
		br, r, err := m.bridge(n.Name)
		switch {
		case errors.Is(err, ErrForeign):
			i.State, i.Error = StateBroken, err.Error()
		case err != nil:
			return nil, err
		case br == nil:
			i.State = StateAbsent
		default:
			i.State = StateUp
			if slices.ContainsFunc(differs, func(d Difference) bool { return d.Network == n.Name }) {
				i.State = StateDiffers
			}
			ports, err := m.nl.Links("", br.Index)
			if err != nil {
				return nil, err
			}
			if i.Guests, err = m.guestInfos(ctx, n); err != nil {
				return nil, err
			}
			for _, p := range ports {
				mark, ok := config.ParseServerMark(p.Alias)
				if !(ok && mark.Network == n.Name) && p.Name != r.uplink {
					i.Ports = append(i.Ports, p.Name)
				}
			}
		}
		infos = append(infos, i)
	}
	return infos, nil
}

// Shown is all that is known of one network.
type Shown struct {
	Info
	Ruleset   string              `json:"ruleset"` // as the file wants it
	Server    []string            `json:"server"`  // the programs of the server with their arguments
	Leases    []dhcp.Lease        `json:"leases"`
	Obstacles []firewall.Obstacle `json:"obstacles"`

	// Only of a user's network.
	Way       string    `json:"way,omitempty"`
	Processes []Process `json:"processes,omitempty"`
	Log       string    `json:"log,omitempty"`
}

// Show describes a network that has a file.
func (m *Manager) Show(ctx context.Context, name string) (Shown, error) {
	n, err := m.Dir.Read(name)
	if err != nil {
		return Shown{}, err
	}
	s := Shown{Leases: []dhcp.Lease{}, Obstacles: []firewall.Obstacle{}}
	if m.Elsewhere != nil {
		var seen Seen
		s.Info, seen = m.infoElsewhere(ctx, n)
		s.Way, s.Processes, s.Log = seen.Way, seen.Processes, seen.Log
	} else {
		infos, err := m.infos(ctx, []*config.Network{n})
		if err != nil {
			return Shown{}, err
		}
		s.Info = infos[0]
	}
	s.Ruleset, s.Server, err = m.Programs(n)
	if err != nil || s.State == StateBroken {
		return s, err
	}
	if s.Obstacles, err = m.Obstacles(ctx, n); err == nil {
		s.Leases, err = m.Leases(ctx, n)
	}
	return s, err
}

// Programs returns the ruleset of a network, and the programs of its server with their arguments.
func (m *Manager) Programs(n *config.Network) (rules string, programs []string, err error) {
	if m.Elsewhere != nil {
		return m.Elsewhere.Programs(n)
	}
	rules, err = ruleset.Text(n)
	if n.DHCP {
		return rules, m.ServerConfig(n).Lines(), err
	}
	return rules, []string{}, err
}

// Leases returns the addresses that guests of a network have.
func (m *Manager) Leases(ctx context.Context, n *config.Network) ([]dhcp.Lease, error) {
	leases, err := dhcp.ReadLeases(m.State, n.Name)
	if err != nil {
		return nil, err
	}
	guests, err := m.guestInfos(ctx, n)
	if err != nil {
		return nil, err
	}
	for i := range leases {
		for _, g := range guests {
			if g.MAC == leases[i].MAC {
				leases[i].Guest = g.VM + "/" + g.NIC
			}
		}
	}
	return leases, nil
}
