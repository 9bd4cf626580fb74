package rtnl

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The kernel sends a listing in pieces and lets others change what is listed between them. It marks
// such a listing (NLM_F_DUMP_INTR, include/uapi/linux/netlink.h), which may lack entries that were
// there all the time: before Linux 6.10 one is counted into its place by how many are before it in
// a hash bucket (rtnl_dump_ifinfo in net/core/rtnetlink.c). On a host where links come and go all
// the time no long listing is undisturbed.

// ErrDisturbed is a listing that changes have disturbed each time it was tried.
var ErrDisturbed = nl.ErrDumpInterrupted

// dumpTries bounds how often a listing that was disturbed is read again.
const dumpTries = 64

// linkTries is how many disturbed listings of links are put together to one.
const linkTries = 8

// Links lists the links of that kind, unless it is empty, and with that master, unless it is 0, by
// index. Links that come or go meanwhile may be in it or not; one that is there all the time is.
//
// The kernel filters, but for a kind whose module is not loaded, or a master that is gone, it may
// list all (link_kind_filtered and link_master_filtered in net/core/rtnetlink.c); so what it sends
// is filtered here.
func (c *Conn) Links(kind string, master int) ([]*Link, error) {
	var attrs []Attr
	if kind != "" {
		info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
		info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated(kind))
		attrs = append(attrs, Attr{rta: info})
	}
	if master != 0 {
		attrs = append(attrs, Master(master))
	}
	all, err := c.links(attrs)
	return slices.DeleteFunc(all, func(l *Link) bool {
		return kind != "" && l.Kind != kind || master != 0 && l.Master != master
	}), err
}

// links lists what the kernel finds by attrs, by index.
func (c *Conn) links(attrs []Attr) ([]*Link, error) {
	return c.together(func() (map[int]*Link, error) { return c.dumpLinks(attrs) })
}

// together reads listings until one is undisturbed, or enough of them to put one together that has
// each link that was there all the time.
func (c *Conn) together(list func() (map[int]*Link, error)) ([]*Link, error) {
	known := map[int]*Link{} // in listings that were disturbed
	for try := 1; ; try++ {
		latest, err := list()
		disturbed := errors.Is(err, ErrDisturbed)
		if err != nil && !disturbed {
			return nil, fmt.Errorf("list links: %w", err)
		}
		if !disturbed {
			return byIndex(latest), nil
		}
		missing := maps.Clone(known)
		for index, l := range latest {
			known[index] = l
			delete(missing, index)
		}
		if try == linkTries {
			return c.complete(latest, missing)
		}
	}
}

// complete adds to a disturbed listing those links of earlier ones that are still there.
func (c *Conn) complete(latest, missing map[int]*Link) ([]*Link, error) {
	for index := range missing {
		l, err := c.LinkByIndex(index)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		latest[index] = l
	}
	return byIndex(latest), nil
}

func byIndex(links map[int]*Link) []*Link {
	return slices.SortedFunc(maps.Values(links), func(a, b *Link) int { return cmp.Compare(a.Index, b.Index) })
}

// dumpLinks reads one listing; with an error that Is ErrDisturbed, what there was of it.
func (c *Conn) dumpLinks(attrs []Attr) (map[int]*Link, error) {
	msgs, err := c.sock.execute(c.linkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP, 0, attrs), unix.RTM_NEWLINK)
	links := map[int]*Link{}
	for _, m := range msgs {
		l, err := parseLink(m)
		if err != nil {
			return nil, err
		}
		links[l.Index] = l
	}
	return links, err
}

// dump reads a listing of anything else, again where it was disturbed.
func (c *Conn) dump(request func() *nl.NetlinkRequest, kind uint16) ([][]byte, error) {
	for try := 1; ; try++ {
		msgs, err := c.sock.execute(request(), kind)
		if err == nil || !errors.Is(err, ErrDisturbed) || try == dumpTries {
			return msgs, err
		}
	}
}
