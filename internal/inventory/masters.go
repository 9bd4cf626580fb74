package inventory

import (
	"net"
	"slices"

	"vmnet/internal/kernel/rtnl"
	"vmnet/tapmgr/nic"
)

// WithoutMaster lists the taps of ours that are on no bridge, and that nobody keeps off it.
func (h *Host) WithoutMaster() ([]Device, error) {
	links, err := h.ownLinks()
	if err != nil {
		return nil, err
	}
	all := append(h.records(links), h.plain(links)...)
	return slices.DeleteFunc(all, func(dev Device) bool {
		working := dev.Want.Phase == nic.PhaseAttaching || dev.Want.Phase == nic.PhaseDetaching && !dev.Up // cut off by force
		return dev.Want.Type != nic.TypeTap || dev.Want.Switch || dev.Master != 0 || working
	}), nil
}

// Outlived reports whether a tap of ours is on no bridge, and was on one of br's name before br was
// made: it was made for a bridge of another index. Where its alias has no room for that, it is
// older than br.
func (dev *Device) Outlived(br *rtnl.Link) bool {
	if dev.Want.At != 0 {
		return dev.Master == 0 && dev.Want.At != br.Index
	}
	return Outlived(dev.Link, br)
}

// Outlived tells whether a link is on no bridge, and was there before br.
func Outlived(l, br *rtnl.Link) bool { return l.Master == 0 && l.Index < br.Index }

func IsForeignTap(l *rtnl.Link, mac net.HardwareAddr) bool {
	return IsForeign(l, "tun") && ForeignLink{Type: nic.TypeTap, MAC: l.MAC}.HasGuest(mac)
}
