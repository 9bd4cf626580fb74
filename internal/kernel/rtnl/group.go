package rtnl

import (
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Group is the group number of a link (IFLA_GROUP). The kernel puts a new link into
// group 0 where nothing else is asked for.
func Group(number uint32) Attr { return attr(unix.IFLA_GROUP, nl.Uint32Attr(number)) }

// Groups lists all links by their group number, without counters.
func (c *Conn) Groups() (map[uint32][]*Link, error) {
	const skipStats = 1 << 3 // RTEXT_FILTER_SKIP_STATS, include/uapi/linux/rtnetlink.h
	all, err := c.links([]Attr{attr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats))})
	groups := map[uint32][]*Link{}
	for _, l := range all {
		groups[l.Group] = append(groups[l.Group], l)
	}
	return groups, err
}

// DeleteGroup removes every link of a group, waiting once for all of them until nobody in
// the kernel looks at them any more. rtnl_group_dellink (net/core/rtnetlink.c) refuses
// group 0 with EPERM, and a group with a member that cannot be deleted with EOPNOTSUPP, before
// it has deleted anything. An empty group is an error that Is fs.ErrNotExist.
func (c *Conn) DeleteGroup(number uint32) error {
	return c.do(c.linkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK, 0, []Attr{Group(number)}))
}
