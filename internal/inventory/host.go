// Package inventory reads what there is of vmnet's NICs on a host: links and their aliases, the
// processes that hold them, the ports of userspace switches. It changes nothing. What it returns is
// plain data, and so are its verdicts: the state of a NIC, who holds it, and how it differs from
// its record.
package inventory

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"vmnet/internal/alias"
	"vmnet/internal/holders"
	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/ovs"
	"vmnet/internal/routed"
	"vmnet/internal/switches"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr/nic"
)

// Devices reads all managed devices and their holders, sorted by guest and id.
func (h *Host) Devices(ctx context.Context) ([]Device, error) {
	links, err := h.ownLinks()
	if err != nil {
		return nil, err
	}
	op, err := h.look(ctx, links)
	if err != nil {
		return nil, err
	}
	return h.devicesOf(ctx, links, op)
}

// AllDevices is [Host.Devices] with the privilege to look into other users' processes, if the Host
// has it.
func (h *Host) AllDevices(ctx context.Context) (all []Device, err error) {
	err = h.WithPrivilege(func() error { all, err = h.Devices(ctx); return err })
	return all, err
}

// devicesOf is Devices for links and files that were read already.
func (h *Host) devicesOf(ctx context.Context, links []*rtnl.Link, op *holders.Files) ([]Device, error) {
	own := h.records(links)
	for i := range own {
		dev := &own[i]
		if dev.Tun != nil {
			dev.addHolders(op, op.QueuesOf(ctx, dev.Name))
		} else {
			h.addNodeHolders(dev, op)
		}
		dev.Pending = dev.awaitsLibvirt()
	}
	pointers := make([]*Device, len(own))
	for i := range own {
		pointers[i] = &own[i]
	}
	h.ReadOVS(ctx, pointers...)
	all := append(own, h.inSpaces(ctx, op)...)
	all = append(all, h.seats(ctx, all, op)...)
	all = append(all, deadNICs(op, all)...)
	all = append(all, h.deadOfLibvirt(ctx, op, all)...)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	slices.SortFunc(all, func(a, b Device) int {
		return cmp.Or(strings.Compare(a.Want.VM, b.Want.VM), strings.Compare(a.Want.NIC, b.Want.NIC))
	})
	return all, nil
}

// look looks at all processes for the queues of those of these links that are taps, and for the
// NICs elsewhere.
func (h *Host) look(ctx context.Context, links []*rtnl.Link) (*holders.Files, error) {
	own, err := h.NS.Inode()
	if err != nil {
		return nil, err
	}
	return holders.Look(ctx, own, links, h.notice)
}

// ownLinks lists the links in the Host's netns whose aliases begin as vmnet's do: taps, and
// macvtaps that were handed over by name.
func (h *Host) ownLinks() ([]*rtnl.Link, error) {
	var found []*rtnl.Link
	for _, kind := range []string{"tun", string(vtap.Macvtap), string(vtap.IPVtap)} {
		all, err := h.NL.Links(kind, 0)
		if err != nil {
			return nil, err
		}
		for _, l := range all {
			// A macvtap whose parent device is elsewhere belongs to the Host there.
			if strings.HasPrefix(l.Alias, alias.Prefix) && (l.Tun != nil || l.LowerNS < 0) {
				found = append(found, l)
			}
		}
	}
	return found, nil
}

// records lists those of the links in the Host's netns that are NICs.
func (h *Host) records(links []*rtnl.Link) []Device {
	var found []Device
	masters := map[int]*rtnl.Link{0: nil}
	for _, l := range links {
		r, ok := nic.ParseRecord(l.Alias)
		if !ok {
			continue
		}
		if _, known := masters[l.Master]; !known {
			masters[l.Master] = h.MasterOf(l)
		}
		found = append(found, h.own(l, r, masters[l.Master]))
	}
	return found
}

// own returns the device of a link in the Host's netns. master is nil if it has none.
func (h *Host) own(l *rtnl.Link, r nic.Record, master *rtnl.Link) Device {
	dev := Device{Link: l, Want: r}
	if master != nil && !(dev.IsOVS() && isDatapath(master)) {
		dev.MasterName = master.Name
	}
	on := master
	switch {
	case dev.IsOVS():
		on = nil
	case dev.IsRouted():
		on, _ = h.NL.LinkByIndex(r.At)
	case dev.Tun == nil:
		on, _ = h.NL.LinkByIndex(l.Lower)
	}
	h.follow(&dev, on)
	return dev
}

