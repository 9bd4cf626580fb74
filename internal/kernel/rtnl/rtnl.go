// Package rtnl reads and changes links over route netlink (rtnetlink(7)). It sets several
// attributes with one message, decodes the data of bridge ports, which the netlink library does
// not, and adds the kernel's own message to errors. It uses that library's encoder, but sockets of
// its own.
package rtnl

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
)

// timeout bounds one request. The kernel answers within microseconds unless another request holds
// the rtnl lock for long.
var timeout = unix.Timeval{Sec: 30}

// A Conn is a netlink socket in one network namespace. Several goroutines may use it at the same
// time.
type Conn struct {
	sock *socket
}

// Open opens a socket in ns. The caller may close ns afterwards.
func Open(ns *netns.NS) (*Conn, error) {
	var c Conn
	err := ns.Do(func() (err error) {
		c.sock, err = openSocket()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return &c, nil
}

// Close closes the socket.
func (c *Conn) Close() { c.sock.close() }

// request makes an empty request of the given type.
func (c *Conn) request(kind, flags int) *nl.NetlinkRequest {
	return nl.NewNetlinkRequest(kind, flags)
}

// linkRequest makes a request about the link with that index.
func (c *Conn) linkRequest(kind, flags, index int, attrs []Attr) *nl.NetlinkRequest {
	req := c.request(kind, flags)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	for _, a := range attrs {
		msg.Change |= a.flagMask
		msg.Flags |= a.flags
		if a.index != 0 {
			msg.Index = int32(a.index)
		}
		if a.rta != nil {
			req.AddData(a.rta)
		}
	}
	return req
}

// do runs a request whose only answer is an acknowledgement.
func (c *Conn) do(req *nl.NetlinkRequest) error {
	_, err := c.sock.execute(req, 0)
	return notExist(err)
}

// notExist makes "no such device" match fs.ErrNotExist as well.
func notExist(err error) error {
	if errors.Is(err, unix.ENODEV) {
		return noDevice{err}
	}
	return err
}

// noDevice is the kernel's error for a device that does not exist. It matches fs.ErrNotExist with
// errors.Is, without its text, which is about files.
type noDevice struct{ error }

func (noDevice) Error() string     { return "no such network device" }
func (e noDevice) Unwrap() []error { return []error{fs.ErrNotExist, e.error} }

// Set changes attrs of the link with that index by one message. The kernel applies them in an order
// of its own (do_setlink), and stops at the first that it refuses.
func (c *Conn) Set(index int, attrs ...Attr) error {
	return c.do(c.linkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK, index, attrs))
}

// SetQuiet is Set, and also keeps the host from using the link for IPv6, if the kernel runs IPv6.
func (c *Conn) SetQuiet(index int, attrs ...Attr) error {
	err := c.Set(index, append(attrs, NoIPv6Autoconf())...)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		err = c.Set(index, attrs...)
	}
	return err
}

// Create makes a link of that kind. If the name is taken, the error matches fs.ErrExist with
// errors.Is.
func (c *Conn) Create(kind string, attrs ...Attr) error {
	return c.do(c.linkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, 0,
		withInfo(kind, attrs)))
}

// CreateWithAlias is Create for a link that never exists without its alias, even if this process is
// killed. A request for a new link takes no alias (rtnl_create_link in net/core/rtnetlink.c), so
// the request that sets it is in the same datagram. That one finds the link by the index, which no
// other process may ask for: see [RandomIndex].
func (c *Conn) CreateWithAlias(kind string, index int, alias string, attrs ...Attr) error {
	if _, err := c.LinkByIndex(index); !errors.Is(err, fs.ErrNotExist) {
		return cmp.Or(err, error(unix.EEXIST))
	}
	attrs = append(slices.Clone(attrs), Index(index))
	errs, err := c.sock.together(
		c.linkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, 0, withInfo(kind, attrs)),
		c.linkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK, index, []Attr{Alias(alias)}))
	if err != nil {
		return err
	}
	created, marked := errs[0], errs[1]
	if created == nil && marked != nil {
		return errors.Join(fmt.Errorf("set the alias: %w", marked), c.Delete(index))
	}
	return notExist(created)
}

// Change is Set for a link of that kind, and also changes the settings of the kind
// (rtnl_changelink).
func (c *Conn) Change(kind string, index int, attrs ...Attr) error {
	return c.do(c.linkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK, index, withInfo(kind, attrs)))
}

