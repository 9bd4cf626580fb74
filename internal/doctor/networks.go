package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"

	"vmnet/internal/network"
	"vmnet/internal/network/config"
	"vmnet/internal/network/dhcp"
	"vmnet/internal/network/tool"
)

// networks checks the networks of vmnet-network(8) and the programs that they are made with.
func (m Machine) networks(ctx context.Context) []Check {
	if m.NS == nil || m.Root != "" {
		return nil
	}
	const name = "networks"
	dir := config.Dir(cmp.Or(m.Networks, config.DefaultDir))
	names, err := dir.Names()
	if err != nil {
		return fail(name, "", "%v", err)
	}
	checks, usable := m.nft(ctx, len(names) > 0)
	if _, err := tool.Find("dnsmasq", "dnsmasq-base"); err != nil {
		checks = append(checks, needed(len(names) > 0, "dnsmasq", "apt install dnsmasq-base",
			"it is not installed: networks cannot give guests addresses and names")...)
	}
	if len(names) == 0 || !usable || os.Geteuid() != 0 { // only root sees rules
		return append(checks, ok(name, "%d have a file in %s", len(names), dir)...)
	}
	manager := &network.Manager{NS: m.NS, Dir: dir, State: dhcp.DefaultState}
	if err := manager.Open(); err != nil {
		return append(checks, fail(name, "", "%v", err)...)
	}
	defer manager.Close()
	for _, name := range names {
		checks = append(checks, lookAt(ctx, manager, name)...)
	}
	return checks
}

// needed is a failure where there are networks, and otherwise a warning.
func needed(networks bool, name, cure, text string) []Check {
	if networks {
		return fail(name, cure, "%s", text)
	}
	return warn(name, cure, "%s", text)
}

// leastNft is the first version of nft whose language networks use.
var leastNft = [2]int{1, 0}

var nftVersion = regexp.MustCompile(`v(\d+)\.(\d+)`)

// nft checks the program nft. usable is false if it cannot be run.
func (m Machine) nft(ctx context.Context, networks bool) (checks []Check, usable bool) {
	const name = "nft"
	path, err := tool.Find("nft", "nftables")
	if err != nil {
		return needed(networks, name, "apt install nftables", "it is not installed: networks cannot be made"), false
	}
	out, err := tool.Run(ctx, m.NS, "", path, "--version")
	if err != nil {
		return needed(networks, name, "apt install --reinstall nftables", err.Error()), false
	}
	v := nftVersion.FindStringSubmatch(string(out))
	if v == nil || !atLeast(v[1], v[2], leastNft) {
		return needed(networks, name, "install nftables 1.0 or newer",
			fmt.Sprintf("%s is too old for networks", strings.TrimSpace(string(out)))), true
	}
	return ok(name, "%s", strings.TrimSpace(string(out))), true
}

func atLeast(major, minor string, least [2]int) bool {
	a, aErr := strconv.Atoi(major)
	b, bErr := strconv.Atoi(minor)
	return errors.Join(aErr, bErr) == nil && (a > least[0] || a == least[0] && b >= least[1])
}

// lookAt checks one network: what differs from its file, which chains of other firewalls drop its
// traffic, and whether its server reaches the host's name servers.
func lookAt(ctx context.Context, m *network.Manager, name string) (checks []Check) {
	what := "network " + name
	n, err := m.Dir.Read(name)
	if err != nil {
		return fail(what, "correct the file, or vmnet network delete "+name, "%v", err)
	}
	c, err := m.Check(ctx, name)
	if err != nil {
		return fail(what, "", "%v", err)
	}
	for _, d := range c.Differences {
		text := fmt.Sprintf("%s: want %s, found %s", d.What, orNothing(d.Want), orNothing(d.Found))
		checks = append(checks, fail(what, d.Mend, "%s", text)...)
	}
	obstacles, err := m.Obstacles(ctx, n)
	if err != nil {
		return append(checks, fail(what, "", "%v", err)...)
	}
	for _, o := range obstacles {
		if !o.Blocks { // one that does is a difference
			checks = append(checks, warn(what, o.Cure, "%s of %s %s", o.Chain, o.Owner, o.Effect)...)
		}
	}
	for _, notice := range c.Notices {
		checks = append(checks, warn(what, "", "%s", strings.TrimPrefix(notice, what+": "))...)
	}
	if len(checks) == 0 {
		return ok(what, "as its file says, and no other firewall drops its traffic")
	}
	return checks
}

func orNothing(s string) string {
	if s == "" {
		return "nothing"
	}
	return s
}
