package inventory

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"

	"vmnet/bridge/brport"
	"vmnet/internal/kernel/bpfguard"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/ratelimit"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/network/roster"
	"vmnet/internal/ovs"
	"vmnet/internal/switches"
	"vmnet/tapmgr/nic"
	"vmnet/vhost"
)

// View is what is read of a plugged NIC for its comparison with its record.
type View struct {
	*Device
	Home    *rtnl.Link             // the bridge or parent device that the NIC belongs on; nil if there is none
	port    *brport.Settings       // of a tap that is on home; nil else
	claimed bool                   // a userspace switch takes all frames of the parent device
	vhosts  int                    // open vhost-net fds of its VMM; -1 where that was not read
	notRuns error                  // why its switch, which has lost it, cannot take it back
	missing []string               // what a routed NIC lacks of the host
	answers []netip.Addr           // for which the host answers, of a prepared routed NIC
	guard   *bpfguard.State        // what the kernel checks; nil if that is not known
	unseen  bool                   // the caller may not see what the kernel checks or lets in
	inbound *bpfguard.InboundState // what the kernel lets in; nil if that is not known
	rates   *ratelimit.State       // what the kernel limits; nil if that was not read
	offMap  bridges.Unmapped       // which VLANs of its port reach no other host
}

// View reads what a NIC is compared by. It returns the View also with an error, which is about what
// could not be read.
func (h *Host) View(dev *Device) (*View, error) {
	v := &View{Device: dev, vhosts: -1}
	if dev.Deleted {
		return v, nil
	}
	var errs []error
	var err error
	if v.Home, err = h.home(dev); err != nil {
		errs = append(errs, err)
	}
	if dev.onBridge() && v.Home != nil && dev.Master == v.Home.Index {
		found, err := bridges.ReadPort(h.NL, v.Home, dev.Link)
		if err == nil {
			v.port = &found
			v.offMap, _ = bridges.ReadUnmapped(h.NL, v.Home, found) // advice, without which all else holds
		} else {
			errs = append(errs, fmt.Errorf("its port was not compared: %w", err))
		}
	}
	if dev.OVS.Port != nil {
		v.port = &dev.OVS.Port.Settings
	}
	if dev.OVS.Err != nil {
		errs = append(errs, fmt.Errorf("its port was not compared: %w", dev.OVS.Err))
	}
	if !dev.onBridge() && !dev.IsOVS() && v.Home != nil {
		if v.claimed, err = h.Claimed(v.Home); err != nil {
			errs = append(errs, err)
		}
	}
	if dev.Want.Vhost && dev.VMMPID() != 0 {
		v.vhosts = len(vhost.FDs(dev.VMMPID()))
	}
	if dev.Want.Switch && dev.SwitchPort.Err != nil {
		errs = append(errs, fmt.Errorf("its port was not compared: %w", dev.SwitchPort.Err))
	}
	if dev.IsRouted() && v.Home != nil && dev.HasLink() {
		n, err := h.RoutedNIC(dev)
		switch {
		case err != nil:
		case dev.Want.Prepared:
			v.answers, err = h.Routed().Answered(n)
		default:
			v.missing, err = h.Routed().Missing(n)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("its routing was not compared: %w", err))
		}
	}
	if v.guard, err = h.Guard(dev); err != nil {
		errs = append(errs, err)
	}
	if v.inbound, err = h.Inbound(dev); err != nil {
		errs = append(errs, err)
	}
	if v.rates, err = h.readRates(dev); err != nil {
		errs = append(errs, err)
	}
	v.unseen = isPoliced(dev) && (v.guard == nil && !dev.Want.Security.IsZero() ||
		v.inbound == nil && !dev.Want.AllowIn.IsZero())
	if dev.IsDisconnected() && dev.MayRejoin() {
		v.notRuns = switches.Runs(dev.Want.Source)
	}
	return v, errors.Join(errs...)
}

// readRates reads what the kernel limits of a NIC that should have, or may have had, limits.
func (h *Host) readRates(dev *Device) (*ratelimit.State, error) {
	wanted := !dev.Want.Rates.IsZero() || dev.Want.Phase == nic.PhaseChanging
	if !wanted || !dev.HasLink() || dev.Deleted || dev.Want.Switch || dev.IsPlain() {
		return nil, nil
	}
	var s ratelimit.State
	err := h.On(dev, func(nl *rtnl.Conn) (err error) { s, err = ratelimit.Read(nl, dev.Link); return err })
	if err != nil {
		return nil, fmt.Errorf("its rates were not compared: %w", err)
	}
	return &s, nil
}