// follow finds a bridge or parent device that was renamed under a NIC, by the interface index, and
// makes its present name the one that the NIC belongs on. on is the link that the NIC is on now, or
// nil.
func (h *Host) follow(dev *Device, on *rtnl.Link) {
	r := &dev.Want
	var now *rtnl.Link
	switch {
	case r.Switch || r.Source == "" || on != nil && on.Name == r.Source:
		return
	case !dev.onBridge(): // the kernel never puts it on another parent device or uplink
		now = on
	case on != nil && on.Index == r.At:
		now = on
	case on != nil: // the only evidence: neither the former name nor the index exists any more
		_, err := h.NL.Link(r.Source)
		if errors.Is(err, fs.ErrNotExist) && r.At != 0 {
			_, err = h.NL.LinkByIndex(r.At)
		}
		if errors.Is(err, fs.ErrNotExist) {
			now = on
		}
	case r.At != 0:
		if l, err := h.NL.LinkByIndex(r.At); err == nil && l.Bridge != nil {
			now = l
		}
	}
	if now != nil && (!dev.onBridge() || now.Bridge != nil) {
		dev.FormerSource, r.Source = r.Source, now.Name
	}
}

// MasterOf reads the master of a link; nil if it has none.
func (h *Host) MasterOf(l *rtnl.Link) *rtnl.Link {
	if l.Master == 0 {
		return nil
	}
	master, err := h.NL.LinkByIndex(l.Master)
	if err != nil {
		return &rtnl.Link{Index: l.Master, Name: fmt.Sprintf("interface %d", l.Master)}
	}
	return master
}

// MasterName returns the name of a link's master, or "" if it has none.
func (h *Host) MasterName(l *rtnl.Link) string {
	if master := h.MasterOf(l); master != nil {
		return master.Name
	}
	return ""
}

// seats asks the switches. It sets the ports of the devices that belong on switches, and returns
// the NICs without a link.
func (h *Host) seats(ctx context.Context, links []Device, op *holders.Files) []Device {
	names := sources(op.Labels)
	for _, dev := range links {
		if dev.Want.Switch {
			names = append(names, dev.Want.Source)
		}
	}
	all := h.askSwitches(ctx, names...)
	for i := range links {
		if dev := &links[i]; dev.Want.Switch {
			dev.SwitchPort = switchPortOf(dev, all)
		}
	}
	return h.socketNICs(op, all)
}

// Routed returns what makes, compares and removes what routed NICs need of the host.
func (h *Host) Routed() *routed.Host {
	return &routed.Host{NS: h.NS, NL: h.NL, NICs: h.routedNICs}
}

// RoutedDevices lists the routed NICs whose taps are there, without those that a forced detach has
// cut off. Their holders are not filled in.
func (h *Host) RoutedDevices() (found []Device, err error) {
	links, err := h.NL.Links("tun", 0)
	for _, l := range links {
		if r, ok := nic.ParseRecord(l.Alias); ok && r.Type == nic.TypeRouted {
			if dev := h.own(l, r, h.MasterOf(l)); !dev.isCutOff() {
				found = append(found, dev)
			}
		}
	}
	return found, err
}

// PolicedDevices lists the NICs in the Host's netns whose frames the kernel should check, filter or
// limit, without their holders. Those that something works on are not among them.
func (h *Host) PolicedDevices() (found []Device, err error) {
	links, err := h.ownLinks()
	for _, dev := range h.records(links) {
		r := dev.Want
		policed := !r.Security.IsZero() || !r.AllowIn.IsZero() || !r.Rates.IsZero()
		if policed && r.Phase == nic.PhasePlugged && !r.Switch {
			found = append(found, dev)
		}
	}
	return found, err
}

func (h *Host) routedNICs() (nics []routed.NIC, err error) {
	all, err := h.RoutedDevices()
	for _, dev := range all {
		n, nicErr := h.RoutedNIC(&dev)
		err = errors.Join(err, nicErr)
		nics = append(nics, n)
	}
	return nics, err
}

// RoutedNIC returns what a routed NIC needs of the host. Its Uplink is -1 if that has gone.
func (h *Host) RoutedNIC(dev *Device) (routed.NIC, error) {
	n := routed.NIC{Tap: dev.Name, Uplink: -1, IPs: dev.Want.IP}
	l, err := h.NL.Link(dev.Want.Source)
	if err == nil {
		n.Uplink = l.Index
	}
	return n, rtnl.IgnoreNotExist(err)
}

