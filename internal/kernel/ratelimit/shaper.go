package ratelimit

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"vmnet/internal/alias"
	"vmnet/internal/kernel/clsact"
	"vmnet/internal/kernel/rtnl"
)

// A shaper is an ifb device in which a link's received frames wait: a filter hands them to it, they
// pass its tbf, and the kernel receives them once more at the link, behind the filter. It does not
// go with the link, so its alias says whose it is, and Tidy removes those whose link has gone.

// redirection is the place of the filter, behind the one that counts packets and behind those of
// package bpfguard: what it takes, no later one sees.
var redirection = rtnl.Filter{Priority: 4, Handle: rtnl.RedirectHandle, Kind: "u32"}

const ifbKind = "ifb"

// shaperMark begins the aliases of shapers.
const shaperMark = alias.Prefix + "shaper="

// shaperName is at most 15 bytes: an index has 31 bits.
func shaperName(l *rtnl.Link) string { return "shape" + strconv.Itoa(l.Index) }

func shaperAlias(l *rtnl.Link) string {
	return fmt.Sprintf("%s%s index=%d", shaperMark, alias.Escape(l.Name), l.Index)
}

// ownerOf returns the index of the link for which a shaper was made; 0 for any other link.
func ownerOf(l *rtnl.Link) int {
	rest, ours := strings.CutPrefix(l.Alias, shaperMark)
	_, text, _ := strings.Cut(rest, " index=")
	index, err := strconv.Atoi(text)
	if !ours || err != nil || l.Kind != ifbKind {
		return 0
	}
	return index
}

// shaperOf returns a link's shaper; nil for none.
func shaperOf(c *rtnl.Conn, l *rtnl.Link) (*rtnl.Link, error) {
	s, err := c.Link(shaperName(l))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && ownerOf(s) != l.Index {
		err = fmt.Errorf("interface %s is %w (ip link del %[1]s)", s.Name, clsact.ErrForeign)
	}
	return s, err
}

// setShaper has received frames wait in a tbf. The link has a clsact qdisc afterwards.
func setShaper(c *rtnl.Conn, l *rtnl.Link, t rtnl.TBF) error {
	s, err := readShaper(c, l)
	if err != nil || s != nil && s.tbf != nil && s.tbf.Is(t) {
		return err
	}
	if _, err := Tidy(c, false); err != nil { // so that leftover shapers do not accumulate
		return err
	}
	const need = "CONFIG_IFB, CONFIG_NET_CLS_U32 and CONFIG_NET_ACT_MIRRED: modprobe -a ifb cls_u32 act_mirred"
	ifb, err := shaperOf(c, l)
	if err == nil && ifb == nil {
		err = c.CreateWithAlias(ifbKind, rtnl.RandomIndex(), shaperAlias(l), rtnl.Name(shaperName(l)))
		if err == nil {
			ifb, err = c.Link(shaperName(l))
		}
		err = explain(err, need)
	}
	if err != nil {
		return fmt.Errorf("make a shaper: %w", err)
	}
	if err := c.SetQuiet(ifb.Index, rtnl.Up(true)); err != nil {
		return fmt.Errorf("set %s up: %w", ifb.Name, err)
	}
	if err := setTBF(c, ifb, t); err != nil {
		return err
	}
	if err := c.AddClsact(l.Index); err != nil {
		return fmt.Errorf("add a clsact qdisc: %w", explain(err, clsact.Need))
	}
	if err := c.SetRedirect(l.Index, rtnl.Redirect{Priority: redirection.Priority, To: ifb.Index}); err != nil {
		return fmt.Errorf("redirect frames to %s: %w", ifb.Name, explain(err, need))
	}
	return nil
}

// deleteShaper ends that. It is no error if there is none.
func deleteShaper(c *rtnl.Conn, l *rtnl.Link) error {
	if err := c.DeleteRedirect(l.Index, redirection.Priority); err != nil {
		return fmt.Errorf("delete the filter: %w", err)
	}
	ifb, err := shaperOf(c, l)
	switch {
	case errors.Is(err, clsact.ErrForeign), err == nil && ifb == nil:
		return nil
	case err == nil:
		err = rtnl.IgnoreNotExist(c.Delete(ifb.Index))
	}
	if err != nil {
		return fmt.Errorf("delete %s: %w", shaperName(l), err)
	}
	return nil
}

// A shaper is what was found of one.
type shaper struct {
	tbf *rtnl.TBF // nil if not all of it is there
}

// readShaper reads a link's shaper; nil for none.
func readShaper(c *rtnl.Conn, l *rtnl.Link) (*shaper, error) {
	ifb, err := shaperOf(c, l)
	if err != nil && !errors.Is(err, clsact.ErrForeign) {
		return nil, err
	}
	isShaper := err == nil && ifb != nil
	r, err := c.ReadRedirect(l.Index, redirection.Priority)
	isRedirected := err == nil
	switch {
	case rtnl.IgnoreNotExist(err) != nil:
		return nil, err
	case !isShaper && !isRedirected:
		return nil, nil
	case !isShaper || !isRedirected || r.To != ifb.Index || !ifb.Up:
		return &shaper{}, nil
	}
	t, err := c.ReadTBF(ifb.Index)
	if err != nil {
		return &shaper{}, rtnl.IgnoreNotExist(err)
	}
	return &shaper{tbf: &t}, nil
}

// Tidy removes the shapers in c's netns whose links have gone, and returns their names. If dry is
// set it removes none.
func Tidy(c *rtnl.Conn, dry bool) (names []string, err error) {
	all, err := c.Links(ifbKind, 0)
	if err != nil {
		return nil, fmt.Errorf("list shapers: %w", err)
	}
	for _, s := range all {
		owner := ownerOf(s)
		if owner == 0 {
			continue
		}
		if _, err := c.LinkByIndex(owner); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if !dry {
			if err := rtnl.IgnoreNotExist(c.Delete(s.Index)); err != nil {
				return names, fmt.Errorf("delete %s, whose link has gone: %w", s.Name, err)
			}
		}
		names = append(names, s.Name)
	}
	return names, nil
}
