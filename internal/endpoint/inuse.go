package endpoint

import (
	"fmt"
	"slices"
	"strings"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
)

// CheckInUse checks what a packet port would disconnect if it claimed a device. It returns an error
// with the cure if the device serves a bridge, a bond, or other devices, which would receive
// nothing any more. It returns notes about what the host itself does not receive while the switch
// has the device.
//
// CheckInUse looks for devices on it in ns, and in other network namespaces that have a name or a
// process.
func CheckInUse(ns *netns.NS, c *rtnl.Conn, link *rtnl.Link) (notes []string, err error) {
	if note, err := masterUse(c, link); err != nil {
		return nil, err
	} else if note != "" {
		notes = append(notes, note)
	}
	taken, vlans, err := uppers(ns, c, link)
	if err != nil {
		return nil, err
	}
	if len(taken) > 0 {
		return nil, fmt.Errorf("%s has %s on it, which would no longer receive anything "+
			"(remove them, or use another device)", link.Name, strings.Join(taken, ", "))
	}
	if err := parentClaimed(ns, c, link); err != nil {
		return nil, err
	}
	if len(vlans) > 0 {
		notes = append(notes, fmt.Sprintf("the host receives nothing on %s while the switch has it",
			strings.Join(vlans, ", ")))
	}
	if addrs, err := c.Addrs(link.Index); err == nil && len(addrs) > 0 {
		notes = append(notes, "the host's addresses on it are unreachable while the switch has it")
	}
	return notes, nil
}

// parentClaimed returns an error if link is a VLAN whose parent device a switch has claimed.
func parentClaimed(ns *netns.NS, c *rtnl.Conn, link *rtnl.Link) error {
	if link.Kind != "vlan" || link.LowerNS >= 0 {
		return nil
	}
	parent, err := c.LinkByIndex(link.Lower)
	if err != nil {
		return nil
	}
	if claimed, err := Claimed(ns, parent.Name); err != nil || !claimed {
		return nil
	}
	return fmt.Errorf("a switch has claimed %s, the parent device of %s, which therefore receives nothing "+
		"(give the port of %s the VLAN: trunk=)", parent.Name, link.Name, parent.Name)
}

// masterUse returns a note or an error about the device that a link is a port or member of.
func masterUse(c *rtnl.Conn, link *rtnl.Link) (note string, err error) {
	if link.Master == 0 {
		return "", nil
	}
	m, err := c.LinkByIndex(link.Master)
	if err != nil {
		return "", fmt.Errorf("read the master of %s: %w", link.Name, err)
	}
	what, cure := fmt.Sprintf("part of %s (%s)", m.Name, m.Kind), "ip link set "+link.Name+" nomaster"
	switch m.Kind {
	case "vrf":
		return m.Name + " receives nothing from it while the switch has it", nil
	case "bridge":
		what, cure = "a port of bridge "+m.Name, cure+", or use --packet "+m.Name+" to join the bridge to the switch"
	case "bond", "team":
		what, cure = "a member of "+m.Name, "--packet "+m.Name
	case "openvswitch":
		what, cure = "a port of Open vSwitch", "ovs-vsctl del-port "+link.Name
	}
	return "", fmt.Errorf("%s is %s, which would no longer receive anything from it (%s)", link.Name, what, cure)
}

// takers lists the kinds of devices that receive some or all frames of their parent device before
// the host's stack does (netdev_rx_handler_register).
var takers = []string{"macvlan", "macvtap", "ipvlan", "ipvtap", "macsec"}

// uppers lists the devices on a link: those that receive its frames, in all namespaces, and its
// VLANs in this one.
func uppers(ns *netns.NS, c *rtnl.Conn, link *rtnl.Link) (taken, vlans []string, err error) {
	for _, kind := range slices.Concat(takers, []string{"vlan"}) {
		on, err := upper(c, kind, link.Index, rtnl.OwnNS)
		if err != nil {
			return nil, nil, err
		}
		if kind == "vlan" {
			vlans = on
		} else {
			taken = append(taken, on...)
		}
	}
	err = ns.Others(func(other *netns.NS) error {
		taken = append(taken, inOther(ns, other, link.Index)...)
		return nil
	})
	return taken, vlans, err
}

// inOther lists the takers in another namespace that are on a link of ns. It returns none for a
// namespace that it may not read.
func inOther(ns, other *netns.NS, index int) (taken []string) {
	c, err := rtnl.Open(other)
	if err != nil {
		return nil
	}
	defer c.Close()
	id, err := c.NetnsID(ns)
	if err != nil || id < 0 { // no link there has its parent device here
		return nil
	}
	for _, kind := range takers {
		on, _ := upper(c, kind, index, id)
		for _, text := range on {
			taken = append(taken, fmt.Sprintf("%s of netns %s", text, other))
		}
	}
	return taken
}

// upper lists the links of a kind whose parent device has that index, in the netns with the id
// nsid.
func upper(c *rtnl.Conn, kind string, index, nsid int) (on []string, err error) {
	links, err := c.Links(kind, 0)
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		if l.Kind == kind && l.Lower == index && l.LowerNS == nsid {
			on = append(on, fmt.Sprintf("%s (%s)", l.Name, kind))
		}
	}
	return on, nil
}
