package macvtap

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"vmnet/internal/kernel/rtnl"
)

// The modes and flags by name (include/uapi/linux/if_link.h). l3s is there to be named, not made.
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

// ModeName names the mode that a link has; empty where it is neither macvlan nor ipvlan.
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

// FlagName names the flag that a link has; empty where it is no ipvlan.
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

// Validate checks what can be checked without the kernel. The lower may be missing.
func (cfg Config) Validate() error {
	_, flag := ipvlanFlags[cfg.Flag]
	switch {
	case cfg.Kind != Macvtap && cfg.Kind != IPVtap:
		return fmt.Errorf("kind %q: want macvtap or ipvtap", cfg.Kind)
	case cfg.Kind == IPVtap && cfg.Mode == "l3s":
		// ipvlan_nf_input in drivers/net/ipvlan/ipvlan_l3s.c gives them to the ipvtap after its rx_handler's turn.
		return errors.New("ipvtap mode l3s: the kernel keeps what arrives for its own IP stack, so that the guest could send but never receive (use mode l3 or l2)")
	case !slices.Contains(Modes(cfg.Kind), cfg.Mode):
		return fmt.Errorf("%s mode %q: want %s", cfg.Kind, cfg.Mode, strings.Join(Modes(cfg.Kind), ", "))
	case cfg.NoPromisc && cfg.Mode != "passthru":
		return errors.New("nopromisc goes with mode passthru: the other modes never make the lower promiscuous")
	case len(cfg.Sources) > 0 && cfg.Mode != "source":
		return errors.New("source addresses go with mode source")
	case cfg.Mode == "source" && len(cfg.Sources) == 0:
		return errors.New("mode source hears only the senders that are named, and none is")
	case !flag, cfg.Flag != "" && cfg.Kind != IPVtap:
		return fmt.Errorf("flag %q: want bridge, private or vepa, of an ipvtap", cfg.Flag)
	case cfg.Kind == IPVtap && cfg.MAC != nil:
		return errors.New("an ipvtap has its lower's MAC, no other")
	case cfg.Kind == IPVtap && len(cfg.Addrs) == 0:
		return errors.New("an ipvtap delivers by IP address, and none is named")
	case cfg.Kind == Macvtap && len(cfg.Addrs) > 0:
		return errors.New("a macvtap needs no IP address: only an ipvtap delivers by it")
	}
	return nil
}

// checkLower checks the lower as it was read.
func (cfg Config) checkLower() error {
	if err := CheckLower(cfg.Kind, cfg.Lower); err != nil {
		return err
	}
	if cfg.MTU > cfg.Lower.MTU {
		return fmt.Errorf("MTU %d: %s carries at most %d bytes", cfg.MTU, cfg.Lower.Name, cfg.Lower.MTU)
	}
	return nil
}

// CheckLower tells why a device of that kind, which may be a macvlan, could not work on a lower, as
// far as the lower's link shows that.
func CheckLower(kind Kind, lower *rtnl.Link) error {
	switch {
	case len(lower.MAC) != 6 || lower.MAC.String() == "00:00:00:00:00:00":
		return fmt.Errorf("%s is no Ethernet device, so no %s can be put on it", lower.Name, kind)
	case !lower.Up:
		return fmt.Errorf("%w: nothing passes %s (ip link set %s up)", syscall.ENETDOWN, lower.Name, lower.Name)
	}
	return nil
}

// Explain adds to an error of making or setting up a device of that kind, which may be a macvlan, who has
// the lower already, and what to do.
func Explain(nl *rtnl.Conn, err error, kind Kind, lower *rtnl.Link) error {
	switch {
	case errors.Is(err, syscall.EPERM):
		return fmt.Errorf("%w (needs CAP_NET_ADMIN)", err)
	case errors.Is(err, syscall.EOPNOTSUPP):
		return fmt.Errorf("%w (the kernel has no %s, or it is not loaded: modprobe %s)", err, kind, kind)
	case errors.Is(err, syscall.EBUSY):
		return fmt.Errorf("%w (%s)", err, taker(nl, kind, lower))
	case errors.Is(err, syscall.EINVAL) && kind != IPVtap:
		if holders := siblings(nl, lower); holders != "" {
			return fmt.Errorf("%w (passthru is for one device alone, and on %s there is %s)", err, lower.Name, holders)
		}
		return fmt.Errorf("%w (passthru is for one device alone: is there another one on %s, in some netns?)", err, lower.Name)
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%w (something on %s has that MAC already)", err, lower.Name)
	}
	return err
}

// taker tells what takes the frames of a lower that are wanted for a device of that kind.
func taker(nl *rtnl.Conn, kind Kind, lower *rtnl.Link) string {
	if master := masterOf(nl, lower); master != "" {
		return fmt.Sprintf("%s is a port of %s, and a device can be only one of port and lower: use %s instead", lower.Name, master, master)
	}
	rival := "an ipvtap"
	if kind == IPVtap {
		rival = "a macvtap"
	}
	return fmt.Sprintf("something else takes the frames of %s: Open vSwitch, a bond, or %s, beside which there can be no %s", lower.Name, rival, kind)
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

// siblings names the other devices on the lower that its own netns shows.
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

// SetMode changes the mode of a device of ours; nl is in its netns. The kernel refuses to change into or out of
// passthru (macvlan_changelink), and changes the mode of an ipvtap with that of all others on its parent device.
func SetMode(nl *rtnl.Conn, l *rtnl.Link, mode string) error {
	attr := rtnl.MacvlanMode(macvlanModes[mode])
	if l.IPVlan != nil {
		attr = rtnl.IPVlanMode(ipvlanModes[mode])
	}
	return nl.Change(l.Kind, l.Index, attr)
}
