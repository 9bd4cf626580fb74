// Package netmap arranges what there is of guests' networks as a map: places, such as bridges,
// switches and parent devices, and what is connected to each. It draws the map as text, SVG, DOT
// and HTML. Users choose many of the names: each format escapes them.
package netmap

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/nsport"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

// A Map is what there is. Its JSON keys are stable.
type Map struct {
	Places []*Place `json:"places"`
}

// A Place is what several ends are connected to.
type Place struct {
	Kind    string `json:"kind"` // "bridge", "switch", "device"; "none" for what is connected to nothing
	Name    string `json:"name"`
	Text    string `json:"text,omitempty"`    // state and settings
	Foreign bool   `json:"foreign,omitempty"` // nothing of vmnet is there
	Broken  string `json:"broken,omitempty"`  // why no frames pass; empty if they do
	Ends    []End  `json:"ends"`
}

// An End is connected to a place.
type End struct {
	Kind      string   `json:"kind"`            // "uplink", "host", "guest", "namespace", "port"
	Name      string   `json:"name"`            // VM/NIC of a guest, the namespace, or what the host calls it
	Guest     string   `json:"guest,omitempty"` // by which the ends of one guest are found
	Interface string   `json:"interface,omitempty"`
	Type      string   `json:"type,omitempty"`
	State     string   `json:"state,omitempty"`
	Settings  string   `json:"settings,omitempty"` // VLANs and other settings of the port
	Addresses []string `json:"addresses,omitempty"`
	Foreign   bool     `json:"foreign,omitempty"` // vmnet has not made it
	Broken    string   `json:"broken,omitempty"`  // why no frames pass; empty if they do
}

// Input is what a map is made from.
type Input struct {
	Links []*rtnl.Link      // all of the namespace
	NICs  []tapmgr.Sighting // of guests, and host accesses
	Peers []nsport.Link     // veth pairs, and what shares parent devices
}

// Kinds of places, in their order on the map, and of ends, in their order at a place.
var (
	placeKinds = []string{"bridge", "switch", "device", "none"}
	endKinds   = []string{"uplink", "host", "guest", "namespace", "port"}
)

// builder makes a map.
type builder struct {
	Input
	byName  map[string]*rtnl.Link
	byIndex map[int]*rtnl.Link
	places  map[[2]string]*Place // by kind and name
	taken   map[string]bool      // links that are ends, by name
}

// Build makes the map of what there is.
func Build(in Input) *Map {
	b := &builder{
		Input: in, byName: map[string]*rtnl.Link{}, byIndex: map[int]*rtnl.Link{}, places: map[[2]string]*Place{},
		taken: map[string]bool{},
	}
	for _, l := range in.Links {
		b.byName[l.Name], b.byIndex[l.Index] = l, l
	}
	for _, l := range in.Links {
		if l.Bridge != nil {
			b.place("bridge", l.Name)
		}
	}
	for i := range in.NICs {
		b.addNIC(&in.NICs[i])
	}
	for _, p := range in.Peers {
		b.addPeer(p)
	}
	for _, l := range in.Links {
		b.addPort(l)
	}
	return b.sorted()
}

func (b *builder) place(kind, name string) *Place {
	p := b.places[[2]string{kind, name}]
	if p != nil {
		return p
	}
	p = &Place{Kind: kind, Name: name, Ends: []End{}}
	b.places[[2]string{kind, name}] = p
	l := b.byName[name]
	switch {
	case kind != "bridge" && kind != "device":
	case l == nil:
		p.Broken = "it does not exist"
	case !l.Up && !isOVS(l, kind): // whose ports pass frames without the host's own
		p.Broken = "it is down"
	case kind == "device" && !l.Carrier:
		p.Broken = "no carrier"
	}
	switch {
	case l == nil:
	case l.Bridge != nil:
		p.Text = bridgeText(l.Bridge)
	case isOVS(l, kind):
		p.Text = "Open vSwitch"
	case kind == "device":
		p.Text = l.Kind
	}
	return p
}

