package rtnl

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
)

// NetnsID returns the id of another netns in the socket's netns, or -1 if it has none there
// (RTM_GETNSID, rtnetlink(7)).
func (c *Conn) NetnsID(other *netns.NS) (int, error) {
	req := c.request(unix.RTM_GETNSID, 0)
	req.AddData(&rtgenmsg{})
	req.AddData(nl.NewRtAttr(unix.NETNSA_FD, nl.Uint32Attr(uint32(other.Handle()))))
	msgs, err := c.sock.execute(req, unix.RTM_NEWNSID)
	if err != nil {
		return -1, fmt.Errorf("ask for a netns id: %w", err)
	}
	id := -1
	for _, m := range msgs {
		if len(m) < sizeofRtgenmsg {
			continue
		}
		each(m[sizeofRtgenmsg:], func(kind uint16, v []byte) {
			if kind == unix.NETNSA_NSID {
				id = int(int32(u32(v)))
			}
		})
	}
	return id, nil
}

// AssignNetnsID gives another netns an id in the socket's netns, unless it has one. While the other
// netns exists, it can be found by that id, regardless of how and by which process it is held.
// AssignNetnsID needs CAP_NET_ADMIN.
func (c *Conn) AssignNetnsID(other *netns.NS) error {
	req := c.request(unix.RTM_NEWNSID, unix.NLM_F_ACK)
	req.AddData(&rtgenmsg{})
	req.AddData(nl.NewRtAttr(unix.NETNSA_FD, nl.Uint32Attr(uint32(other.Handle()))))
	const any = ^uint32(0) // NETNSA_NSID_NOT_ASSIGNED
	req.AddData(nl.NewRtAttr(unix.NETNSA_NSID, nl.Uint32Attr(any)))
	if err := c.do(req); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("give a netns an id: %w", err)
	}
	return nil
}

// NetnsIDs lists the ids that other netns have in the socket's netns.
func (c *Conn) NetnsIDs() (ids []int, err error) {
	msgs, err := c.dump(func() *nl.NetlinkRequest {
		req := c.request(unix.RTM_GETNSID, unix.NLM_F_DUMP)
		req.AddData(&rtgenmsg{})
		return req
	}, unix.RTM_NEWNSID)
	if err != nil {
		return nil, fmt.Errorf("list netns ids: %w", err)
	}
	for _, m := range msgs {
		if len(m) < sizeofRtgenmsg {
			continue
		}
		each(m[sizeofRtgenmsg:], func(kind uint16, v []byte) {
			if kind == unix.NETNSA_NSID {
				ids = append(ids, int(int32(u32(v))))
			}
		})
	}
	return ids, nil
}

// maxLinksIn bounds how many links LinksIn reads: a user may make any number in a netns.
const maxLinksIn = 1 << 12

// LinksIn is Links in the netns with that id, for at most maxLinksIn links. It needs CAP_NET_ADMIN
// over that netns, and Linux 4.20. The LowerNS of the result are ids in the socket's own netns. If
// the netns no longer exists, the error matches fs.ErrNotExist with errors.Is.
func (c *Conn) LinksIn(id int, kind string) ([]*Link, error) {
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated(kind))
	attrs := []Attr{{rta: info}, target(id)}
	all, err := c.together(id, func() (map[int]*Link, error) { return c.dumpLinks(maxLinksIn, attrs) })
	if errors.Is(err, unix.EINVAL) {
		err = fmt.Errorf("netns %d: %w", id, fs.ErrNotExist)
	}
	return slices.DeleteFunc(all, func(l *Link) bool { return l.Kind != kind }), err
}

// DeleteIn removes the link with that index in the netns with that id (rtnl_dellink in
// net/core/rtnetlink.c). It needs CAP_NET_ADMIN over that netns.
func (c *Conn) DeleteIn(id, index int) error {
	return c.do(c.linkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK, index, []Attr{target(id)}))
}

// target names the netns that a request is about by its id in the socket's netns.
func target(id int) Attr { return attr(unix.IFLA_TARGET_NETNSID, nl.Uint32Attr(uint32(id))) }

// rtgenmsg is struct rtgenmsg with its padding (include/uapi/linux/rtnetlink.h).
type rtgenmsg struct{}

const sizeofRtgenmsg = 4

func (*rtgenmsg) Len() int          { return sizeofRtgenmsg }
func (*rtgenmsg) Serialize() []byte { return make([]byte, sizeofRtgenmsg) }