// withInfo moves those of attrs that are settings of the kind into IFLA_LINKINFO.
func withInfo(kind string, attrs []Attr) []Attr {
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated(kind))
	var data *nl.RtAttr
	var rest []Attr
	for _, a := range attrs {
		if !a.info {
			rest = append(rest, a)
			continue
		}
		if data == nil {
			data = info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
		}
		data.AddChild(a.rta)
	}
	return append(rest, Attr{rta: info})
}

// Delete removes the link with that index.
func (c *Conn) Delete(index int) error {
	return c.do(c.linkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK, index, nil))
}

// AddAltName gives the link one more name, of at most 127 bytes. No other link of the netns may
// have it as its name or altname.
func (c *Conn) AddAltName(index int, name string) error {
	list := nl.NewRtAttr(unix.IFLA_PROP_LIST|unix.NLA_F_NESTED, nil)
	list.AddRtAttr(unix.IFLA_ALT_IFNAME, nl.ZeroTerminated(name))
	return c.do(c.linkRequest(unix.RTM_NEWLINKPROP, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL,
		index, []Attr{{rta: list}}))
}

// Link reads one link by its name or an altname. If there is none, the error matches fs.ErrNotExist
// with errors.Is.
func (c *Conn) Link(name string) (*Link, error) {
	kind := uint16(unix.IFLA_IFNAME)
	if len(name) >= unix.IFNAMSIZ {
		kind = unix.IFLA_ALT_IFNAME
	}
	return c.get(0, Attr{rta: nl.NewRtAttr(int(kind), nl.ZeroTerminated(name))})
}

// LinkByIndex reads one link by its index. If there is none, the error matches fs.ErrNotExist with
// errors.Is.
func (c *Conn) LinkByIndex(index int) (*Link, error) { return c.get(index) }

// OwnNS stands for the socket's own netns in place of an id.
const OwnNS = -1

// LinkIn is LinkByIndex in the netns that has that id in the socket's netns, such as a Link.LowerNS
// (IFLA_TARGET_NETNSID, Linux 4.15). It needs CAP_NET_ADMIN over that netns.
func (c *Conn) LinkIn(nsid, index int) (*Link, error) {
	if nsid == OwnNS {
		return c.get(index)
	}
	return c.get(index, target(nsid))
}

func (c *Conn) get(index int, attrs ...Attr) (*Link, error) {
	msgs, err := c.sock.execute(c.linkRequest(unix.RTM_GETLINK, 0, index, attrs), unix.RTM_NEWLINK)
	if err != nil {
		return nil, notExist(err)
	}
	if len(msgs) != 1 {
		return nil, fmt.Errorf("netlink gave %d links for one: %w", len(msgs), fs.ErrNotExist)
	}
	return parseLink(msgs[0])
}

// IgnoreNotExist returns nil for an error that reports that a link does not exist, and any other
// error as it is.
func IgnoreNotExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Group is the group of a link (IFLA_GROUP). A new link is in group 0 by default.
func Group(number uint32) Attr { return attr(unix.IFLA_GROUP, nl.Uint32Attr(number)) }

// Groups lists all links by their group, without counters.
func (c *Conn) Groups() (map[uint32][]*Link, error) {
	const skipStats = 1 << 3 // RTEXT_FILTER_SKIP_STATS, include/uapi/linux/rtnetlink.h
	all, err := c.links([]Attr{attr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats))})
	groups := map[uint32][]*Link{}
	for _, l := range all {
		groups[l.Group] = append(groups[l.Group], l)
	}
	return groups, err
}

// DeleteGroup removes all links of a group. The kernel waits only once, for all of them, until none
// is in use. Before it deletes anything, it refuses group 0 with EPERM, and a group that has a link
// which cannot be deleted with EOPNOTSUPP (rtnl_group_dellink in net/core/rtnetlink.c). If the
// group is empty, the error matches fs.ErrNotExist with errors.Is.
func (c *Conn) DeleteGroup(number uint32) error {
	return c.do(c.linkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK, 0, []Attr{Group(number)}))
}

// The range of RandomIndex. The kernel counts up from 1, and stores an index as an int.
const (
	minIndex = 1 << 20
	maxIndex = 1 << 30
)

// RandomIndex returns an interface index for a device that a VMM opens by its name. If
// /dev/tap<index> exists, QEMU and libvirt take the device for a macvtap, even if the node belongs
// to a device in another netns. Any user who may create a user namespace can create such nodes at
// the indices that the kernel would choose next. The index may be taken, which the caller finds
// out.
func RandomIndex() int { return minIndex + rand.IntN(maxIndex-minIndex) }
