package inventory

import (
	"errors"
	"fmt"
	"io/fs"

	"vmnet/internal/endpoint"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/rtnl"
	"vmnet/vhost"
)

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
		} else {
			errs = append(errs, fmt.Errorf("its port was not compared: %w", err))
		}
	}
	if !dev.onBridge() && v.Home != nil {
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
	if dev.IsDisconnected() && dev.HasLink() {
		v.notRuns = h.runs(dev.Want.Source)
	}
	return v, errors.Join(errs...)
}

// home reads the bridge that a tap belongs on, or the parent device of a macvtap or ipvtap; nil
// if there is none.
func (h *Host) home(dev *Device) (*rtnl.Link, error) {
	var l *rtnl.Link
	var err error
	switch {
	case dev.Want.Switch:
		return nil, nil
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

// Claimed reports whether a userspace switch takes all frames of a device, or of the device of
// which it is a VLAN. It is false if the caller lacks the privilege to see that.
func (h *Host) Claimed(l *rtnl.Link) (bool, error) {
	for range maxParents {
		claimed, err := endpoint.Claimed(h.NS, l.Name)
		if errors.Is(err, fs.ErrPermission) {
			return false, nil
		}
		if claimed || err != nil || l.Kind != "vlan" || l.LowerNS >= 0 {
			return claimed, err
		}
		if l, err = h.NL.LinkByIndex(l.Lower); err != nil {
			return false, rtnl.IgnoreNotExist(err)
		}
	}
	return false, nil
}

// Advice returns notices about a NIC that is as recorded, and yet does not work as its guest
// expects.
func (v *View) Advice() []string {
	var list []string
	if told, most := v.Want.GuestMTU(), v.WantMTU(); !v.Want.Switch && !v.IsPlain() && most != 0 && told > most {
		list = append(list,
			fmt.Sprintf(
				"the guest may send %d bytes in a frame, and %s carries %d: longer ones are lost (ip link set %s mtu %d; or detach it and attach it again)",
				told, v.Home.Name, most, v.Home.Name, told))
	}
	if v.Home != nil && !v.onBridge() && v.Home.Up && !v.Home.Carrier {
		list = append(list,
			fmt.Sprintf(
				"parent device %s has no carrier: nothing passes it until its cable, or what stands for that, is connected",
				v.Home.Name))
	}
	return list
}
