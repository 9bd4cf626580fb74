package nsport

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"vmnet/internal/inventory"
	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/peers"
	"vmnet/internal/kernel/rtnl"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr/nic"
)

// Info is what there is of an attachment. Its JSON keys are stable.
type Info struct {
	ID        string         `json:"id"`
	Netns     Netns          `json:"netns"`
	Interface string         `json:"interface"` // in the namespace, as it is called now
	Type      string         `json:"type"`
	Source    string         `json:"source"`            // the bridge or parent device
	Network   string         `json:"network,omitempty"` // the network that was named
	Host      string         `json:"host_interface,omitempty"`
	Mode      string         `json:"mode,omitempty"`
	MAC       string         `json:"mac,omitempty"`
	MTU       int            `json:"mtu"` // bytes
	Addresses []netip.Prefix `json:"addresses"`
	Gateways  []netip.Addr   `json:"gateways"`
	Port      string         `json:"port,omitempty"` // settings of the bridge's port
	State     nic.State      `json:"state"`
	// Claimed says that users of another user namespace may have written its alias.
	Claimed bool `json:"claimed,omitempty"`
}

// Netns is a network namespace, for people and programs.
type Netns struct {
	Name      string    `json:"name"`                // as vmnet netns takes it, or a description
	Inode     uint64    `json:"inode,omitempty"`     // 0 if no path and no process leads to it
	ID        int       `json:"id"`                  // in the host's own one; -1 for none
	Own       bool      `json:"own,omitempty"`       // it is the host's own one
	Foreign   bool      `json:"foreign,omitempty"`   // another user namespace may own it
	Names     []string  `json:"names"`               // of ip-netns(8), or paths
	Processes []Process `json:"processes,omitempty"` // the first of them
	Count     int       `json:"process_count"`       // of all
}

// Process is one in a namespace. Its user chooses the command's name.
type Process struct {
	PID     int    `json:"pid"`
	Command string `json:"command"`
}

// Process returns the namespace's first process for people, and how many more it has.
func (n Netns) Process() string {
	if len(n.Processes) == 0 {
		return ""
	}
	text := fmt.Sprintf("%s (%d)", n.Processes[0].Command, n.Processes[0].PID)
	if n.Count > 1 {
		text += fmt.Sprintf(" and %d more", n.Count-1)
	}
	return text
}

func describeSpace(s *peers.Space) Netns {
	n := Netns{
		Name: s.Name(), Inode: s.Inode, ID: s.ID, Own: s.Own, Foreign: s.Foreign,
		Names: append([]string{}, s.Names...), Count: s.Processes,
	}
	if s.Own {
		return n
	}
	for _, pid := range s.PIDs {
		n.Processes = append(n.Processes, Process{pid, peers.Command(pid)})
	}
	return n
}

func (m *Manager) describe(a attachment) Info {
	i := Info{
		ID: a.ID, Netns: describeSpace(a.space), Interface: a.Interface, Type: a.Type, Source: a.Source,
		Network: a.Network, Mode: a.Mode, MTU: a.MTU, Port: a.Port, Claimed: a.claimed,
		Addresses: append([]netip.Prefix{}, a.Addresses...), Gateways: append([]netip.Addr{}, a.Gateways...),
		State: a.state(),
	}
	if a.MAC != nil {
		i.MAC = a.MAC.String()
	}
	if a.host != nil {
		i.Host = a.host.Name
		if br := m.maker.MasterOf(a.host); br != nil {
			i.Source = br.Name
		}
	}
	if a.end != nil {
		i.Interface, i.MTU, i.MAC = a.end.Name, a.end.MTU, a.end.MAC.String()
	}
	return i
}

func (a *attachment) state() nic.State {
	switch {
	case a.Unfinished:
		return nic.Attaching
	case a.host != nil && a.host.Port == nil:
		return nic.NoBridge
	case a.host != nil && !a.host.Up:
		return nic.Down
	case a.end == nil:
		return nic.Unknown // the caller may not look into the namespace
	case !a.end.Up:
		return nic.Down
	case a.host != nil:
		return inventory.LinkState(a.host)
	}
	return inventory.LinkState(a.end)
}

