package routed

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"vmnet/internal/alias"
	"vmnet/internal/kernel/forwarding"
	"vmnet/internal/kernel/rtnl"
)

// Removed is a thing that Tidy has taken away or set back.
type Removed struct {
	Link string // the name of its link; "all" for a setting of all links
	What string // "proxy entry of 192.0.2.11", "sysctl net.ipv4.conf.eth0.forwarding=0"
}

// Text returns what was done, in words.
func (r Removed) Text() string {
	if strings.HasPrefix(r.What, "sysctl ") {
		return "set back: " + r.What
	}
	return "removed: " + r.What + ", which no NIC claims"
}

// Tidy removes the entries that no NIC claims, and sets back what no NIC needs of the host's
// settings, where nobody has changed it since. It returns what it has done, or would do if dry is
// set.
func (h *Host) Tidy(ctx context.Context, dry bool) (done []Removed, err error) {
	if there, err := h.Traces(); err != nil || !there {
		return nil, err
	}
	return h.tidy(ctx, "", dry)
}

// Traces reports whether there is anything that Tidy might take away.
func (h *Host) Traces() (bool, error) {
	l, err := h.NL.Link(memoryName)
	if rtnl.IgnoreNotExist(err) != nil {
		return false, err
	}
	entries, err := h.entries()
	return l != nil || len(entries) > 0, err
}

// entries lists the entries that vmnet has made.
func (h *Host) entries() ([]rtnl.Proxy, error) {
	all, err := h.NL.Proxies()
	return slices.DeleteFunc(all, func(p rtnl.Proxy) bool { return p.Protocol != protocol }), err
}

// tidy is Tidy as if the NIC of that tap had gone.
func (h *Host) tidy(ctx context.Context, gone string, dry bool) (done []Removed, err error) {
	m, err := h.open(ctx, dry)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	entries, err := h.entries() // before the NICs: a NIC is there before its entries
	if err != nil {
		return nil, err
	}
	nics, err := h.NICs()
	if err != nil {
		return nil, err
	}
	nics = slices.DeleteFunc(nics, func(n NIC) bool { return n.Tap == gone })
	var errs []error
	for _, e := range entries {
		if slices.ContainsFunc(nics, func(n NIC) bool { return n.Uplink == e.Link && slices.Contains(n.IPs, e.Addr) }) {
			continue
		}
		done = append(done, Removed{h.nameOf(e.Link), "proxy entry of " + e.Addr.String()})
		if !dry {
			errs = append(errs, h.NL.DeleteProxy(e))
		}
	}
	back, err := m.setBack(nics, dry)
	return append(done, back...), errors.Join(append(errs, err)...)
}

func (h *Host) nameOf(link int) string {
	if name, err := h.linkName(link); err == nil {
		return name
	}
	return fmt.Sprintf("interface %d", link)
}

// setBack sets back what none of these NICs needs.
func (m *memory) setBack(nics []NIC, dry bool) (done []Removed, err error) {
	networks, err := m.h.hasNetworks()
	if err != nil {
		return nil, err
	}
	needs := func(c change) bool {
		whole := c.link == 0 || c.what == acceptRA && !slices.Contains(m.changes, change{c.link, forward6})
		if whole { // of all links, or of one that has a route
			return len(nics) > 0 || networks
		}
		return slices.ContainsFunc(nics, func(n NIC) bool {
			return n.Uplink == c.link && n.has(c.what != forward4)
		})
	}
	var kept, back []change
	for _, c := range m.changes {
		if needs(c) {
			kept = append(kept, c)
		} else {
			back = append(back, c)
		}
	}
	slices.SortStableFunc(back, byKind)
	var errs []error
	for _, c := range back {
		text, err := m.h.restore(c, dry)
		if err != nil {
			errs = append(errs, err)
			kept = append(kept, c)
			continue
		}
		if text != "" {
			done = append(done, Removed{m.h.nameOf(c.link), text})
		}
	}
	if m.changes = kept; !dry {
		errs = append(errs, m.save())
	}
	return done, errors.Join(errs...)
}

