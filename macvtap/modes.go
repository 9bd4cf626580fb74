package macvtap

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"syscall"

	"vmnet/internal/kernel/rtnl"
)

// The modes and flags by name (include/uapi/linux/if_link.h). ModeName knows l3s; Validate refuses
// it.
var (
	macvlanModes = map[string]uint32{"private": 1, "vepa": 2, "bridge": 4, "passthru": 8, "source": 16}
	ipvlanModes  = map[string]uint16{"l2": 0, "l3": 1, "l3s": 2}
	ipvlanFlags  = map[string]uint16{"": 0, "bridge": 0, "private": 1, "vepa": 2}
)

// Modes lists the modes of a kind, the usual one first.
func Modes(kind Kind) []string {
	if kind == IPVtap {
		return []string{"l2", "l3"}
	}
	return []string{"bridge", "vepa", "private", "passthru", "source"}
}

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

// Validate checks what can be checked without the kernel. Lower may be nil.
func (cfg Config) Validate() error {
	_, flag := ipvlanFlags[cfg.Flag]
	switch {
	case cfg.Kind != Macvtap && cfg.Kind != IPVtap:
		return fmt.Errorf("kind %q: want macvtap or ipvtap", cfg.Kind)
	case cfg.Kind == IPVtap && cfg.Mode == "l3s":
		// ipvlan_nf_input in drivers/net/ipvlan/ipvlan_l3s.c assigns packets to the ipvtap
		// only after its rx_handler would have run.
		return errors.New("ipvtap mode l3s: incoming packets go to the host's IP stack, so that the guest could only send (use mode l3 or l2)")
	case !slices.Contains(Modes(cfg.Kind), cfg.Mode):
		return fmt.Errorf("%s mode %q: want %s", cfg.Kind, cfg.Mode, strings.Join(Modes(cfg.Kind), ", "))
	case cfg.NoPromisc && cfg.Mode != "passthru":
		return errors.New("nopromisc needs mode passthru: other modes never make the parent device promiscuous")
	case len(cfg.Sources) > 0 && cfg.Mode != "source":
		return errors.New("source addresses need mode source")
	case cfg.Mode == "source" && len(cfg.Sources) == 0:
		return errors.New("mode source needs source addresses: it receives only from the senders that are named")
	case !flag, cfg.Flag != "" && cfg.Kind != IPVtap:
		return fmt.Errorf("flag %q: want bridge, private or vepa, for an ipvtap only", cfg.Flag)
	case cfg.Kind == IPVtap && cfg.MAC != nil:
		return errors.New("an ipvtap cannot have a MAC: it uses its parent device's")
	case cfg.Kind == IPVtap && len(cfg.Addrs) == 0:
		return errors.New("an ipvtap needs an IP address: the kernel delivers to it by address")
	case cfg.Kind == Macvtap && len(cfg.Addrs) > 0:
		return errors.New("a macvtap takes no IP address: the kernel delivers by address only to an ipvtap")
	}
	return nil
}

// checkLower checks the parent device as it was read.
func (cfg Config) checkLower() error {
	if err := CheckLower(cfg.Kind, cfg.Lower); err != nil {
		return err
	}
	if cfg.MTU > cfg.Lower.MTU {
		return fmt.Errorf("MTU %d: %s carries at most %d bytes", cfg.MTU, cfg.Lower.Name, cfg.Lower.MTU)
	}
	return nil
}

// CheckLower returns why a device of that kind could not work on a parent device, as far as its
// link shows that, or nil. The kind may be "macvlan".
func CheckLower(kind Kind, lower *rtnl.Link) error {
	switch {
	case len(lower.MAC) != 6 || lower.MAC.String() == "00:00:00:00:00:00":
		return fmt.Errorf("%s is not an Ethernet device, so it cannot have a %s", lower.Name, kind)
	case !lower.Up:
		return fmt.Errorf("parent device %s: %w (ip link set %s up)", lower.Name, syscall.ENETDOWN, lower.Name)
	}
	return nil
}

// Explain adds the cause and cure to an error of making or setting up a device of that kind: what
// uses the parent device already, and what to do. The kind may be "macvlan".
func Explain(nl *rtnl.Conn, err error, kind Kind, lower *rtnl.Link) error {
	switch {
	case errors.Is(err, syscall.EPERM):
		return fmt.Errorf("%w (needs CAP_NET_ADMIN)", err)
	case errors.Is(err, syscall.EOPNOTSUPP):
		return fmt.Errorf("%w (the kernel's %s driver is missing or not loaded: modprobe %s)", err, kind, kind)
	case errors.Is(err, syscall.EBUSY):
		return fmt.Errorf("%w (%s)", err, taker(nl, kind, lower))
	case errors.Is(err, syscall.EINVAL) && kind != IPVtap:
		if holders := siblings(nl, lower); holders != "" {
			return fmt.Errorf("%w (passthru allows only one device on %s, which has %s)", err, lower.Name, holders)
		}
		return fmt.Errorf("%w (passthru allows only one device on %s: look for another one, also in other netns)", err, lower.Name)
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%w (another device on %s has that MAC)", err, lower.Name)
	}
	return err
}

// taker describes what receives the frames of the parent device instead of a device of that kind.
func taker(nl *rtnl.Conn, kind Kind, lower *rtnl.Link) string {
	if master := masterOf(nl, lower); master != "" {
		return fmt.Sprintf("%s is a port of %s, and a port cannot be a parent device: use %s instead", lower.Name, master, master)
	}
	excluded, rival := "a macvtap", "an ipvtap"
	if kind == IPVtap {
		excluded, rival = rival, excluded
	}
	return fmt.Sprintf("something else receives the frames of %s: Open vSwitch, a bond, or %s, which excludes %s",
		lower.Name, rival, excluded)
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
func siblings(nl *rtnl.Conn, lower *rtnl.Link) string {
	var names []string
	for _, kind := range []string{"macvtap", "macvlan"} {
		links, err := nl.Links(kind, 0)
		if err != nil {
			continue
		}
		for _, l := range links {
			if l.Lower == lower.Index && l.LowerNS < 0 {
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

// SetSources changes a device of ours that is not in mode passthru to mode source, in which it
// hears those senders alone. nl is in its netns.
func SetSources(nl *rtnl.Conn, l *rtnl.Link, senders []net.HardwareAddr) error {
	attrs := append([]rtnl.Attr{rtnl.MacvlanMode(macvlanModes["source"])}, rtnl.MacvlanSources(senders)...)
	return nl.Change(l.Kind, l.Index, attrs...)
}
