package backend

import (
	"errors"
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

// PutBack makes the taps of ours that belong on bridges, and are on none since those were deleted,
// ports of the bridges of these names that are there now, with their settings. It needs no guest's
// lock. A tap that was made for that very bridge was taken off it by somebody, and is left alone.
// Failures are told in the actions; the error is about the reading of what is.
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

// ForeignWithoutMaster tells whether there is any tap that PutBackForeign might put on a bridge.
func (m *Maker) ForeignWithoutMaster() (bool, error) {
	links, err := m.NL.Links("tun", 0)
	return slices.ContainsFunc(links, func(l *rtnl.Link) bool { return inventory.IsForeign(l, "tun") && l.Master == 0 }), err
}

// PutBackForeign is PutBack for the tap of that name that somebody else, such as libvirt, has made
// for a guest's NIC of that MAC. It leaves the tap up or down. done is false where there is nothing
// to do: the tap is on a bridge, or younger than that one, or none of that MAC. No tap of that
// name, and no such bridge, Is fs.ErrNotExist.
func (m *Maker) PutBackForeign(name string, mac net.HardwareAddr, bridgeName string, cfg brport.Settings) (done bool, err error) {
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
	if err := bridges.CheckPort(m.NL, br, l, cfg); err != nil {
		return true, err
	}
	if err := m.NL.Set(l.Index, rtnl.Master(br.Index)); err != nil {
		return true, fmt.Errorf("add port %s to %s: %w", l.Name, br.Name, err)
	}
	if err := bridges.SetPort(m.NL, br, l, cfg); err != nil {
		return true, errors.Join(err, bridges.RemovePort(m.NL, l))
	}
	return true, nil
}

// SetForeignPortOf is SetForeignPort for the tap of that interface index, which no process needs
// to hold yet. That it is no such tap any more, or on no bridge, Is fs.ErrNotExist.
func (m *Maker) SetForeignPortOf(index int, mac net.HardwareAddr, cfg brport.Settings) (changed bool, err error) {
	l, err := m.NL.LinkByIndex(index)
	if err != nil {
		return false, fmt.Errorf("interface %d: %w", index, err)
	}
	if !inventory.IsForeignTap(l, mac) {
		return false, fmt.Errorf("interface %s is no tap for MAC %s that somebody else made: %w", l.Name, mac, fs.ErrNotExist)
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
