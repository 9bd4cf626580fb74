package rtnl

import (
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"vmnet/internal/netns"
)

// NetnsID is the id by which the socket's netns knows another one; -1 where it knows
// it by none (RTM_GETNSID, rtnetlink(7)).
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

// rtgenmsg is struct rtgenmsg with its padding (include/uapi/linux/rtnetlink.h).
type rtgenmsg struct{}

const sizeofRtgenmsg = 4

func (*rtgenmsg) Len() int          { return sizeofRtgenmsg }
func (*rtgenmsg) Serialize() []byte { return make([]byte, sizeofRtgenmsg) }