// Guard returns what the kernel checks of a guest's frames, and what it has dropped; nil if the
// NIC is one whose frames it does not check, or if the caller may not see that.
func (h *Host) Guard(dev *Device) (*bpfguard.State, error) {
	return readFilters(h, dev, !dev.Want.Security.IsZero(), bpfguard.Read)
}

// Inbound returns what the kernel lets in to a guest, and how much it has dropped; nil as for
// Guard.
func (h *Host) Inbound(dev *Device) (*bpfguard.InboundState, error) {
	return readFilters(h, dev, !dev.Want.AllowIn.IsZero(), bpfguard.ReadInbound)
}

// isPoliced reports whether the kernel can check the frames of the NIC.
func isPoliced(dev *Device) bool {
	return dev.HasLink() && !dev.Deleted && !dev.Want.Switch && !dev.IsPlain()
}

// readFilters reads the state of filters of a NIC's device. Without them it is the zero value.
// wanted says whether there should be some: otherwise a failure means nothing.
func readFilters[T any](h *Host, dev *Device, wanted bool, read func(*rtnl.Conn, *rtnl.Link) (T, error)) (*T, error) {
	if !isPoliced(dev) {
		return nil, nil
	}
	var s T
	var readErr error
	err := h.On(dev, func(nl *rtnl.Conn) error { s, readErr = read(nl, dev.Link); return nil })
	switch {
	case err == nil && (readErr == nil || errors.Is(readErr, fs.ErrNotExist)):
		return &s, nil
	case errors.Is(readErr, fs.ErrPermission), !wanted:
		return nil, nil
	}
	return nil, cmp.Or(err, readErr)
}

// home reads the bridge that a tap belongs on, or the parent device of a macvtap or ipvtap; nil
// if there is none.
func (h *Host) home(dev *Device) (*rtnl.Link, error) {
	var l *rtnl.Link
	var err error
	switch {
	case dev.Want.Switch:
		return nil, nil
	case dev.IsRouted(), dev.IsOVS():
		l, err = h.NL.Link(dev.Want.Source)
	case !dev.onBridge():
		l, err = h.NL.LinkByIndex(dev.Lower)
	case dev.Master != 0 && dev.MasterName == dev.Want.Source:
		l, err = h.NL.LinkByIndex(dev.Master)
	default:
		l, err = h.NL.Link(dev.Want.Source)
	}
	if errors.Is(err, fs.ErrNotExist) || err == nil && dev.onBridge() && l.Bridge == nil {
		return nil, nil
	}
	return l, err
}

// maxParents bounds the depth of VLAN devices on VLAN devices.
const maxParents = 8

// Advice returns notices about a NIC that is as recorded, and yet does not work as its guest
// expects.
func (v *View) Advice() []string {
	var list []string
	if v.Want.Prepared {
		list = append(list, fmt.Sprintf("it is down until vmnet commit --vm %s --nic %s (vmnet abort removes it)",
			v.Want.VM, v.Want.NIC))
	}
	if v.unseen {
		list = append(list, "whether the kernel still checks its frames was not compared: "+
			"that takes CAP_SYS_ADMIN (run it as root)")
	}
	if told, most := v.Want.GuestMTU(), v.WantMTU(); !v.Want.Switch && !v.IsPlain() && most != 0 && told > most {
		list = append(list,
			fmt.Sprintf(
				"the guest may send %d bytes in a frame, and %s carries %d: longer ones are lost "+
					"(ip link set %s mtu %d; or detach it and attach it again)",
				told, v.Home.Name, most, v.Home.Name, told))
	}
	if v.Home != nil && !v.onBridge() && !v.IsOVS() && v.Home.Up && !v.Home.Carrier {
		list = append(list,
			fmt.Sprintf(
				"parent device %s has no carrier: nothing passes it until its cable, or what stands for that, is connected",
				v.Home.Name))
	}
	if text, cure := v.OffMap(); text != "" {
		list = append(list, fmt.Sprintf("%s (%s)", text, cure))
	}
	return list
}

