package rtnl

import (
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Group is the group number of a link (IFLA_GROUP). The kernel puts a new link into
// group 0 where nothing else is asked for.
func Group(number uint32) Attr { return attr(unix.IFLA_GROUP, nl.Uint32Attr(number)) }

// Groups lists all links by their group number, without counters.
func (c *Conn) Groups() (map[uint32][]*Link, error) {
	for try := 1; ; try++ {
		groups, err := c.dumpGroups()
		if err == nil || !errors.Is(err, nl.ErrDumpInterrupted) || try == dumpTries {
			return groups, err
		}
		time.Sleep(time.Duration(try) * time.Millisecond)
	}
}

func (c *Conn) dumpGroups() (map[uint32][]*Link, error) {
	const skipStats = 1 << 3 // RTEXT_FILTER_SKIP_STATS, include/uapi/linux/rtnetlink.h
	mask := attr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats))
	msgs, err := c.sock.execute(c.linkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP, 0, []Attr{mask}), unix.RTM_NEWLINK)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	groups := map[uint32][]*Link{}
	for _, m := range msgs {
		l, err := parseLink(m)
		if err != nil {
			return nil, err
		}
		var number uint32
		each(m[unix.SizeofIfInfomsg:], func(kind uint16, v []byte) {
			if kind == unix.IFLA_GROUP {
				number = u32(v)
			}
		})
		groups[number] = append(groups[number], l)
	}
	return groups, nil
}

// DeleteGroup removes every link of a group, waiting once for all of them until nobody in
// the kernel looks at them any more. rtnl_group_dellink (net/core/rtnetlink.c) refuses
// group 0 with EPERM, and a group with a member that cannot be deleted with EOPNOTSUPP, before
// it has deleted anything. An empty group is an error that Is fs.ErrNotExist.
func (c *Conn) DeleteGroup(number uint32) error {
	return c.do(c.linkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK, 0, []Attr{Group(number)}))
}