// A Host is one network namespace, and the processes that the caller sees. Its methods may be
// called concurrently.
type Host struct {
	NS *netns.NS
	NL *rtnl.Conn // in NS

	// Switches, if not nil, lists the control sockets of the userspace switches to ask about
	// guests' NICs; ok is false if none is to be asked. A privileged helper asks none: any user can
	// run a switch.
	Switches func() (paths []string, ok bool, err error)
	// OVSDBs are the sockets of the databases of Open vSwitch in which rows may be left of NICs
	// that have gone; none stands for that of this machine.
	OVSDBs []string
	// OfLibvirt, if not nil, asks libvirt for vmnet's NICs of the guests whose VMMs these processes
	// are. It is called if a VMM holds a queue of a device that may have been deleted, and returns
	// none if libvirt does not answer soon.
	OfLibvirt func(ctx context.Context, pids []int) []LibvirtNIC
	// Notice, if not nil, is called with what could not be read, such as a switch that does not
	// answer.
	Notice func(text string)
	// LookInto, if not nil, runs f with the privilege to look into other users' processes and to
	// connect to Open vSwitch's database, which a privileged helper has at no other time.
	LookInto func(f func() error) error

	asker switches.Asker
}

func (h *Host) notice(format string, args ...any) {
	if h.Notice != nil {
		h.Notice(fmt.Sprintf(format, args...))
	}
}

// WithPrivilege runs f with the privilege to look into other users' processes, if the Host has it.
func (h *Host) WithPrivilege(f func() error) error {
	if h.LookInto != nil {
		return h.LookInto(f)
	}
	return f()
}

// NICs reads all NICs of guests of that name, or of all guests if vm is empty, also those whose
// holders the caller cannot see. plain are the taps of which only the bridge is known, if vm is
// empty.
func (h *Host) NICs(ctx context.Context, vm string) (nics, plain []Seen, err error) {
	links, err := h.ownLinks()
	if err != nil {
		return nil, nil, err
	}
	op, err := h.look(ctx, links)
	if err != nil {
		return nil, nil, err
	}
	all, err := h.devicesOf(ctx, links, op)
	if err != nil {
		return nil, nil, err
	}
	hidden, err := h.hidden(all, vm)
	if err != nil {
		return nil, nil, err
	}
	if vm == "" {
		plain = h.plainNICs(ctx, links, op)
	}
	for _, dev := range all {
		if vm == "" || dev.Want.VM == vm {
			nics = append(nics, Seen{dev.NIC(), dev})
		}
	}
	return append(nics, hidden...), plain, nil
}

// Seen is a NIC as a list shows it, and its device.
type Seen struct {
	nic.NIC
	Device Device
}

// hidden lists vmnet's macvtaps that are on parent devices in the Host's netns and that no
// process is seen to hold: nobody can reach them but by the id of their netns. Where vm is not
// empty, they are that guest's.
func (h *Host) hidden(known []Device, vm string) ([]Seen, error) {
	devices, err := macvlan.Everywhere(h.NL)
	if err != nil {
		return nil, err
	}
	// The kernel gives this netns an id in itself when it reports the first of these devices.
	self, err := h.NL.NetnsID(h.NS)
	if err != nil || self < 0 { // none of them has its parent device here
		return nil, err
	}
	seen := map[int]bool{}
	for i := range known {
		if dev := &known[i]; dev.NetnsFile != nil {
			seen[h.netnsID(dev)] = true
		}
	}
	var nics []Seen
	for _, d := range devices {
		if r, ok := nic.ParseRecord(d.Alias); ok && d.LowerNS == self && !seen[d.NetnsID] && (vm == "" || r.VM == vm) {
			dev := Device{Link: d.Link, Want: r}
			found := dev.AsHeld()
			found.State = nic.Hidden
			nics = append(nics, Seen{found, dev})
		}
	}
	return nics, nil
}

// netnsID is the id of the netns that a link is in; -1 for none.
func (h *Host) netnsID(dev *Device) int {
	id := -1
	_ = h.withinOpen(dev, func(ns *netns.NS) (err error) { id, err = h.NL.NetnsID(ns); return err })
	return id
}

// UseOVS connects to the database with that socket, empty for the usual one, and runs f. Only root
// may connect: a privileged helper raises its privilege for that alone.
func (h *Host) UseOVS(ctx context.Context, path string, f func(*ovs.Conn) error) error {
	var c *ovs.Conn
	err := h.WithPrivilege(func() (err error) { c, err = ovs.Dial(ctx, path); return err })
	if err != nil {
		return err
	}
	defer c.Close()
	return f(c)
}
