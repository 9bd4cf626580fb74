package network

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"syscall"

	"vmnet/internal/kernel/forwarding"
	"vmnet/internal/network/config"
	"vmnet/internal/network/dhcp"
	"vmnet/internal/network/firewall"
	"vmnet/internal/network/nft"
	"vmnet/internal/network/ruleset"
	"vmnet/internal/network/server"
)

// Difference is what is not as a network's file says.
type Difference struct {
	Network string `json:"network"`
	What    string `json:"what"` // "bridge", "address", "rules", ...
	Want    string `json:"want"`
	Found   string `json:"found"`
	Mend    string `json:"mend"` // what to do
}

// Checked is the result of Check.
type Checked struct {
	Networks    int          `json:"networks"`
	Differences []Difference `json:"differences"`
	Notices     []string     `json:"notices"`
}

// Check compares networks with their files; all if names is empty.
func (m *Manager) Check(ctx context.Context, names ...string) (Checked, error) {
	checked := Checked{Differences: []Difference{}, Notices: []string{}}
	var networks []*config.Network
	add := func(network, what, want, found, mend string) {
		checked.Differences = append(checked.Differences, Difference{network, what, want, found, mend})
	}
	if len(names) > 0 {
		for _, name := range names {
			n, err := m.Dir.Read(name)
			if err != nil {
				return checked, err
			}
			networks = append(networks, n)
		}
	} else {
		all, broken, err := m.Dir.All()
		if err != nil {
			return checked, err
		}
		networks = all
		for _, err := range broken {
			add("", "file", "a file without errors", err.Error(), "correct the file")
		}
		left, err := m.leftovers(all)
		if err != nil {
			return checked, err
		}
		for _, name := range left {
			add(name, "file", m.Dir.Path(name), "", "vmnet network delete "+name)
		}
	}
	checked.Networks = len(networks)
	found, err := m.compare(ctx, networks)
	checked.Differences = append(checked.Differences, found...)
	for _, n := range networks {
		checked.Notices = append(checked.Notices, m.UpstreamNotices(n)...)
		checked.Notices = append(checked.Notices, m.MoveNotices(n)...)
	}
	return checked, err
}

// leftovers are the bridges of networks that have no file: not even one that cannot be read.
func (m *Manager) leftovers(networks []*config.Network) (left []string, err error) {
	names, err := m.made()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if slices.ContainsFunc(networks, func(n *config.Network) bool { return n.Name == name }) {
			continue
		}
		if _, err := os.Lstat(m.Dir.Path(name)); errors.Is(err, fs.ErrNotExist) {
			left = append(left, name)
		}
	}
	slices.Sort(left)
	return left, nil
}

// made returns the names of the networks that were made.
func (m *Manager) made() (names []string, err error) {
	if m.Elsewhere != nil {
		return m.Elsewhere.Names()
	}
	records, err := m.bridges()
	for _, r := range records {
		names = append(names, r.network)
	}
	return names, err
}

func (m *Manager) compare(ctx context.Context, networks []*config.Network) (found []Difference, err error) {
	if m.Elsewhere != nil {
		return m.compareElsewhere(ctx, networks)
	}
	var ours []*config.Network // whose names nothing else has
	for _, n := range networks {
		if _, _, err := m.bridge(n.Name); errors.Is(err, ErrForeign) {
			found = append(found, Difference{n.Name, "bridge", "its own", err.Error(), "rename one of them"})
		} else if err != nil {
			return found, err
		} else {
			ours = append(ours, n)
		}
	}
	if len(ours) == 0 {
		return found, nil
	}
	states, err := m.readAll(ctx, ours)
	if err != nil {
		return found, err
	}
	for i, st := range states {
		differs, err := m.differences(ours[i], st)
		if err != nil {
			return found, err
		}
		found = append(found, differs...)
	}
	return found, nil
}

// mendByApply is the cure for what apply mends.
func mendByApply(name string) string { return "vmnet network apply " + name }

