// Package integrate has other firewalls let a network's traffic pass, each by the means that it
// offers for that: rules in Docker's chain DOCKER-USER, routes of ufw, a zone of firewalld. What it
// adds bears the network's name, so that it can be found and removed.
package integrate

import (
	"context"
	"errors"
	"strings"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/network/config"
	"vmnet/internal/network/nft"
	"vmnet/internal/network/ruleset"
	"vmnet/internal/network/tool"
)

// Host is a host with its firewalls. What they say is read once: use a Host for one comparison.
type Host struct {
	// Ruleset has the chains of those that are active.
	Ruleset *nft.Ruleset
	// Legacy says that iptables-legacy has filter tables, whose chains Ruleset lacks.
	Legacy bool
	Run    Run

	docker    map[string][]string // rules of DOCKER-USER by program
	ufw       []string
	firewalld *zones
}

// Run runs a program of a firewall, and returns its standard output. An error of the program
// itself is a *tool.Failure.
type Run func(ctx context.Context, argv ...string) (string, error)

// In returns what runs programs in ns.
func In(ns *netns.NS) Run {
	return func(ctx context.Context, argv ...string) (string, error) {
		path, err := tool.Find(argv[0], packages[argv[0]])
		if err != nil {
			return "", err
		}
		out, err := tool.Run(ctx, ns, "", append([]string{path}, argv[1:]...)...)
		return string(out), err
	}
}

// packages are those of Debian that have the programs.
var packages = map[string]string{
	"iptables": "iptables", "ip6tables": "iptables", "ufw": "ufw", "firewall-cmd": "firewalld",
	"firewall-offline-cmd": "firewalld",
}

// Rule is an entry of another firewall that a network needs.
type Rule struct {
	Owner string // the firewall, such as "Docker"
	Text  string // the command that adds it; two rules with the same text are the same

	add, remove func(context.Context) error
}

// Add adds the rule.
func (r Rule) Add(ctx context.Context) error { return r.add(ctx) }

// Remove removes the rule. One that is gone is no error.
func (r Rule) Remove(ctx context.Context) error { return r.remove(ctx) }

// Compare returns the rules that a network lacks, and those of its own that it does not need.
// Rules that an administrator has made count as there, and are never returned as surplus.
func (h *Host) Compare(ctx context.Context, n *config.Network) (missing, surplus []Rule, err error) {
	want := n
	if !n.Integrate {
		want = nil
	}
	for _, compare := range []func(context.Context, string, *config.Network) ([]Rule, []Rule, error){
		h.compareDocker, h.compareUFW, h.compareFirewalld,
	} {
		lacks, has, compareErr := compare(ctx, n.Name, want)
		missing, surplus, err = append(missing, lacks...), append(surplus, has...), errors.Join(err, compareErr)
	}
	return missing, surplus, err
}

// comment marks the rules of a network, in the same words as its table.
func comment(network string) string { return ruleset.Table(network) }

// says reports whether a program has failed with these words.
func says(err error, words ...string) bool {
	var failed *tool.Failure
	if !errors.As(err, &failed) {
		return false
	}
	for _, w := range words {
		if strings.Contains(failed.Words, w) {
			return true
		}
	}
	return false
}
