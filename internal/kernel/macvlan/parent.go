package macvlan

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/macvtap/vtap"
)

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

// IsWireless reports whether a link of that netns is a Wi-Fi interface, by its sysfs directory.
func IsWireless(ns *netns.NS, link string) (wireless bool, err error) {
	err = ns.Do(func() error {
		sys, err := netns.DetachedMount("sysfs")
		if err != nil {
			return err
		}
		defer unix.Close(sys)
		err = unix.Faccessat(sys, "class/net/"+link+"/phy80211", unix.F_OK, 0)
		wireless = err == nil
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return err
	})
	return wireless, err
}