// isOVS reports whether the link of a place is a bridge of Open vSwitch.
func isOVS(l *rtnl.Link, kind string) bool { return kind == "bridge" && l.Bridge == nil }

func bridgeText(br *rtnl.Bridge) string {
	var texts []string
	if br.VLANFiltering {
		texts = append(texts, "VLAN filtering")
	}
	if br.STP {
		texts = append(texts, "STP")
	}
	return strings.Join(texts, ", ")
}

// reasons say why no frames pass a NIC in a state; other states have none.
var reasons = map[nic.State]string{
	nic.NoBridge:    "it is on no bridge (vmnet reconcile)",
	nic.PortError:   "Open vSwitch cannot use its port (vmnet show)",
	nic.NoFlows:     "OVN has not installed its flows (vmnet doctor)",
	nic.Prepared:    "its guest is expected from another QEMU (vmnet commit)",
	nic.OtherBridge: "it is on another bridge than it should be (vmnet check)",
	nic.Incomplete:  "an attach was cut short (vmnet reconcile)",
	nic.Changing:    "a set works on it or was cut short (vmnet reconcile)",
	nic.LeftOver:    "nobody holds it (vmnet reconcile)",
	nic.Down:        "it is down",
	nic.NoCarrier:   "its parent device has no carrier",
	nic.NoSwitch:    "its switch has ended or has lost it",
	nic.Stopped:     "its switch has stopped it, as part of a loop",
	nic.Gone:        "its device was deleted under its guest (vmnet detach, then attach)",
	"disabled":      "its bridge port has no carrier or is disabled",
	"blocking":      "STP blocks its port",
}

func (b *builder) addNIC(n *tapmgr.Sighting) {
	e := End{
		Kind: "guest", Name: n.VM + "/" + n.ID, Guest: n.VM, Interface: n.Interface, Type: n.Type,
		State: string(n.State), Settings: strings.Trim(n.Mode+";"+n.Port, ";"), Foreign: n.Foreign,
		Broken: reasons[n.State],
	}
	switch {
	case n.Type == nic.TypeMacvlan:
		e.Kind, e.Name = "host", n.Interface
	case n.VM == "":
		e.Name = n.Interface
	case n.ID == "":
		e.Name = n.VM
	}
	for _, a := range n.Usual() {
		e.Addresses = append(e.Addresses, a.String())
	}
	if !n.IsSocket() {
		b.taken[n.Interface] = true
	}
	kind, name := "device", n.Source
	switch l := b.byName[n.Interface]; {
	case n.Switch:
		kind = "switch"
	case n.Type == nic.TypeOVS:
		kind = "bridge"
	case n.Type == nic.TypeTap:
		kind = "bridge"
		if l != nil && l.Master != 0 && b.byIndex[l.Master] != nil { // where it is, not where it should be
			name = b.byIndex[l.Master].Name
		}
	}
	if name == "" {
		kind = "none"
	}
	p := b.place(kind, name)
	p.Ends = append(p.Ends, e)
}

// addPeer adds the other end of a port's veth pair, and what shares a parent device and is not a
// guest's.
func (b *builder) addPeer(l nsport.Link) {
	e := End{
		Kind: "namespace", Name: l.Netns.Name, Interface: l.Peer, Type: l.Type, State: l.State, Settings: l.Mode,
		Foreign: l.ID == "", Broken: linkReason(l.State),
	}
	here := l.Interface
	if l.Type != "veth" {
		e.Interface, here = l.Interface, ""
	}
	if p := l.Netns.Process(); p != "" && len(l.Netns.Names) > 0 {
		e.Settings = strings.TrimPrefix(e.Settings+"; "+p, "; ")
	}
	if l.Netns.Own {
		e.Kind, e.Name = "host", e.Interface
	}
	if l.NIC != "" || l.Source == "" || l.Netns.Own && b.taken[e.Interface] {
		return
	}
	kind := "device"
	if master := b.byName[l.Source]; l.Type == "veth" && master != nil {
		if kind = "bridge"; master.Bridge == nil {
			return // a port of a bond, or of a switch of the kernel
		}
	}
	if here != "" {
		b.taken[here] = true
	} else if l.Netns.Own {
		b.taken[e.Interface] = true
	}
	p := b.place(kind, l.Source)
	p.Ends = append(p.Ends, e)
}