// OffMap says which VLANs of the NIC are in no segment of its bridge's VXLAN device, and what to do
// about it; it returns empty strings if all are, or if the bridge has no such device.
func (v *View) OffMap() (text, cure string) {
	if len(v.offMap.VLANs) == 0 {
		return "", ""
	}
	cure = fmt.Sprintf("map it by vmnet bridge create %s --vxlan-map, or use --vlan with one that is mapped",
		v.Home.Name)
	if name := roster.NetworkOf(v.Home); name != "" {
		cure = fmt.Sprintf("add it to the map in the file of network %s, then vmnet network apply %[1]s", name)
	}
	return fmt.Sprintf("VLAN %s is not in the map of %s: its frames reach no other host",
		brport.FormatVLANs(v.offMap.VLANs), v.offMap.Device), cure
}

// OVSPort is what Open vSwitch says of a NIC that belongs on one of its bridges.
type OVSPort struct {
	Port *ovs.Port // nil: it has no such port, or could not be asked
	Err  error     // why it could not be asked
}

// ErrSilent is why a database of Open vSwitch could not be asked in time.
var ErrSilent = errors.New("the database of Open vSwitch does not answer")

// IsOVS reports whether the NIC belongs on a bridge of Open vSwitch.
func (dev *Device) IsOVS() bool { return dev.Want.Type == nic.TypeOVS }

// OVSOwner returns what a port's row says of a NIC with that record, whose tap has that interface
// index.
func (h *Host) OVSOwner(r nic.Record, index int) (ovs.Owner, error) {
	netns, err := h.NS.Inode()
	o := ovs.Owner{VM: r.VM, NIC: r.NIC, Place: ovs.Here(netns), Link: index}
	if r.VM == "" { // a plain tap
		o.UID = r.Owner
	}
	return o, err
}

// ReadOVS asks Open vSwitch for the ports of those of the devices that belong on its bridges, each
// database once. What it says of the bridge is the device's MasterName.
func (h *Host) ReadOVS(ctx context.Context, devs ...*Device) {
	byPath := map[string][]*Device{}
	for _, dev := range devs {
		if dev.IsOVS() && dev.HasLink() {
			byPath[dev.Want.OVSDB] = append(byPath[dev.Want.OVSDB], dev)
		}
	}
	for path, some := range byPath {
		ports, err := h.readOVS(ctx, path, some)
		for _, dev := range some {
			dev.OVS = OVSPort{Err: err}
			i := slices.IndexFunc(ports, func(p ovs.Port) bool { return p.Name == dev.Name })
			if i < 0 {
				continue
			}
			dev.OVS.Port = &ports[i]
			if dev.MasterName == "" {
				dev.MasterName = ports[i].Bridge
			}
		}
	}
}

func (h *Host) readOVS(ctx context.Context, path string, some []*Device) (ports []ovs.Port, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, ovs.ReadWait, ErrSilent)
	defer cancel()
	var names []string
	for _, dev := range some {
		names = append(names, dev.Name)
	}
	err = h.UseOVS(ctx, path, func(c *ovs.Conn) (err error) {
		ports, err = c.Named(ctx, names...)
		return err
	})
	return ports, err
}

// isDatapath reports whether a link stands for all bridges of Open vSwitch in the kernel's
// datapath, as the master of their ports.
func isDatapath(l *rtnl.Link) bool { return l != nil && l.Kind == "openvswitch" }

// ovsState returns the state of a NIC's port.
func (dev *Device) ovsState() nic.State {
	switch p := dev.OVS.Port; {
	case !dev.Up:
		return nic.Down
	case dev.OVS.Err != nil:
		return nic.Unknown
	case p == nil:
		return nic.NoBridge
	case p.Trouble() != "":
		return nic.PortError
	case p.IsOVNs && !p.Installed:
		return nic.NoFlows
	}
	return nic.State(rtnl.Forwarding.String())
}

// RxFilter returns the receive filter of a macvtap or ipvtap. A device that mirrors its guest's
// groups may or may not have allmulti on: see show.
func RxFilter(dev *Device) string {
	switch {
	case dev.Want.RxFilter == nic.RxMirror:
		return nic.RxMirror
	case dev.AllMulti:
		return nic.RxAllMulti
	}
	return nic.RxNone
}
