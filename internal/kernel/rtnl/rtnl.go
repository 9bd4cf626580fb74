// Package rtnl speaks route netlink (rtnetlink(7)) about links: several
// settings in one message, the kernel's own words in errors, and the bridge
// port data that the netlink library does not decode. It builds on that
// library's encoder and sockets.
package rtnl

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
)

// timeout bounds one request; the kernel answers in microseconds unless rtnl is held long.
var timeout = unix.Timeval{Sec: 30}

// A Conn is a netlink socket in one network namespace, for concurrent use.
type Conn struct {
	sock *socket
}

// Open opens a socket in ns, which may be closed afterwards.
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

// linkRequest is a request about the link of that index.
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

// do runs a request that answers with an acknowledgement only.
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

// noDevice is the kernel's error about a device that is not there. It Is fs.ErrNotExist, which
// speaks of files.
type noDevice struct{ error }

func (noDevice) Error() string     { return "no such network device" }
func (e noDevice) Unwrap() []error { return []error{fs.ErrNotExist, e.error} }

// Set changes all of attrs on the link of that index in one message. The kernel
// applies them in its own order (do_setlink), and stops at the first that it
// refuses.
func (c *Conn) Set(index int, attrs ...Attr) error {
	return c.do(c.linkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK, index, attrs))
}

// SetQuiet is Set that also keeps the host from using the link for IPv6 itself, where the kernel
// runs that.
func (c *Conn) SetQuiet(index int, attrs ...Attr) error {
	err := c.Set(index, append(attrs, NoIPv6Autoconf())...)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		err = c.Set(index, attrs...)
	}
	return err
}

// Create makes a link of that kind. A taken name is an error that Is fs.ErrExist.
func (c *Conn) Create(kind string, attrs ...Attr) error {
	return c.do(c.linkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, 0, withInfo(kind, attrs)))
}

// CreateWithAlias is Create for a link that is never without its alias, also where this process is
// killed: the request for a new link takes none (rtnl_create_link in net/core/rtnetlink.c), so the
// one that sets it is in the same datagram. It finds the link by the index, which must be one that
// nobody else asks for: see [RandomIndex].
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

// Change is Set for a link of that kind which also changes its kind's own settings
// (rtnl_changelink).
func (c *Conn) Change(kind string, index int, attrs ...Attr) error {
	return c.do(c.linkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK, index, withInfo(kind, attrs)))
}

// withInfo puts those of attrs that belong there into IFLA_LINKINFO.
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

// Delete removes the link of that index.
func (c *Conn) Delete(index int) error {
	return c.do(c.linkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK, index, nil))
}

// AddAltName gives the link one more name (up to 127 bytes). Names and altnames
// share one name space.
func (c *Conn) AddAltName(index int, name string) error {
	list := nl.NewRtAttr(unix.IFLA_PROP_LIST|unix.NLA_F_NESTED, nil)
	list.AddRtAttr(unix.IFLA_ALT_IFNAME, nl.ZeroTerminated(name))
	return c.do(c.linkRequest(unix.RTM_NEWLINKPROP, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, index, []Attr{{rta: list}}))
}

// Link reads one link by name or altname. None is an error that Is fs.ErrNotExist.
func (c *Conn) Link(name string) (*Link, error) {
	kind := uint16(unix.IFLA_IFNAME)
	if len(name) >= unix.IFNAMSIZ {
		kind = unix.IFLA_ALT_IFNAME
	}
	return c.get(0, Attr{rta: nl.NewRtAttr(int(kind), nl.ZeroTerminated(name))})
}

// LinkByIndex reads one link by its interface index.
func (c *Conn) LinkByIndex(index int) (*Link, error) { return c.get(index) }

// OwnNS stands for the socket's own netns where an id of one is asked for.
const OwnNS = -1

// LinkIn is LinkByIndex in the netns that the socket's own knows by that id, as Link.LowerNS has it
// (IFLA_TARGET_NETNSID, Linux 4.15). It needs CAP_NET_ADMIN there.
func (c *Conn) LinkIn(nsid, index int) (*Link, error) {
	if nsid == OwnNS {
		return c.get(index)
	}
	return c.get(index, Attr{rta: nl.NewRtAttr(unix.IFLA_TARGET_NETNSID, nl.Uint32Attr(uint32(nsid)))})
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

// IgnoreNotExist returns nil for an error that reports that the link does not exist (any more).
func IgnoreNotExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
