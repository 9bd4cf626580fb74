package routed

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"vmnet/internal/kernel/forwarding"
)

// What an uplink needs beside the entries: it forwards what comes for the guests, and asks the
// kernel to heed the entries of IPv6. Settings of single links do that, so that the host forwards
// nothing between its other links. Only before Linux 6.17 must the host forward IPv6 on all of
// them: force_forwarding is missing there.

func forceForwarding(link string) string { return "net/ipv6/conf/" + link + "/force_forwarding" }

// setting returns the path of a setting, its former value and the new one.
func (k kind) setting(link string) (path, was, now string) {
	switch k {
	case forward4:
		return "net/ipv4/conf/" + link + "/forwarding", "0", "1"
	case forward6:
		return "net/ipv6/conf/" + link + "/forwarding", "0", "1"
	case force6:
		return forceForwarding(link), "0", "1"
	case proxyNDP:
		return "net/ipv6/conf/" + link + "/proxy_ndp", "0", "1"
	case acceptRA:
		return forwarding.AcceptRA(link), "1", "2"
	}
	panic("unknown setting " + string(k))
}

// linkName returns the name of a change's link, which may have been renamed; the error matches
// fs.ErrNotExist if it has gone.
func (h *Host) linkName(index int) (string, error) {
	if index == 0 {
		return "all", nil
	}
	l, err := h.NL.LinkByIndex(index)
	if err != nil {
		return "", err
	}
	return l.Name, nil
}

// is reports whether a setting has its former value. It is false for one that the kernel does not
// have, or whose link has gone.
func (h *Host) is(c change) (bool, error) {
	name, err := h.linkName(c.link)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	path, was, _ := c.what.setting(name)
	value, ok, err := h.settings().Read(path)
	return ok && value == was, err
}

// needed returns the settings that a NIC needs and the host does not have yet.
func (h *Host) needed(n NIC) (changes []change, err error) {
	need := func(link int, what kind) (added bool) {
		c := change{link, what}
		was, readErr := h.is(c)
		if err = errors.Join(err, readErr); was {
			changes = append(changes, c)
		}
		return was
	}
	if n.has(false) {
		need(n.Uplink, forward4)
	}
	if !n.has(true) {
		return changes, err
	}
	need(n.Uplink, proxyNDP)
	name, linkErr := h.linkName(n.Uplink)
	_, hasForce, forceErr := h.settings().Read(forceForwarding(name))
	if err := errors.Join(err, linkErr, forceErr); err != nil {
		return nil, err
	}
	switch all, readErr := h.is(change{0, forward6}); {
	case readErr != nil:
		return nil, readErr
	case all && hasForce:
		need(n.Uplink, force6)
	case all:
		need(0, forward6)
		links, err := h.advertisedLinks()
		if err != nil {
			return nil, err
		}
		for _, l := range append(links, n.Uplink) {
			if !slices.Contains(changes, change{l, acceptRA}) {
				need(l, acceptRA)
			}
		}
		return changes, err
	}
	if need(n.Uplink, forward6) { // an uplink that forwards already heeds what it should
		need(n.Uplink, acceptRA)
	}
	return changes, err
}

func (h *Host) advertisedLinks() (indices []int, err error) {
	names, err := h.settings().Advertised(h.NL)
	for _, name := range names {
		if l, err := h.NL.Link(name); err == nil {
			indices = append(indices, l.Index)
		}
	}
	return indices, err
}

// uplinkTexts returns what turnOn would do now.
func (h *Host) uplinkTexts(n NIC) (texts []string, err error) {
	changes, err := h.needed(n)
	for _, c := range changes {
		name, nameErr := h.linkName(c.link)
		if err = errors.Join(err, nameErr); nameErr == nil {
			path, _, now := c.what.setting(name)
			texts = append(texts, forwarding.Dotted(path)+"="+now)
		}
	}
	return texts, err
}

// turnOn sets what a NIC needs of its uplink, once that is remembered.
func (h *Host) turnOn(ctx context.Context, n NIC) (err error) {
	m, err := h.lock(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	changes, err := h.needed(n)
	if err != nil || len(changes) == 0 {
		return err
	}
	for _, c := range changes {
		if !slices.Contains(m.changes, c) {
			m.changes = append(m.changes, c)
		}
	}
	if err := m.save(); err != nil {
		return err
	}
	// accept_ra comes first, since forwarding loses the routes at once.
	slices.SortStableFunc(changes, func(a, b change) int { return byKind(b, a) })
	set := func() error {
		for _, c := range changes {
			if err := h.set(c, true); err != nil {
				return err
			}
		}
		return nil
	}
	if slices.ContainsFunc(changes, func(c change) bool { return c.what == forward6 }) {
		return h.keepingRoutes(set)
	}
	return set()
}

// keepingRoutes runs do, which turns forwarding on, while no link loses the default route that it
// has from a router advertisement. Where the link does not forward itself afterwards, its accept_ra
// is set back at once.
func (h *Host) keepingRoutes(do func() error) error {
	links, err := h.advertisedLinks()
	if err != nil {
		return err
	}
	for _, l := range links {
		if err := h.set(change{l, acceptRA}, true); err != nil {
			return err
		}
	}
	err = do()
	for _, l := range links {
		err = errors.Join(err, h.set(change{l, acceptRA}, false))
	}
	return err
}

// set writes a setting's new value, or, where it still has that, its former one. A link that has
// gone has no settings. accept_ra stays while its link forwards.
func (h *Host) set(c change, on bool) error {
	name, err := h.linkName(c.link)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	path, was, now := c.what.setting(name)
	if !on && c.what == acceptRA {
		off, err := h.is(change{c.link, forward6})
		if err != nil || !off {
			return err
		}
	}
	if on {
		err = h.settings().Write(path, now)
	} else {
		err = h.settings().SetBack(path, now, was)
	}
	if err != nil {
		return fmt.Errorf("sysctl %s: %w", forwarding.Dotted(path), err)
	}
	return nil
}
