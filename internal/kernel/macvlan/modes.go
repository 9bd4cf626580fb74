package macvlan

import (
	"net"

	"vmnet/internal/kernel/rtnl"
)

// The modes and flags by name (include/uapi/linux/if_link.h). ModeName knows l3s; Validate refuses
// it.
var (
	macvlanModes = map[string]uint32{"private": 1, "vepa": 2, "bridge": 4, "passthru": 8, "source": 16}
	ipvlanModes  = map[string]uint16{"l2": 0, "l3": 1, "l3s": 2}
	ipvlanFlags  = map[string]uint16{"": 0, "bridge": 0, "private": 1, "vepa": 2}
)

// ModeName returns the name of a link's mode, or "" if the link is neither a macvlan nor an ipvlan.
func ModeName(l *rtnl.Link) string {
	switch {
	case l.Macvlan != nil:
		for name, mode := range macvlanModes {
			if mode == l.Macvlan.Mode {
				return name
			}
		}
	case l.IPVlan != nil:
		for name, mode := range ipvlanModes {
			if mode == l.IPVlan.Mode {
				return name
			}
		}
	}
	return ""
}

// FlagName returns the name of a link's flag, or "" if the link is not an ipvlan.
func FlagName(l *rtnl.Link) string {
	if l.IPVlan == nil {
		return ""
	}
	for name, flag := range ipvlanFlags {
		if name != "" && flag == l.IPVlan.Flags {
			return name
		}
	}
	return ""
}

// SetMode changes the mode of a device; nl is in its netns. The kernel refuses to change to or from
// passthru (macvlan_changelink). If it changes the mode of an ipvtap, it changes that of all others
// on the parent device too.
func SetMode(nl *rtnl.Conn, l *rtnl.Link, mode string) error {
	attr := rtnl.MacvlanMode(macvlanModes[mode])
	if l.IPVlan != nil {
		attr = rtnl.IPVlanMode(ipvlanModes[mode])
	}
	return nl.Change(l.Kind, l.Index, attr)
}

// SetSources changes a device that is not in mode passthru to mode source, in which it receives
// only the frames of these senders. nl is in its netns.
func SetSources(nl *rtnl.Conn, l *rtnl.Link, senders []net.HardwareAddr) error {
	attrs := append([]rtnl.Attr{rtnl.MacvlanMode(macvlanModes["source"])}, rtnl.MacvlanSources(senders)...)
	return nl.Change(l.Kind, l.Index, attrs...)
}

// Mode is the setting of a new macvlan for a mode of that name.
func Mode(name string) rtnl.Attr { return rtnl.MacvlanMode(macvlanModes[name]) }

// IPVlanMode is the setting of a new ipvlan for a mode of that name.
func IPVlanMode(name string) rtnl.Attr { return rtnl.IPVlanMode(ipvlanModes[name]) }
