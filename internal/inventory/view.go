package inventory

import (
	"errors"
	"fmt"
	"io/fs"

	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/rtnl"
	"vmnet/vhost"
)

// View reads what a NIC is compared by. An error is about what could not be read, and the rest is
// there.
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
// where there is none.
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

// follow finds a bridge or parent device that was renamed under a NIC: the kernel numbers links,
// and people name them. Its present name becomes the one that the NIC belongs on. on is the link
// that the NIC is on now; nil for none.
func (h *Host) follow(dev *Device, on *rtnl.Link) {
	r := &dev.Want
	var now *rtnl.Link
	switch {
	case r.Switch || r.Source == "" || on != nil && on.Name == r.Source:
		return
	case !dev.onBridge(): // the kernel never puts it on another parent device
		now = on
	case on != nil && on.Index == r.At:
		now = on
	case on != nil: // nothing tells but that neither the name nor the index is anybody's
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

// MasterOf reads the link that another one is a port of; nil for none.
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

// Advice is what a person should know of a NIC that is as it should be, and does not work as the
// guest expects.
func (v *View) Advice() []string {
	var list []string
	if told, most := v.Want.GuestMTU(), v.WantMTU(); !v.Want.Switch && !v.IsPlain() && most != 0 && told > most {
		list = append(list, fmt.Sprintf("the guest may send %d bytes in a frame, and %s carries %d: longer ones are lost (ip link set %s mtu %d; or detach it and attach it again)",
			told, v.Home.Name, most, v.Home.Name, told))
	}
	if v.Home != nil && !v.onBridge() && v.Home.Up && !v.Home.Carrier {
		list = append(list, fmt.Sprintf("parent device %s has no carrier: nothing passes it until its cable, or what stands for that, is connected", v.Home.Name))
	}
	return list
}
