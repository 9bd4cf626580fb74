package why

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/network/roster"
	"vmnet/internal/ovs"
	"vmnet/tapmgr"
)

// A Hold is something that has a device, and what cannot be attached there because of it.
type Hold struct {
	By     string `json:"by"`               // "port of bridge br0"
	Blocks string `json:"blocks,omitempty"` // empty if it is in nothing's way
	Cure   string `json:"cure,omitempty"`   // what ends the hold
}

// Busy says who holds a device or an address.
type Busy struct {
	Device string `json:"device"`
	What   string `json:"what"` // what it is
	Holds  []Hold `json:"holds"`
}

// BusyFacts are what is known about a device.
type BusyFacts struct {
	Name    string
	Addr    netip.Addr // instead of a device
	Links   []*rtnl.Link
	Addrs   []Addr
	NICs    []tapmgr.Sighting
	Abroad  []Abroad // macvtaps and the like on it that are in other namespaces
	Opened  []Opener // of a tap
	OVS     []ovs.Port
	Claimed bool   // a userspace switch takes its frames
	Netns   string // another namespace that has a device of the name
}

// Abroad is a device in another namespace whose parent device is here.
type Abroad struct {
	Name, Kind string
	Passthru   bool // it takes its parent device for itself
	Lower      int
}

// Opener is a process that has a tap open.
type Opener struct {
	PID     int
	Program string
}

// handlers says what a device with an rx_handler cannot be as well: the kernel gives its frames to
// one of them only (netdev_rx_handler_register in net/core/dev.c, EBUSY).
const handlers = "another bridge, bond, Open vSwitch, macvtap or ipvtap on it " +
	"(the kernel leads a device's frames to one of them)"

// Explain says who holds the device.
func (f *BusyFacts) Explain() *Busy {
	if f.Addr.IsValid() {
		return f.address()
	}
	b := &Busy{Device: f.Name, What: "no device of this namespace", Holds: []Hold{}}
	l := f.link()
	if l == nil {
		if f.Netns != "" {
			b.add("network namespace "+f.Netns, "everything here: a device is in one namespace only",
				"ip netns exec "+f.Netns+" ip link set "+f.Name+" netns 1")
		}
		return b
	}
	b.What = describe(l)
	for _, part := range []func(*Busy, *rtnl.Link){
		f.master, f.children, f.openers, f.switches, f.ports, f.guests, f.addresses,
	} {
		part(b, l)
	}
	return b
}

func (b *Busy) add(by, blocks, cure string) { b.Holds = append(b.Holds, Hold{by, blocks, cure}) }

func describe(l *rtnl.Link) string {
	kind := l.Kind
	switch {
	case l.Tun != nil && l.Tun.Tap:
		kind = "tap"
	case kind == "":
		kind = "card"
	}
	state := "up"
	switch {
	case !l.Up:
		state = "down"
	case !l.Carrier:
		state = "no carrier"
	}
	return fmt.Sprintf("%s, %s, MTU %d", kind, state, l.MTU)
}

// master adds the bridge, bond or switch that the device is a port of.
func (f *BusyFacts) master(b *Busy, l *rtnl.Link) {
	m := linkAt(f.Links, l.Master)
	row := slices.IndexFunc(f.OVS, func(p ovs.Port) bool { return p.Name == l.Name && p.Bridge != "" })
	switch {
	case row >= 0:
		b.add("port of bridge "+f.OVS[row].Bridge+" of Open vSwitch", handlers, "ovs-vsctl del-port "+l.Name)
	case m == nil:
	case m.Bridge != nil:
		b.add("port of bridge "+m.Name, handlers, "ip link set "+l.Name+" nomaster")
	case m.Kind == "openvswitch" || m.Name == "ovs-system":
		b.add("port of Open vSwitch", handlers, "ovs-vsctl del-port "+l.Name)
	default:
		b.add("port of "+m.Kind+" "+m.Name, handlers, "ip link set "+l.Name+" nomaster")
	}
}

// children adds the devices whose parent device it is.
func (f *BusyFacts) children(b *Busy, l *rtnl.Link) {
	byKind := map[string][]string{}
	passthru := ""
	for _, c := range f.Links {
		if c.Lower != l.Index || c.LowerNS >= 0 || c.Kind == "veth" {
			continue
		}
		byKind[c.Kind] = append(byKind[c.Kind], c.Name)
		if isPassthru(c) {
			passthru = c.Name
		}
	}
	for _, a := range f.Abroad {
		if a.Lower == l.Index {
			byKind[a.Kind] = append(byKind[a.Kind], a.Name)
			if a.Passthru {
				passthru = a.Name
			}
		}
	}
	for _, kind := range slices.Sorted(maps.Keys(byKind)) {
		names := byKind[kind]
		by := fmt.Sprintf("parent device of %s %s", kind, strings.Join(names, ", "))
		cure := "ip link delete " + names[0] + "; of a guest: vmnet detach"
		switch {
		case passthru != "" && slices.Contains(names, passthru):
			b.add(by, "everything else: "+passthru+" is in mode passthru, which takes the device for itself", cure)
		case strings.HasPrefix(kind, "macv"):
			b.add(by, "a bridge, bond, Open vSwitch or ipvtap on it; further macvtaps can be made", cure)
		case strings.HasPrefix(kind, "ipv"):
			b.add(by, "a bridge, bond, Open vSwitch or macvtap on it; further ipvtaps of that mode can be made", cure)
		default:
			b.add(by, "", "")
		}
	}
}

