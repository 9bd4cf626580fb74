package backend

import (
	"fmt"
	"io/fs"
	"net"

	"vmnet/bridge/brport"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/rtnl"
	"vmnet/tapmgr/nic"
)

// SetForeignPort applies settings to the bridge port of the tap that somebody else has made for
// process pid and its NIC of that MAC. It only adds to what they have set of it, as
// bridges.AddSettings does, and changes nothing where it is so already. That there is no such
// tap, or that it is on no bridge, Is fs.ErrNotExist.
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
		return false, fmt.Errorf("process %d holds no tap for MAC %s that somebody else made: %w", pid, mac, fs.ErrNotExist)
	}
	return changed, nil
}

func (m *Maker) setForeign(l *rtnl.Link, cfg brport.Settings) (changed bool, err error) {
	br, err := m.PortBridge(l)
	if err != nil {
		return false, err
	}
	return bridges.AddSettings(m.NL, br, l, cfg)
}
