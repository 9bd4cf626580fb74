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

// A Segment is a network that a port's device is on beside the switch. Two ports on one segment
// make a loop.
type Segment struct {
	Key  string `json:"key"`  // of the device that stands for it
	Name string `json:"name"` // the device's, for people
}

// deviceKey tells a device from others, in whatever network namespace: by index and address, since
// two devices that have both in common could not be on one switch either.
func deviceKey(index int, mac net.HardwareAddr) string { return fmt.Sprintf("%d/%s", index, mac) }

// SegmentsOf finds what a link is joined to behind a port, beside the link itself: for a tap's
// queues, the bridge that the tap is a port of; for the kernel's side of a device (packet), the
// other end of a veth pair and its bridge, or what a macvlan sits on. What it may not look at is
// left out.
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

// A place is a netns that a netlink socket's own knows by an id.
type place struct {
	c  *rtnl.Conn
	ns int
}

// master is the segment of the bridge or bond that a link is a port of. Open vSwitch has one master
// for all of its bridges, and a VRF is no segment.
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

// Key tells a wire's device from others; empty where that is not followed.
func (w *Wire) Key() string {
	if w.link == nil {
		return ""
	}
	s := w.link.State()
	return deviceKey(s.Index, s.MAC)
}

// Key is the wire's, as its device is now.
func (p *Port) Key() string {
	if s, ok := p.Link(); ok {
		return deviceKey(s.Index, s.MAC)
	}
	return ""
}