// openers adds the processes that have a tap open.
func (f *BusyFacts) openers(b *Busy, l *rtnl.Link) {
	if l.Tun == nil {
		return
	}
	blocks := "another program that opens it: it has one queue, which is taken"
	if l.Tun.MultiQueue {
		blocks = ""
	}
	for _, o := range f.Opened {
		b.add(fmt.Sprintf("opened by process %d (%s)", o.PID, o.Program), blocks, fmt.Sprintf("end process %d", o.PID))
	}
	if len(f.Opened) == 0 && l.Tun.Attached {
		b.add("opened by a process that cannot be seen", blocks, "run this as root")
	}
	if l.Tun.Persist && !l.Tun.Attached {
		b.add("nothing: it is persistent, and nobody has it open", "", "ip tuntap del dev "+l.Name+" mode tap")
	}
}

func (f *BusyFacts) switches(b *Busy, l *rtnl.Link) {
	if f.Claimed {
		b.add("a userspace switch, by a claim", "the host's own traffic by it, a bridge and another switch",
			"vmnet switch list, then vmnet switch remove-port SWITCH "+l.Name)
	}
}

// ports adds what is on a bridge.
func (f *BusyFacts) ports(b *Busy, l *rtnl.Link) {
	if l.Bridge == nil {
		return
	}
	var names []string
	for _, p := range f.Links {
		if p.Master == l.Index {
			names = append(names, p.Name)
		}
	}
	if len(names) > 0 {
		b.add("its ports "+strings.Join(names, ", "), "its deletion by vmnet bridge delete without --force",
			"vmnet bridge delete "+l.Name+" --force")
	}
	if name := roster.NetworkOf(l); name != "" {
		b.add("network "+name+" of vmnet", "", "vmnet network delete "+name)
	}
}

func (f *BusyFacts) guests(b *Busy, l *rtnl.Link) {
	for _, n := range f.NICs {
		switch {
		case n.VM == "":
		case n.Interface == l.Name:
			b.add(fmt.Sprintf("guest %s/%s (process %d)", n.VM, n.ID, n.PID), "",
				"vmnet detach --vm "+n.VM+" --nic "+n.ID)
		case n.Source == l.Name && n.Type == "routed":
			b.add(fmt.Sprintf("uplink of the routed guest %s/%s", n.VM, n.ID), "",
				"vmnet detach --vm "+n.VM+" --nic "+n.ID)
		}
	}
}

func (f *BusyFacts) addresses(b *Busy, l *rtnl.Link) {
	var all []string
	for _, a := range f.Addrs {
		if a.Link == l.Index && !a.Addr().IsLinkLocalUnicast() {
			all = append(all, a.String())
		}
	}
	if len(all) == 0 {
		return
	}
	blocks, cure := "", ""
	if l.Bridge == nil && l.Tun == nil && l.Kind != "veth" {
		blocks = "a bridge on it would take the host these addresses, unless they move"
		cure = "vmnet network create NAME --uplink " + l.Name + " --move-address"
	}
	b.add("addresses of the host: "+strings.Join(all, ", "), blocks, cure)
}

// address says who has an address.
func (f *BusyFacts) address() *Busy {
	b := &Busy{Device: f.Addr.String(), What: "an address", Holds: []Hold{}}
	for _, a := range f.Addrs {
		l := linkAt(f.Links, a.Link)
		switch {
		case l == nil:
		case a.Addr() == f.Addr:
			b.add("the host itself, on "+l.Name, "a guest that would have it too",
				"ip address del "+a.String()+" dev "+l.Name)
		case a.Masked().Contains(f.Addr) && a.Bits() < a.Addr().BitLen():
			b.add("in the subnet "+a.Masked().String()+" of "+l.Name+networkOf(l), "", "")
		}
	}
	for _, n := range f.NICs {
		for _, a := range n.Addresses {
			if a.IP == f.Addr {
				b.add(fmt.Sprintf("guest %s/%s on %s (%s)", n.VM, n.ID, n.Source, strings.Join(a.From, ", ")),
					"another guest that would have it too", "vmnet detach --vm "+n.VM+" --nic "+n.ID)
			}
		}
	}
	return b
}

func networkOf(l *rtnl.Link) string {
	if name := roster.NetworkOf(l); name != "" {
		return ", network " + name
	}
	return ""
}

// Text writes it in lines of at most width columns.
func (b *Busy) Text(width int) string {
	var s strings.Builder
	s.WriteString(wrapped(fmt.Sprintf("%s: %s", b.Device, b.What), "  ", width))
	if len(b.Holds) == 0 {
		s.WriteString("nothing holds it\n")
		return s.String()
	}
	for _, h := range b.Holds {
		s.WriteString("  " + wrapped(h.By, "    ", width))
		if h.Blocks != "" {
			s.WriteString("      " + wrapped("in the way of "+h.Blocks, "        ", width))
		}
		if h.Cure != "" {
			s.WriteString("      " + wrapped("ends by: "+h.Cure, "        ", width))
		}
	}
	return s.String()
}
