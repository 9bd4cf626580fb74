package macvlan

import (
	"net"

	"vmnet/internal/kernel/rtnl"
)

// The modes and flags by name (include/uapi/linux/if_link.h). ModeName knows l3s; Validate refuses
// it.
var (
	macvlanModes = values[uint32]{{"private", 1}, {"vepa", 2}, {"bridge", 4}, {"passthru", 8}, {"source", 16}}
	ipvlanModes  = values[uint16]{{"l2", 0}, {"l3", 1}, {"l3s", 2}}
	ipvlanFlags  = values[uint16]{{"bridge", 0}, {"private", 1}, {"vepa", 2}}
)

// values are few values with names.
type values[T uint16 | uint32] []struct {
	name  string
	value T
}

// of returns the value of a name, or 0.
func (vs values[T]) of(name string) T {
	for _, v := range vs {
		if v.name == name {
			return v.value
		}
	}
	return 0
}

// name returns the name of a value, or "".
func (vs values[T]) name(value T) string {
	for _, v := range vs {
		if v.value == value {
			return v.name
		}
	}
	return ""
}

// ModeName returns the name of a link's mode, or "" if the link is neither a macvlan nor an ipvlan.
func ModeName(l *rtnl.Link) string {
	switch {
	case l.Macvlan != nil:
		return macvlanModes.name(l.Macvlan.Mode)
	case l.IPVlan != nil:
		return ipvlanModes.name(l.IPVlan.Mode)
	}
	return ""
}

// FlagName returns the name of a link's flag, or "" if the link is not an ipvlan.
func FlagName(l *rtnl.Link) string {
	if l.IPVlan == nil {
		return ""
	}
	return ipvlanFlags.name(l.IPVlan.Flags)
}

// SetMode changes the mode of a device; nl is in its netns. The kernel refuses to change to or from
// passthru (macvlan_changelink). If it changes the mode of an ipvtap, it changes that of all others
// on the parent device too.
func SetMode(nl *rtnl.Conn, l *rtnl.Link, mode string) error {
	attr := rtnl.MacvlanMode(macvlanModes.of(mode))
	if l.IPVlan != nil {
		attr = rtnl.IPVlanMode(ipvlanModes.of(mode))
	}
	return nl.Change(l.Kind, l.Index, attr)
}

// SetSources changes a device that is not in mode passthru to mode source, in which it receives
// only the frames of these senders. nl is in its netns.
func SetSources(nl *rtnl.Conn, l *rtnl.Link, senders []net.HardwareAddr) error {
	attrs := append([]rtnl.Attr{rtnl.MacvlanMode(macvlanModes.of("source"))}, rtnl.MacvlanSources(senders)...)
	return nl.Change(l.Kind, l.Index, attrs...)
}

// Mode is the setting of a new macvlan for a mode of that name.
func Mode(name string) rtnl.Attr { return rtnl.MacvlanMode(macvlanModes.of(name)) }

// IPVlanMode is the setting of a new ipvlan for a mode of that name.
func IPVlanMode(name string) rtnl.Attr { return rtnl.IPVlanMode(ipvlanModes.of(name)) }
