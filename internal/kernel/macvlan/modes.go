package macvlan

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"

	"vmnet/internal/kernel/rtnl"
	"vmnet/macvtap/vtap"
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

// check checks cfg and the parent device as it was read.
func check(parent *rtnl.Link, cfg vtap.Config) error {
	if err := cmp.Or(cfg.Validate(), CheckParent(cfg.Kind, parent)); err != nil {
		return err
	}
	if cfg.MTU > parent.MTU {
		return fmt.Errorf("MTU %d: %s carries at most %d bytes", cfg.MTU, parent.Name, parent.MTU)
	}
	return nil
}

// CheckParent returns why a device of that kind could not work on a parent device, as far as its
// link shows that, or nil. The kind may be "macvlan".
func CheckParent(kind vtap.Kind, parent *rtnl.Link) error {
	switch {
	case len(parent.MAC) != 6 || parent.MAC.String() == "00:00:00:00:00:00":
		return fmt.Errorf("%s is not an Ethernet device, so it cannot have a %s", parent.Name, kind)
	case !parent.Up:
		return fmt.Errorf("parent device %s: %w (ip link set %s up)", parent.Name, syscall.ENETDOWN, parent.Name)
	}
	return nil
}

// Explain adds the cause and cure to an error of making or setting up a device of that kind: what
// uses the parent device already, and what to do. The kind may be "macvlan".
func Explain(nl *rtnl.Conn, err error, kind vtap.Kind, parent *rtnl.Link) error {
	switch {
	case errors.Is(err, syscall.EPERM):
		return fmt.Errorf("%w (needs CAP_NET_ADMIN)", err)
	case errors.Is(err, syscall.EOPNOTSUPP):
		return fmt.Errorf("%w (the kernel's %s driver is missing or not loaded: modprobe %s)", err, kind, kind)
	case errors.Is(err, syscall.EBUSY):
		return fmt.Errorf("%w (%s)", err, taker(nl, kind, parent))
	case errors.Is(err, syscall.EINVAL) && kind != vtap.IPVtap:
		if holders := siblings(nl, parent); holders != "" {
			return fmt.Errorf("%w (passthru allows only one device on %s, which has %s)", err, parent.Name, holders)
		}
		return fmt.Errorf("%w (passthru allows only one device on %s: look for another one, also in other netns)",
			err, parent.Name)
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%w (another device on %s has that MAC)", err, parent.Name)
	}
	return err
}

// taker describes what receives the frames of the parent device instead of a device of that kind.
func taker(nl *rtnl.Conn, kind vtap.Kind, parent *rtnl.Link) string {
	if master := masterOf(nl, parent); master != "" {
		return fmt.Sprintf("%s is a port of %s, and a port cannot be a parent device: use %s instead",
			parent.Name, master, master)
	}
	excluded, rival := "a macvtap", "an ipvtap"
	if kind == vtap.IPVtap {
		excluded, rival = rival, excluded
	}
	return fmt.Sprintf("something else receives the frames of %s: Open vSwitch, a bond, or %s, which excludes %s",
		parent.Name, rival, excluded)
}

func masterOf(nl *rtnl.Conn, l *rtnl.Link) string {
	if l.Master == 0 {
		return ""
	}
	m, err := nl.LinkByIndex(l.Master)
	if err != nil {
		return ""
	}
	if m.Kind == "" || m.Kind == "bridge" {
		return m.Name
	}
	return fmt.Sprintf("%s (%s)", m.Name, m.Kind)
}

// siblings names the other devices on the parent device that are in its own netns.
func siblings(nl *rtnl.Conn, parent *rtnl.Link) string {
	var names []string
	for _, kind := range []string{"macvtap", "macvlan"} {
		links, err := nl.Links(kind, 0)
		if err != nil {
			continue
		}
		for _, l := range links {
			if l.Lower == parent.Index && l.LowerNS < 0 {
				names = append(names, l.Name)
			}
		}
	}
	return strings.Join(names, ", ")
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
