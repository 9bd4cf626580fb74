package rtnl

import (
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// A nexthop object of ip-nexthop(8) is where routes lead that name it: by a link, or a group of
// such objects.

// sizeofNexthop is the size of struct nhmsg: family, scope, protocol, a reserved byte, flags
// (include/uapi/linux/nexthop.h).
const sizeofNexthop = 8

// rtaNHID is RTA_NH_ID (include/uapi/linux/rtnetlink.h).
const rtaNHID = 30

// nhaResGroup is NHA_RES_GROUP, and nhaUnbalanced NHA_RES_GROUP_UNBALANCED_TIME in it.
const (
	nhaResGroup   = 12
	nhaUnbalanced = 4
)

func nexthop(b []byte) message { return message{b, sizeofNexthop} }

// readNexthops reads the objects that are by the link, and the groups that have one of them.
func (c *Conn) readNexthops(h *HostConfig) error {
	all, err := c.messages(unix.RTM_GETNEXTHOP, unix.RTM_NEWNEXTHOP, sizeofNexthop,
		nexthop(make([]byte, sizeofNexthop)))
	var ids []int
	for _, m := range all {
		if m.number(unix.NHA_OIF) == h.Link {
			h.Nexthops = append(h.Nexthops, m.b)
			ids = append(ids, m.number(unix.NHA_ID))
		}
	}
	for _, m := range all {
		// struct nexthop_grp: the id and 4 bytes of weight.
		for member := range slices.Chunk(m.attr(unix.NHA_GROUP), 8) {
			if slices.Contains(ids, int(u32(member))) {
				h.Nexthops = append(h.Nexthops, m.b)
				break
			}
		}
	}
	return err
}

// giveNexthop puts an object on another link, and the routes by it, or makes it.
func (b *Batch) giveNexthop(m message, h *HostConfig, to *Link) {
	c := m.rewritten(func(kind uint16, v []byte) []byte {
		switch kind {
		case unix.NHA_OIF:
			return native(to.Index)
		case nhaResGroup:
			return message{b: v}.rewritten(without(nhaUnbalanced)).b
		case unix.NHA_ID, unix.NHA_GROUP, unix.NHA_GROUP_TYPE, unix.NHA_GATEWAY, unix.NHA_ENCAP_TYPE, unix.NHA_ENCAP:
			return v
		}
		return nil // a state
	})
	c.b[1] = 0 // the scope is a state, too
	binary.NativeEndian.PutUint32(c.b[4:], u32(c.b[4:])&unix.RTNH_F_ONLINK)
	b.add(fmt.Sprintf("add nexthop %d of %s", m.number(unix.NHA_ID), h.Name),
		c.request(unix.RTM_NEWNEXTHOP, unix.NLM_F_CREATE|unix.NLM_F_REPLACE))
}

// byNexthop returns a route by a nexthop object without what the object says.
func byNexthop(route message) message {
	c := route.rewritten(without(unix.RTA_OIF, unix.RTA_GATEWAY, unix.RTA_VIA, unix.RTA_MULTIPATH,
		unix.RTA_ENCAP, unix.RTA_ENCAP_TYPE, unix.RTA_FLOW))
	binary.NativeEndian.PutUint32(c.b[8:], 0)
	return c
}