// restore sets one setting back. A link's forwarding stays if all links forward: to turn that off
// turns it off for this link, too.
func (h *Host) restore(c change, dry bool) (text string, err error) {
	if c.link != 0 && (c.what == forward4 || c.what == forward6) {
		off, err := h.is(change{0, c.what})
		if err != nil || !off {
			return "", err
		}
	}
	name, err := h.linkName(c.link)
	if err != nil {
		return "", rtnl.IgnoreNotExist(err)
	}
	path, was, now := c.what.setting(name)
	value, ok, err := h.settings().Read(path)
	if err != nil || !ok || value != now { // somebody has changed it since
		return "", err
	}
	if !dry {
		if err := h.set(c, false); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("sysctl %s=%s", forwarding.Dotted(path), was), nil
}

// hasNetworks reports whether there is a network (vmnet network), which may need that the host
// forwards. The last network has its settings set back itself.
func (h *Host) hasNetworks() (bool, error) {
	links, err := h.NL.Links("bridge", 0)
	return slices.ContainsFunc(links, func(l *rtnl.Link) bool {
		return strings.HasPrefix(l.Alias, alias.Prefix+"network=")
	}), err
}

// Inherit remembers for the routed NICs that forwarding on all links was off, for IPv4, for IPv6,
// or for both, and the links whose accept_ra was changed for it. Its caller has turned it on, and
// would have turned it off now. taken is false if there is no NIC, and so nothing is remembered.
func (h *Host) Inherit(ctx context.Context, ip4, ip6 bool, advertised []string) (taken bool, err error) {
	nics, err := h.NICs()
	if err != nil || len(nics) == 0 {
		return false, err
	}
	m, err := h.lock(ctx)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	if nics, err = h.NICs(); err != nil || len(nics) == 0 { // one may have gone since
		return false, err
	}
	add := func(c change) {
		if !slices.Contains(m.changes, c) {
			m.changes = append(m.changes, c)
		}
	}
	if ip4 {
		add(change{0, forward4})
	}
	if ip6 {
		add(change{0, forward6})
	}
	for _, name := range advertised {
		if l, err := h.NL.Link(name); err == nil {
			add(change{l.Index, acceptRA})
		}
	}
	return true, m.save()
}

// Missing returns what is not as a NIC needs it, in words; nothing if all is.
func (h *Host) Missing(n NIC) (list []string, err error) {
	l, err := h.NL.Link(n.Tap)
	if err != nil {
		return nil, err
	}
	for _, s := range ofTap(n) {
		if now, ok, err := h.settings().Read(s[0]); err != nil {
			return nil, err
		} else if ok && now != s[1] {
			list = append(list, fmt.Sprintf("sysctl %s=%s", forwarding.Dotted(s[0]), s[1]))
		}
	}
	texts, err := h.uplinkTexts(n)
	if err != nil {
		return nil, err
	}
	for _, text := range texts {
		list = append(list, "sysctl "+text)
	}
	addrs, err := h.NL.AllAddrs(l.Index)
	if err != nil {
		return nil, err
	}
	for _, p := range gateways(n) {
		if !slices.Contains(addrs, p) {
			list = append(list, "address "+p.String())
		}
	}
	to, err := h.routes()
	if err != nil {
		return nil, err
	}
	entries, err := h.entries()
	if err != nil {
		return nil, err
	}
	for _, a := range n.IPs {
		if to[a] != l.Index {
			list = append(list, "route of "+a.String())
		}
		if !slices.Contains(entries, h.entry(n, a)) {
			list = append(list, "proxy entry of "+a.String())
		}
	}
	return list, nil
}

// Mend restores what Missing returns.
func (h *Host) Mend(ctx context.Context, n NIC) error {
	changes, err := h.needed(n)
	if err == nil && len(changes) > 0 { // else there is nothing to wait for: a guest may be without network
		err = h.turnOn(ctx, n)
	}
	if err := errors.Join(err, h.setTap(n)); err != nil {
		return err
	}
	return h.onTap(n, func(n NIC, tap int) error {
		entries, err := h.entries()
		if err != nil {
			return err
		}
		err = errors.Join(h.up(n, tap), h.addGateways(n, tap))
		var fresh []netip.Addr
		for _, a := range n.IPs {
			mendErr := h.mendAddr(a, n, tap)
			if mendErr == nil && !slices.Contains(entries, h.entry(n, a)) {
				fresh = append(fresh, a)
			}
			err = errors.Join(err, mendErr)
		}
		h.announce(n.Uplink, fresh)
		return err
	})
}

func (h *Host) mendAddr(a netip.Addr, n NIC, tap int) error {
	if err := h.addRoute(a, n, tap); err != nil {
		return err
	}
	return h.NL.AddProxy(h.entry(n, a))
}

// Answered returns those of a NIC's addresses for which the host answers on the uplink.
func (h *Host) Answered(n NIC) (list []netip.Addr, err error) {
	entries, err := h.entries()
	for _, a := range n.IPs {
		if slices.Contains(entries, h.entry(n, a)) {
			list = append(list, a)
		}
	}
	return list, err
}

// Withdraw removes what Answered finds. The routes and the host's addresses on the tap need no
// removal: its tap is down.
func (h *Host) Withdraw(n NIC) error {
	list, err := h.Answered(n)
	for _, a := range list {
		err = errors.Join(err, h.NL.DeleteProxy(h.entry(n, a)))
	}
	return err
}
