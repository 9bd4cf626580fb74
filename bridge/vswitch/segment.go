package vswitch

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"vmnet/internal/kernel/rtnl"
)

// A Segment is a network, other than the switch, to which a port's device is connected. Two ports
// on one segment make a loop.
type Segment struct {
	Key  string `json:"key"`  // key of the device that represents it
	Name string `json:"name"` // name of that device, for messages
}

// deviceKey identifies a device in any network namespace by its index and address. Two devices with
// the same index and address could not be on one switch anyway.
func deviceKey(index int, mac net.HardwareAddr) string { return fmt.Sprintf("%d/%s", index, mac) }

// SegmentsOf returns the segments to which a link connects a port. For a tap's queues, it is the
// bridge that the tap is a port of. For the kernel's side of a device (packet), they are the other
// end of a veth pair and its bridge, or the parent device of a macvlan. SegmentsOf skips what it
// may not read.
func SegmentsOf(c *rtnl.Conn, link *rtnl.Link, packet bool) []Segment {
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
	return append([]Segment{segmentOf(other)}, at.master(other)...)
}

func segmentOf(l *rtnl.Link) Segment {
	name := strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsGraphic(r) || unicode.IsSpace(r) {
			return '?'
		}
		return r
	}, l.Name)
	return Segment{deviceKey(l.Index, l.MAC), name}
}

// A place is a netns, by its id in the netns of a netlink socket.
type place struct {
	c  *rtnl.Conn
	ns int
}

// master returns the segment of the bridge, bond or team that a link is a port of. It skips Open
// vSwitch, which has one master for all of its bridges, and VRFs, which are not segments.
func (at place) master(l *rtnl.Link) []Segment {
	if l.Master == 0 {
		return nil
	}
	m, err := at.c.LinkIn(at.ns, l.Master)
	if err != nil || m.Kind != "bridge" && m.Kind != "bond" && m.Kind != "team" {
		return nil
	}
	return []Segment{segmentOf(m)}
}

// Key identifies the wire's device. It is empty if the wire does not follow a device.
func (w *Wire) Key() string {
	if w.link == nil {
		return ""
	}
	s := w.link.State()
	return deviceKey(s.Index, s.MAC)
}

// Key identifies the port's device by its current state, as Wire.Key does.
func (p *Port) Key() string {
	if s, ok := p.Link(); ok {
		return deviceKey(s.Index, s.MAC)
	}
	return ""
}
