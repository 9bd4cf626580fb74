package tapmgr

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"slices"

	"vmnet/bridge"
	"vmnet/internal/kernel/rtnl"
	"vmnet/tapmgr/nic"
)

// PutBack makes the taps of ours that belong on bridges, and are on none since those were deleted, ports of the
// bridges of these names that are there now, with their settings. It needs no guest's lock. A tap
// that was made for that very bridge was taken off it by somebody, and is left alone. Failures are told in the actions; the
// error is about the reading of what is.
func (m *Manager) PutBack(bridges ...string) ([]Action, error) {
	links, err := m.withoutMaster()
	if err != nil {
		return nil, err
	}
	r := &reconciler{m: m, actions: []Action{}}
	for _, o := range links {
		if !slices.Contains(bridges, o.want.Source) {
			continue
		}
		br, err := bridge.Get(m.nl, o.want.Source)
		if err == nil && o.outlived(br) {
			r.do(o, "put back on "+br.Name, func() error { return m.putBack(&o, br) })
		}
	}
	return r.actions, nil
}

// withoutMaster lists the taps of ours that are on no bridge, and that nobody keeps off it.
func (m *Manager) withoutMaster() ([]ours, error) {
	links, err := m.inOwn()
	if err != nil {
		return nil, err
	}
	all := append(m.records(links), m.plain(links)...)
	return slices.DeleteFunc(all, func(o ours) bool {
		working := o.want.Phase == nic.PhaseAttaching || o.want.Phase == nic.PhaseDetaching && !o.Up // cut off by force
		return o.want.Type != nic.TypeTap || o.want.Switch || o.Master != 0 || working
	}), nil
}

// ForeignWithoutMaster tells whether there is any tap that PutBackForeign might put on a bridge.
func (m *Manager) ForeignWithoutMaster() (bool, error) {
	links, err := m.nl.Links("tun", 0)
	return slices.ContainsFunc(links, func(l *rtnl.Link) bool { return isForeign(l, "tun") && l.Master == 0 }), err
}

// outlived reports whether a tap of ours is on no bridge, and was on one of br's name before br was made: it was made for a
// bridge of another index. Where its alias has no room for that, it is older than br.
func (o *ours) outlived(br *rtnl.Link) bool {
	if o.want.At != 0 {
		return o.Master == 0 && o.want.At != br.Index
	}
	return outlived(o.Link, br)
}

// outlived tells whether a link is on no bridge, and was there before br.
func outlived(l, br *rtnl.Link) bool { return l.Master == 0 && l.Index < br.Index }

// PutBackForeign is PutBack for the tap of that name that somebody else, such as libvirt, has made for
// a guest's NIC of that MAC. It leaves the tap up or down. done is false where there is nothing to do:
// the tap is on a bridge, or younger than that one, or none of that MAC. No tap of that name, and no
// such bridge, Is fs.ErrNotExist.
func (m *Manager) PutBackForeign(name string, mac net.HardwareAddr, bridgeName string, cfg bridge.PortConfig) (done bool, err error) {
	br, err := bridge.Get(m.nl, bridgeName)
	if err != nil {
		return false, err
	}
	l, err := m.nl.Link(name)
	if err != nil {
		return false, fmt.Errorf("interface %s: %w", name, err)
	}
	if !isForeignTap(l, mac) || !outlived(l, br) {
		return false, nil
	}
	if l.Up {
		return true, bridge.AddPortWith(m.nl, br, l, cfg)
	}
	if err := bridge.CheckPort(m.nl, br, l, cfg); err != nil {
		return true, err
	}
	if err := m.nl.Set(l.Index, rtnl.Master(br.Index)); err != nil {
		return true, fmt.Errorf("add port %s to %s: %w", l.Name, br.Name, err)
	}
	if err := bridge.SetPort(m.nl, br, l, cfg); err != nil {
		return true, errors.Join(err, bridge.RemovePort(m.nl, l))
	}
	return true, nil
}

// SetForeignPortOf is SetForeignPort for the tap of that interface index, which no process needs
// to hold yet. That it is no such tap any more, or on no bridge, Is fs.ErrNotExist.
func (m *Manager) SetForeignPortOf(index int, mac net.HardwareAddr, cfg bridge.PortConfig) (changed bool, err error) {
	l, err := m.nl.LinkByIndex(index)
	if err != nil {
		return false, fmt.Errorf("interface %d: %w", index, err)
	}
	if !isForeignTap(l, mac) {
		return false, fmt.Errorf("interface %s is no tap for MAC %s that somebody else made: %w", l.Name, mac, fs.ErrNotExist)
	}
	return m.setForeign(l, cfg)
}

// SetForeignPortNamed is SetForeignPortOf for the tap of that name.
func (m *Manager) SetForeignPortNamed(name string, mac net.HardwareAddr, cfg bridge.PortConfig) (changed bool, err error) {
	l, err := m.nl.Link(name)
	if err != nil {
		return false, fmt.Errorf("interface %s: %w", name, err)
	}
	return m.SetForeignPortOf(l.Index, mac, cfg)
}

func isForeignTap(l *rtnl.Link, mac net.HardwareAddr) bool {
	return isForeign(l, "tun") && ForeignLink{Type: nic.TypeTap, MAC: l.MAC}.HasGuest(mac)
}