// List returns the attachments, by id.
func (m *Manager) List(ctx context.Context) (list []Info, notices []string, err error) {
	v, all, err := m.look(ctx, nil)
	if err != nil {
		return nil, nil, err
	}
	list = []Info{}
	for _, a := range all {
		list = append(list, m.describe(a))
	}
	return list, v.Notices, nil
}

// Link is a link with another end, or one that shares a parent device, no matter what made it. Its
// JSON keys are stable.
type Link struct {
	Interface string `json:"interface"` // here; of one that shares a parent device, in Netns
	Type      string `json:"type"`
	Source    string `json:"source,omitempty"` // the master, or the parent device
	Mode      string `json:"mode,omitempty"`
	Peer      string `json:"peer,omitempty"` // a veth device's other end, in Netns
	MAC       string `json:"mac"`            // of the end in Netns
	State     string `json:"state"`          // of the link: up, down or no-carrier
	Netns     Netns  `json:"netns"`
	ID        string `json:"id,omitempty"`  // of the attachment that it is
	NIC       string `json:"nic,omitempty"` // the guest's NIC that it is, VM/NIC
}

// Links returns the veth pairs with one end in the Manager's namespace, and the macvlans, macvtaps,
// ipvlans and ipvtaps on its parent devices.
func (m *Manager) Links(ctx context.Context) (list []Link, notices []string, err error) {
	v, err := peers.Look(ctx, m.ns, m.nl())
	if err != nil {
		return nil, nil, err
	}
	list = pairLinks(v)
	children, err := v.Children()
	if err != nil {
		return nil, nil, err
	}
	nics, err := m.nicsAmong(ctx, children)
	for _, c := range children {
		l := childLink(c)
		l.NIC = nics[c.Index]
		list = append(list, l)
	}
	return list, v.Notices, err
}

// nicsAmong returns the guests' NICs among macvtaps and ipvtaps, by their random indices.
// Their aliases are in namespaces that have neither name nor process, so the inventory is asked,
// which knows who holds them.
func (m *Manager) nicsAmong(ctx context.Context, children []peers.Child) (map[int]string, error) {
	isTap := func(c peers.Child) bool { return c.Kind == string(vtap.Macvtap) || c.Kind == string(vtap.IPVtap) }
	if !slices.ContainsFunc(children, isTap) {
		return nil, nil
	}
	devices, err := m.maker.Devices(ctx)
	names := map[int]string{}
	for _, d := range devices {
		if d.Link != nil && d.Lower != 0 {
			names[d.Index] = d.Want.VM + "/" + d.Want.NIC
		}
	}
	return names, err
}

// Pairs returns the veth pairs alone.
func (m *Manager) Pairs(ctx context.Context) (list []Link, notices []string, err error) {
	v, err := peers.Look(ctx, m.ns, m.nl())
	if err != nil {
		return nil, nil, err
	}
	return pairLinks(v), v.Notices, nil
}

func pairLinks(v *peers.View) []Link {
	list := []Link{}
	for _, p := range v.Pairs() {
		list = append(list, pairLink(v, p))
	}
	return list
}

func pairLink(v *peers.View, p peers.Pair) Link {
	l := Link{
		Interface: p.Link.Name, Type: p.Link.Kind, State: plainState(p.Link), Netns: describeSpace(p.Space),
		Peer: fmt.Sprintf("interface %d", p.Link.Lower),
	}
	if master := v.Link(p.Link.Master); master != nil {
		l.Source = master.Name
	}
	if p.Peer != nil {
		l.Peer, l.MAC = p.Peer.Name, p.Peer.MAC.String()
	}
	if r, ok := ParseRecord(p.Link.Alias); ok {
		l.ID = r.ID
	}
	return l
}

func childLink(c peers.Child) Link {
	l := Link{
		Interface: c.Name, Type: c.Kind, Source: c.Parent.Name, Mode: macvlan.ModeName(c.Link), MAC: c.MAC.String(),
		State: plainState(c.Link), Netns: describeSpace(c.Space),
	}
	if r, ok := ParseRecord(c.Alias); ok && !c.Space.Own && !c.Space.Foreign {
		l.ID = r.ID
	}
	return l
}

// plainState returns the state of a link, without that of a bridge's port.
func plainState(l *rtnl.Link) string {
	switch {
	case !l.Up:
		return string(nic.Down)
	case !l.Carrier:
		return string(nic.NoCarrier)
	}
	return string(nic.Up)
}
