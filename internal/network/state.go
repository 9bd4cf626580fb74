package network

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"slices"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/network/config"
	"vmnet/internal/network/firewall"
	"vmnet/internal/network/nft"
	"vmnet/internal/network/ruleset"
	"vmnet/internal/network/server"
)

// state is what there is of a network.
type state struct {
	bridge    *rtnl.Link     // nil if there is none
	record    record         // of the bridge
	missing   []netip.Prefix // addresses that it should have
	surplus   []netip.Prefix // addresses that it should not have
	families  []string       // in which it has a table
	sameRules bool
	server    *rtnl.Link // the port of its server; nil if none runs
	integration
	rules *nft.Ruleset
}

// read compares a network with what there is of it.
func (m *Manager) read(ctx context.Context, n *config.Network) (*state, error) {
	all, err := m.readAll(ctx, []*config.Network{n})
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// readAll is read for several networks, with one listing of the ruleset.
func (m *Manager) readAll(ctx context.Context, networks []*config.Network) ([]*state, error) {
	rules, err := nft.List(ctx, m.NS)
	if err != nil {
		return nil, err
	}
	// What has not the right tables differs, whatever is in them.
	hasTables := func(n *config.Network) bool { return slices.Equal(tables(rules, n.Name), ruleset.Families(n)) }
	want, err := wanted(ctx, slices.DeleteFunc(slices.Clone(networks), func(n *config.Network) bool {
		return !hasTables(n)
	}))
	if err != nil {
		return nil, err
	}
	legacy, err := firewall.LegacyTables(m.NS)
	if err != nil {
		return nil, err
	}
	others := m.firewalls(rules, legacy)
	var all []*state
	for _, n := range networks {
		st := &state{rules: rules, families: tables(rules, n.Name), sameRules: hasTables(n), missing: n.Addresses()}
		for _, family := range []string{ruleset.Inet, ruleset.Bridge} {
			id := nft.TableID{Family: family, Name: ruleset.Table(n.Name)}
			st.sameRules = st.sameRules && reflect.DeepEqual(rules.Table(id), want.Table(id))
		}
		if st.bridge, st.record, err = m.bridge(n.Name); err != nil {
			return nil, err
		}
		if n.Integrate || st.record.integrated {
			st.integration = compareIntegration(ctx, others, n)
		}
		if st.bridge != nil {
			if err := m.readAddresses(n, st); err != nil {
				return nil, err
			}
		}
		if st.server, err = server.Running(m.nl, n); err != nil {
			return nil, err
		}
		all = append(all, st)
	}
	return all, nil
}

func (m *Manager) readAddresses(n *config.Network, st *state) error {
	has, err := m.nl.Addrs(st.bridge.Index)
	if err != nil {
		return err
	}
	want := n.Addresses()
	lacks := func(in []netip.Prefix) func(netip.Prefix) bool {
		return func(p netip.Prefix) bool { return slices.Contains(in, p) }
	}
	st.missing = slices.DeleteFunc(slices.Clone(want), lacks(has))
	if n.Uplink == nil { // on an uplink, the host's addresses are not the network's
		st.surplus = slices.DeleteFunc(slices.Clone(has), lacks(want))
	}
	return nil
}

// wanted returns how nft lists the tables of networks. nft alone knows how it lists rules, so it
// gets them in a namespace that is used for nothing else.
func wanted(ctx context.Context, networks []*config.Network) (*nft.Ruleset, error) {
	text := ""
	for _, n := range networks {
		t, err := ruleset.Text(n)
		if err != nil {
			return nil, err
		}
		text += t
	}
	if text == "" {
		return &nft.Ruleset{}, nil
	}
	empty, err := netns.New()
	if err != nil {
		return nil, err
	}
	defer empty.Close()
	if err := nft.Apply(ctx, empty, text); err != nil {
		return nil, err
	}
	return nft.List(ctx, empty)
}

// tables returns the families in which a network has a table.
func tables(rules *nft.Ruleset, network string) (families []string) {
	for _, family := range []string{ruleset.Inet, ruleset.Bridge} {
		if rules.Table(nft.TableID{Family: family, Name: ruleset.Table(network)}) != nil {
			families = append(families, family)
		}
	}
	return families
}

// conflicts returns an error if something else has what a network is about to take.
func (m *Manager) conflicts(n *config.Network, st *state) error {
	if len(st.missing) > 0 {
		taken, err := m.Taken(n.Name)
		if err != nil {
			return err
		}
		if err := n.CheckFree(taken); err != nil {
			return err
		}
	}
	return m.forwardConflicts(n)
}

// forwardConflicts returns an error if another network has a forward from the same port.
func (m *Manager) forwardConflicts(n *config.Network) error {
	if len(n.Forwards) == 0 {
		return nil
	}
	others, _, err := m.Dir.All() // a file that cannot be read is reported by its own apply
	if err != nil {
		return err
	}
	for _, other := range others {
		if other.Name == n.Name {
			continue
		}
		for _, f := range n.Forwards {
			i := slices.IndexFunc(other.Forwards, func(g config.Forward) bool { return collide(n, f, other, g) })
			if i >= 0 {
				return fmt.Errorf("network %s: forward %s: network %s has %s", n.Name, f.From(), other.Name,
					other.Forwards[i].From())
			}
		}
	}
	return nil
}

// collide reports whether forwards of two networks take the same connections.
func collide(n *config.Network, f config.Forward, other *config.Network, g config.Forward) bool {
	a, aErr := n.Target(f)
	b, bErr := other.Target(g)
	return aErr == nil && bErr == nil && a.Is4() == b.Is4() && config.Collide(f, g)
}

// Taken returns the addresses that something other than the network of that name uses: other
// networks, and what the host has routes to.
func (m *Manager) Taken(name string) ([]config.Taken, error) {
	var taken []config.Taken
	others, _, err := m.Dir.All()
	if err != nil {
		return nil, err
	}
	for _, other := range others {
		if other.Name == name {
			continue
		}
		for _, p := range other.Prefixes() {
			taken = append(taken, config.Taken{Prefix: p, Owner: "network " + other.Name})
		}
	}
	routes, err := m.nl.Routes()
	if err != nil {
		return nil, err
	}
	names := map[int]string{} // of links, for people
	for _, r := range routes {
		owner, ok := names[r.Link]
		if !ok {
			owner = m.owner(r.Link, name)
			names[r.Link] = owner
		}
		if owner != "" {
			taken = append(taken, config.Taken{Prefix: r.Dst, Owner: owner})
		}
	}
	return taken, nil
}

// owner describes a link that has routes; empty for the bridge of the network of that name.
func (m *Manager) owner(index int, network string) string {
	if index == 0 {
		return "a route of the host"
	}
	l, err := m.nl.LinkByIndex(index)
	if err != nil {
		return "a route of the host"
	}
	if r, ok := recordOf(l); ok {
		if r.network == network && l.Name == network {
			return ""
		}
		return "network " + r.network
	}
	if l.Kind == "" {
		return l.Name
	}
	return fmt.Sprintf("%s (%s)", l.Name, l.Kind)
}