func linkReason(state string) string {
	switch state {
	case "down":
		return "it is down"
	case "no-carrier":
		return "no carrier"
	}
	return ""
}

// addPort adds a port of a bridge that is nothing of the above, and VLANs of places.
func (b *builder) addPort(l *rtnl.Link) {
	if b.taken[l.Name] {
		return
	}
	e := End{Kind: "port", Name: l.Name, Interface: l.Name, Type: l.Kind, State: "up", Foreign: true}
	switch {
	case !l.Up:
		e.State = "down"
	case !l.Carrier:
		e.State = "no-carrier"
	}
	e.Broken = linkReason(e.State)
	if master := b.byIndex[l.Master]; master != nil && master.Bridge != nil {
		if l.Kind == "" || slices.Contains([]string{"bond", "team", "vlan", "vxlan"}, l.Kind) {
			e.Kind = "uplink"
		}
		p := b.place("bridge", master.Name)
		p.Ends = append(p.Ends, e)
		return
	}
	lower := b.byIndex[l.Lower]
	if l.Kind != "vlan" || lower == nil || l.LowerNS != rtnl.OwnNS {
		return
	}
	for _, kind := range []string{"bridge", "device"} {
		if p := b.places[[2]string{kind, lower.Name}]; p != nil {
			e.Kind, e.Settings = "host", fmt.Sprintf("vlan:%d", l.VLAN)
			p.Ends = append(p.Ends, e)
			return
		}
	}
}

// sorted returns the places, the bridges first, each with its ends in order.
func (b *builder) sorted() *Map {
	m := &Map{Places: []*Place{}}
	for _, p := range b.places {
		p.Foreign = p.Kind != "none" && !slices.ContainsFunc(p.Ends, func(e End) bool { return !e.Foreign })
		slices.SortStableFunc(p.Ends, func(x, y End) int {
			return cmp.Or(cmp.Compare(slices.Index(endKinds, x.Kind), slices.Index(endKinds, y.Kind)),
				strings.Compare(x.Name, y.Name), strings.Compare(x.Interface, y.Interface))
		})
		m.Places = append(m.Places, p)
	}
	slices.SortFunc(m.Places, func(x, y *Place) int {
		return cmp.Or(cmp.Compare(slices.Index(placeKinds, x.Kind), slices.Index(placeKinds, y.Kind)),
			strings.Compare(x.Name, y.Name))
	})
	return m
}

// FoldAbove is how many guests a place may have before they are folded: then the broken ones are
// shown, and the number of the others.
const FoldAbove = 24

// Folded returns the ends to show of a place, and how many others of guests and namespaces are left
// out.
func (p *Place) Folded() (shown []End, hidden int) {
	many := func(e End) bool { return e.Kind == "guest" || e.Kind == "namespace" }
	count := 0
	for _, e := range p.Ends {
		if many(e) {
			count++
		}
	}
	if count <= FoldAbove {
		return p.Ends, 0
	}
	broken := 0
	for _, e := range p.Ends {
		switch {
		case many(e) && (e.Broken == "" || broken == FoldAbove):
			hidden++
			continue
		case many(e):
			broken++
		}
		shown = append(shown, e)
	}
	return shown, hidden
}

// Title names a place.
func (p *Place) Title() string {
	switch p.Kind {
	case "none":
		return "connected to nothing"
	case "device":
		return "parent device " + p.Name
	}
	return p.Kind + " " + p.Name
}

// hiddenText stands for the ends that are left out.
func hiddenText(hidden int) string { return fmt.Sprintf("and %d more, without a fault", hidden) }
