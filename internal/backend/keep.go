package backend

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"slices"

	"vmnet/bridge/brport"
	"vmnet/internal/inventory"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/rtnl"
	"vmnet/tapmgr/nic"
)

// KeepRouted restores what routed NICs lack of the host, and removes what those that have gone have
// left there. It needs no lock of a guest. Failures of a NIC are in the actions.
func (m *Maker) KeepRouted(ctx context.Context) ([]nic.Action, error) {
	links, err := m.RoutedDevices()
	if err != nil {
		return nil, err
	}
	r := NewMending(m, false)
	for _, dev := range links {
		if dev.Want.Phase != nic.PhasePlugged { // its steps may have yet to come
			continue
		}
		v, err := m.View(&dev)
		if err != nil {
			r.Fail(dev, err)
			continue
		}
		for _, f := range v.Compare() {
			if f.Fix.Kind == inventory.FixRouting {
				r.Do(dev, f.Done, func() error { return m.mend(ctx, v, f.Fix) })
			}
		}
	}
	err = r.tidyHost(ctx)
	return r.Actions, err
}

// policed are the fixes of what the kernel does with frames at a NIC's device.
var policed = []inventory.FixKind{inventory.FixSecurity, inventory.FixInbound, inventory.FixRates}

// KeepPoliced restores what somebody has removed of port security, of the filters of --allow-in and
// of rates. It needs no lock of a guest, and leaves NICs alone that a verb works on. Failures of a
// NIC are in the actions.
func (m *Maker) KeepPoliced(ctx context.Context) ([]nic.Action, error) {
	links, err := m.PolicedDevices()
	if err != nil {
		return nil, err
	}
	r := NewMending(m, false)
	for _, dev := range links {
		v, err := m.View(&dev)
		if err != nil {
			r.Fail(dev, err)
			continue
		}
		for _, f := range v.Compare() {
			if !slices.Contains(policed, f.Fix.Kind) {
				continue
			}
			// A verb that has begun meanwhile has written that into the alias first.
			if now, err := m.NL.LinkByIndex(dev.Index); err == nil && now.Alias == dev.Alias {
				r.Do(dev, f.Done, func() error { return m.mend(ctx, v, f.Fix) })
			}
		}
	}
	return r.Actions, nil
}

// PutBack makes the taps of NICs whose bridges were deleted ports of the bridges of these names
// that are there now, with their settings. It needs no lock of a guest. A tap that was made for
// that very bridge was taken off it by somebody, and is left alone. Failures are in the actions;
// the error is about reading what there is.
func (m *Maker) PutBack(names ...string) ([]nic.Action, error) {
	links, err := m.WithoutMaster()
	if err != nil {
		return nil, err
	}
	r := NewMending(m, false)
	for _, dev := range links {
		if !slices.Contains(names, dev.Want.Source) {
			continue
		}
		br, err := bridges.Get(m.NL, dev.Want.Source)
		if err == nil && dev.Outlived(br) {
			r.Do(dev, "put back on "+br.Name, func() error { return m.putOnBridge(&dev, br) })
		}
	}
	return r.Actions, nil
}

// ForeignWithoutMaster reports whether there is any tap that PutBackForeign might put on a bridge.
func (m *Maker) ForeignWithoutMaster() (bool, error) {
	links, err := m.NL.Links("tun", 0)
	return slices.ContainsFunc(links, func(l *rtnl.Link) bool {
		return inventory.IsForeign(l, "tun") && l.Master == 0
	}), err
}

// PutBackForeign is PutBack for the tap of that name that somebody else, such as libvirt, has made
// for a guest's NIC of that MAC. It leaves the tap up or down. done is false if there is nothing to
// do: the tap is on a bridge, or younger than the bridge, or not for that MAC. The error matches
// fs.ErrNotExist if there is no tap of that name, or no such bridge.
func (m *Maker) PutBackForeign(name string, mac net.HardwareAddr, bridgeName string, cfg brport.Settings) (done bool,
	err error,
) {
	br, err := bridges.Get(m.NL, bridgeName)
	if err != nil {
		return false, err
	}
	l, err := m.NL.Link(name)
	if err != nil {
		return false, fmt.Errorf("interface %s: %w", name, err)
	}
	if !inventory.IsForeignTap(l, mac) || !inventory.Outlived(l, br) {
		return false, nil
	}
	if l.Up {
		return true, bridges.AddPort(m.NL, br, l, cfg)
	}
	return true, bridges.AddPortDown(m.NL, br, l, cfg)
}

// SetForeignPort applies settings to the bridge port of the tap that another program has made for
// process pid and its NIC of that MAC. It only adds to the port's settings, as bridges.AddSettings
// does, and changes nothing if they are so already. The error matches fs.ErrNotExist if there is no
// such tap, or if it is on no bridge.
func (m *Maker) SetForeignPort(pid int, mac net.HardwareAddr, cfg brport.Settings) (changed bool, err error) {
	all, err := m.Foreign(pid)
	if err != nil {
		return false, err
	}
	found := false
	for _, f := range all {
		if f.Type != nic.TypeTap || !f.HasGuest(mac) {
			continue
		}
		found = true
		c, err := m.setForeign(f.Link, cfg)
		if changed = changed || c; err != nil {
			return changed, err
		}
	}
	if !found {
		return false, fmt.Errorf("process %d holds no tap for MAC %s that somebody else made: %w",
			pid, mac, fs.ErrNotExist)
	}
	return changed, nil
}

// SetForeignPortOf is SetForeignPort for the tap of that interface index, which no process needs to
// hold yet. The error matches fs.ErrNotExist if it is no such tap any more, or on no bridge.
func (m *Maker) SetForeignPortOf(index int, mac net.HardwareAddr, cfg brport.Settings) (changed bool, err error) {
	l, err := m.NL.LinkByIndex(index)
	if err != nil {
		return false, fmt.Errorf("interface %d: %w", index, err)
	}
	if !inventory.IsForeignTap(l, mac) {
		return false, fmt.Errorf("interface %s is no tap for MAC %s that somebody else made: %w",
			l.Name, mac, fs.ErrNotExist)
	}
	return m.setForeign(l, cfg)
}

// SetForeignPortNamed is SetForeignPortOf for the tap of that name.
func (m *Maker) SetForeignPortNamed(name string, mac net.HardwareAddr, cfg brport.Settings) (changed bool, err error) {
	l, err := m.NL.Link(name)
	if err != nil {
		return false, fmt.Errorf("interface %s: %w", name, err)
	}
	return m.SetForeignPortOf(l.Index, mac, cfg)
}

func (m *Maker) setForeign(l *rtnl.Link, cfg brport.Settings) (changed bool, err error) {
	br, err := m.PortBridge(l)
	if err != nil {
		return false, err
	}
	return bridges.AddSettings(m.NL, br, l, cfg)
}
