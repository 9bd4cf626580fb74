package endpoint

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/kernel/rtnl"
)

// SegmentsOf returns the segments to which a link connects a port. For a tap's queues, it is the
// bridge that the tap is a port of. For the kernel's side of a device (packet), they are the other
// end of a veth pair and its bridge, or the parent device of a macvlan. SegmentsOf skips what it
// may not read.
func SegmentsOf(c *rtnl.Conn, link *rtnl.Link, packet bool) []vport.Segment {
	at := place{c, rtnl.OwnNS}
	if !packet {
		return at.master(link)
	}
	if !slices.Contains([]string{"veth", "macvlan", "macvtap"}, link.Kind) || link.Lower == 0 {
		return nil
	}
	if link.LowerNS >= 0 {
		at.ns = link.LowerNS
	}
	other, err := c.LinkIn(at.ns, link.Lower)
	if err != nil {
		return nil
	}
	return append([]vport.Segment{segmentOf(other)}, at.master(other)...)
}

func segmentOf(l *rtnl.Link) vport.Segment {
	name := strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsGraphic(r) || unicode.IsSpace(r) {
			return '?'
		}
		return r
	}, l.Name)
	return vport.Segment{Key: vport.DeviceKey(l.Index, l.MAC), Name: name}
}

// A place is a netns, by its id in the netns of a netlink socket.
type place struct {
	c  *rtnl.Conn
	ns int
}

// master returns the segment of the bridge, bond or team that a link is a port of. It skips Open
// vSwitch, which has one master for all of its bridges, and VRFs, which are not segments.
func (at place) master(l *rtnl.Link) []vport.Segment {
	if l.Master == 0 {
		return nil
	}
	m, err := at.c.LinkIn(at.ns, l.Master)
	if err != nil || m.Kind != "bridge" && m.Kind != "bond" && m.Kind != "team" {
		return nil
	}
	return []vport.Segment{segmentOf(m)}
}
