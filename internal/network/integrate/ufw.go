package integrate

import (
	"context"
	"errors"
	"slices"
	"strings"

	"vmnet/internal/network/config"
	"vmnet/internal/network/tool"
)

// ufwRoute begins a rule about what the host forwards, as ufw show added prints it and ufw(8) takes
// it.
const ufwRoute = "ufw route allow "

// ufwRules are what a network needs. ufw itself lets answers pass. What may come in by a forward is
// decided by the network's own table, since ufw knows no such state.
func ufwRules(n *config.Network) []string {
	rules := []string{"in on " + n.Name}
	if len(n.Forwards) > 0 {
		rules = append(rules, "out on "+n.Name)
	}
	return rules
}

func (h *Host) compareUFW(ctx context.Context, network string, want *config.Network,
) (missing, surplus []Rule, err error) {
	active := h.has("ufw-")
	if want != nil && !active {
		return nil, nil, nil // its rules, if there are any, wait for it
	}
	if h.ufw == nil {
		out, err := h.Run(ctx, "ufw", "show", "added")
		if errors.Is(err, tool.ErrNotInstalled) && !active {
			return nil, nil, nil
		}
		if err != nil {
			return nil, nil, err
		}
		h.ufw = strings.Split(out, "\n")
	}
	var wanted []string
	if want != nil {
		wanted = ufwRules(want)
	}
	mark := " comment '" + comment(network) + "'"
	for _, spec := range wanted {
		there := func(line string) bool {
			return line == ufwRoute+spec || strings.HasPrefix(line, ufwRoute+spec+" comment ")
		}
		if !slices.ContainsFunc(h.ufw, there) {
			missing = append(missing, h.ufwRule(spec, network))
		}
	}
	for _, line := range h.ufw {
		spec, ok := strings.CutPrefix(line, ufwRoute)
		if spec, ours := strings.CutSuffix(spec, mark); ok && ours && !slices.Contains(wanted, spec) {
			surplus = append(surplus, h.ufwRule(spec, network))
		}
	}
	return missing, surplus, nil
}

func (h *Host) ufwRule(spec, network string) Rule {
	args := strings.Fields(spec)
	return Rule{
		Owner: "ufw", Text: ufwRoute + spec + " comment " + comment(network),
		add: func(ctx context.Context) error {
			argv := append([]string{"ufw", "route", "allow"}, args...)
			_, err := h.Run(ctx, append(argv, "comment", comment(network))...)
			return err
		},
		remove: func(ctx context.Context) error {
			// That there is no such rule is success.
			_, err := h.Run(ctx, append([]string{"ufw", "--force", "route", "delete", "allow"}, args...)...)
			return err
		},
	}
}

// has reports whether a chain of the tables of iptables has a name with that prefix.
func (h *Host) has(prefix string) bool {
	for _, c := range h.Ruleset.Chains {
		if (c.Table.Family == "ip" || c.Table.Family == "ip6") && strings.HasPrefix(c.Name, prefix) {
			return true
		}
	}
	return h.Legacy
}
