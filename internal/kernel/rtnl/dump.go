package rtnl

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The kernel sends a dump in pieces, and what is dumped may change between them. The kernel marks
// such a dump (NLM_F_DUMP_INTR, include/uapi/linux/netlink.h). It may lack entries that existed all
// the time: before Linux 6.10, the kernel finds where to continue by the number of entries that it
// has sent of a hash bucket (rtnl_dump_ifinfo in net/core/rtnetlink.c). On a host where links are
// made and removed all the time, every long dump is interrupted.

// ErrDisturbed is returned for a dump that changes have interrupted at each attempt.
var ErrDisturbed = nl.ErrDumpInterrupted

// dumpTries bounds how often an interrupted dump is read again.
const dumpTries = 64

// linkTries is how many interrupted dumps of links are merged into one list.
const linkTries = 8

// Links lists the links of that kind (any if empty) and with that master (any if 0), ordered by
// index. Every link that exists during the whole call is in the result. A link that is made or
// removed in the meantime may be. The kernel filters, but if the module of the kind is not loaded
// or the master does not exist, it may list all links (link_kind_filtered and link_master_filtered
// in net/core/rtnetlink.c). So Links filters what it receives.
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

// links lists the links that the kernel selects by attrs, ordered by index.
func (c *Conn) links(attrs []Attr) ([]*Link, error) {
	return c.together(OwnNS, func() (map[int]*Link, error) { return c.dumpLinks(noLimit, attrs) })
}

// together reads dumps of the netns with that id until one is not interrupted, or merges linkTries
// of them into a list that has every link that existed all the time.
func (c *Conn) together(nsid int, list func() (map[int]*Link, error)) ([]*Link, error) {
	known := map[int]*Link{} // from interrupted dumps
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
			return c.complete(nsid, latest, missing)
		}
	}
}

// complete adds the links of earlier dumps that still exist to an interrupted one.
func (c *Conn) complete(nsid int, latest, missing map[int]*Link) ([]*Link, error) {
	for index := range missing {
		l, err := c.LinkIn(nsid, index)
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

// noLimit is for a dump of which every entry is wanted.
const noLimit = math.MaxInt

// dumpLinks reads the first most links of one dump. If its error matches ErrDisturbed with
// errors.Is, it also returns what it has read.
func (c *Conn) dumpLinks(most int, attrs []Attr) (map[int]*Link, error) {
	req := c.linkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP, 0, attrs)
	msgs, err := c.sock.executeUpTo(most, req, unix.RTM_NEWLINK)
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

// dump reads a dump of anything but links, and reads it again if it was interrupted.
func (c *Conn) dump(request func() *nl.NetlinkRequest, kind uint16) ([][]byte, error) {
	for try := 1; ; try++ {
		msgs, err := c.sock.execute(request(), kind)
		if err == nil || !errors.Is(err, ErrDisturbed) || try == dumpTries {
			return msgs, err
		}
	}
}