func (m *Manager) differences(n *config.Network, st *state) (found []Difference, err error) {
	mend := mendByApply(n.Name)
	add := func(what, want, is string) { found = append(found, Difference{n.Name, what, want, is, mend}) }
	switch {
	case st.bridge == nil:
		add("bridge", n.Name, "")
	case st.bridge.Alias == "":
		add("bridge", "with the network's alias", "without one")
	case !st.bridge.Up:
		add("bridge", "up", "down")
	}
	if st.bridge != nil {
		if n.MTU != 0 && st.bridge.MTU != n.MTU {
			add("mtu", strconv.Itoa(n.MTU), strconv.Itoa(st.bridge.MTU))
		}
		for _, a := range st.missing {
			add("address", a.String(), "")
		}
		for _, a := range st.surplus {
			add("address", "", a.String())
		}
	}
	switch {
	case len(st.families) == 0 && len(ruleset.Families(n)) > 0:
		add("rules", "table "+ruleset.Table(n.Name), "")
	case !st.sameRules:
		add("rules", "table "+ruleset.Table(n.Name), "other rules in it")
	}
	switch {
	case n.DHCP && st.server == nil:
		add("server", "running", "")
	case n.DHCP && !m.ServerConfig(n).IsCurrent(st.server):
		add("server", "started as the file says", "started with other settings")
	case n.DHCP && st.bridge != nil && st.server.Master != st.bridge.Index:
		add("server", "on bridge "+n.Name, "on another or none")
	case !n.DHCP && st.server != nil:
		add("server", "", "running")
	}
	if err := m.checkForwarding(n, add); err != nil {
		return nil, err
	}
	st.integration.differences(add)
	if err := m.checkManagers(n, add); err != nil {
		return nil, err
	}
	differs, err := m.checkUplink(n, st)
	if err != nil {
		return nil, err
	}
	found = append(found, differs...)
	obstacles, err := m.obstacles(n, st.rules)
	for _, o := range obstacles {
		if o.Blocks && (n.NAT || len(n.Forwards) > 0 || o.Bridged) {
			found = append(found, Difference{
				n.Name, "firewall", "nothing that drops its traffic",
				fmt.Sprintf("%s of %s %s", o.Chain, o.Owner, o.Effect), o.Cure,
			})
		}
	}
	return found, err
}

func (m *Manager) checkForwarding(n *config.Network, add func(what, want, is string)) error {
	ip4, ip6 := needsForwarding(n)
	for _, v := range []struct {
		needed bool
		sysctl string
	}{{ip4, forwarding.IP4}, {ip6, forwarding.IP6}} {
		off, err := m.settings().IsOff(v.sysctl)
		if err != nil {
			return err
		}
		if v.needed && off {
			add("sysctl "+forwarding.Dotted(v.sysctl), "1", "0")
		}
	}
	return nil
}

// Obstacles returns the chains of other firewalls that drop traffic of a network.
func (m *Manager) Obstacles(ctx context.Context, n *config.Network) ([]firewall.Obstacle, error) {
	if m.Elsewhere != nil {
		return []firewall.Obstacle{}, nil // no other program has rules there
	}
	rules, err := nft.List(ctx, m.NS)
	if err != nil {
		return nil, err
	}
	return m.obstacles(n, rules)
}

// tablePrefix begins the names of the tables of all networks.
var tablePrefix = ruleset.Table("")

func (m *Manager) obstacles(n *config.Network, rules *nft.Ruleset) ([]firewall.Obstacle, error) {
	filter, _, err := m.settings().Read("net/bridge/bridge-nf-call-iptables")
	if err != nil {
		return nil, err
	}
	legacy, err := firewall.LegacyTables(m.NS)
	if err != nil {
		return nil, err
	}
	uplinks, err := m.uplinks()
	if err != nil {
		return nil, err
	}
	h := firewall.Host{Ruleset: rules, BridgeNetfilter: filter == "1", Legacy: legacy, Uplinks: uplinks}
	found := h.Obstacles(n.Name, tablePrefix)
	for i, o := range found {
		if o.Blocks && o.Integrable() && !n.Integrate {
			found[i].Cure += "; or vmnet network apply " + n.Name + " --integrate"
		}
	}
	return found, nil
}

// uplinks are the links of the host's default routes.
func (m *Manager) uplinks() (names []string, err error) {
	routes, err := m.nl.Routes()
	if err != nil {
		return nil, err
	}
	for _, r := range routes {
		if r.Dst.Bits() != 0 || r.Link == 0 {
			continue
		}
		if l, err := m.nl.LinkByIndex(r.Link); err == nil && !slices.Contains(names, l.Name) {
			names = append(names, l.Name)
		}
	}
	return names, nil
}

// UpstreamNotices says so if the server of a network cannot ask the host's name servers.
func (m *Manager) UpstreamNotices(n *config.Network) []string {
	if m.Elsewhere != nil {
		return m.Elsewhere.Notices(n)
	}
	path := cmp.Or(m.Resolv, server.ResolvConf())
	return upstreamNotices(n, path, func(up dhcp.Upstream) string {
		if len(up.Loopback) > 0 || up.Others > 0 {
			return ""
		}
		return path + " names no name server"
	})
}

// upstreamNotices is UpstreamNotices with the path of the host's resolv.conf. wrong returns what is
// wrong with the name servers in it, if anything is.
func upstreamNotices(n *config.Network, path string, wrong func(dhcp.Upstream) string) []string {
	if !n.DHCP || !n.Gateway().IsValid() {
		return nil
	}
	up, err := dhcp.ReadUpstream(path)
	text := ""
	if err != nil {
		text = err.Error()
	} else {
		text = wrong(up)
	}
	if text == "" {
		return nil
	}
	return []string{fmt.Sprintf("network %s: guests resolve names of the network only: %s", n.Name, text)}
}

// readBounded reads a regular file, at most that many bytes.
func readBounded(path string, most int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(text)) > most {
		err = fmt.Errorf("%s: it has more than %d bytes", path, most)
	}
	return text, err
}
