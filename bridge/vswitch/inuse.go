package vswitch

import (
	"fmt"
	"slices"
	"strings"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
)

// CheckInUse reports what a packet port would cut off that claims a device: an error where others
// have the device for their frames, which would get none any more, with the cure; notes about what
// of the host's is cut off as long as the switch has it.
//
// Devices on it are looked for in ns, and in other network namespaces that have a name or a process
// in them.
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
		return nil, fmt.Errorf("%s has %s on it, which would get nothing any more (remove them, or take another device)",
			link.Name, strings.Join(taken, ", "))
	}
	if link.Kind == "vlan" && link.LowerNS < 0 {
		parent, err := c.LinkByIndex(link.Lower)
		if err == nil {
			if claimed, err := Claimed(ns, parent.Name); err == nil && claimed {
				return nil, fmt.Errorf("a switch has %s, on which %s is: nothing comes in by it (give the port of %s the VLAN: trunk=)",
					parent.Name, link.Name, parent.Name)
			}
		}
	}
	if len(vlans) > 0 {
		notes = append(notes, fmt.Sprintf("the host gets nothing by %s meanwhile", strings.Join(vlans, ", ")))
	}
	if addrs, err := c.Addrs(link.Index); err == nil && len(addrs) > 0 {
		notes = append(notes, "the host is not reached by its addresses there meanwhile")
	}
	return notes, nil
}

// masterUse is about what a link is a port or member of.
func masterUse(c *rtnl.Conn, link *rtnl.Link) (note string, err error) {
	if link.Master == 0 {
		return "", nil
	}
	m, err := c.LinkByIndex(link.Master)
	if err != nil {
		return "", fmt.Errorf("read what %s is a port of: %w", link.Name, err)
	}
	what, cure := fmt.Sprintf("part of %s (%s)", m.Name, m.Kind), "ip link set "+link.Name+" nomaster"
	switch m.Kind {
	case "vrf":
		return m.Name + " gets nothing by it meanwhile", nil
	case "bridge":
		what, cure = "a port of bridge "+m.Name, cure+"; or --packet "+m.Name+" joins the bridge to the switch"
	case "bond", "team":
		what, cure = "a member of "+m.Name, "--packet "+m.Name
	case "openvswitch":
		what, cure = "a port of Open vSwitch", "ovs-vsctl del-port "+link.Name
	}
	return "", fmt.Errorf("%s is %s, which would get nothing from it any more (%s)", link.Name, what, cure)
}

// takers are the kinds of devices that take all or some of the frames of the one that they are on,
// before the host's stack does (netdev_rx_handler_register).
var takers = []string{"macvlan", "macvtap", "ipvlan", "ipvtap", "macsec"}

// uppers are the devices on a link: those that take its frames, in all namespaces, and its VLANs in
// this one.
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

// inOther are the takers in another namespace that are on a link of ns. One that may not be looked
// into has none.
func inOther(ns, other *netns.NS, index int) (taken []string) {
	c, err := rtnl.Open(other)
	if err != nil {
		return nil
	}
	defer c.Close()
	id, err := c.NetnsID(ns)
	if err != nil || id < 0 { // no link there has a link here
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

// upper are the links of a kind that are on the one of that index, which is in the netns of that
// id.
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
