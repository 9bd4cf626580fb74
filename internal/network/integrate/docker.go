package integrate

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"vmnet/internal/network/config"
	"vmnet/internal/network/nft"
)

// dockerChain is where Docker wants the rules of others. It never changes them, but for a RETURN at
// the end (https://docs.docker.com/engine/network/packet-filtering-firewalls/).
const dockerChain = "DOCKER-USER"

// dockerPrograms are those by which Docker makes its chains, in tables of these families.
var dockerPrograms = []struct{ family, program string }{{"ip", "iptables"}, {"ip6", "ip6tables"}}

// dockerRules are what a network needs of the chain, as iptables -S prints rules.
func dockerRules(network string) []string {
	end := " -m comment --comment " + comment(network) + " -j ACCEPT"
	return []string{
		"-i " + network + end,
		"-o " + network + " -m conntrack --ctstate RELATED,ESTABLISHED,DNAT" + end,
	}
}

func (h *Host) compareDocker(ctx context.Context, network string, want *config.Network,
) (missing, surplus []Rule, err error) {
	for _, p := range dockerPrograms {
		found, err := h.dockerUser(ctx, p.family, p.program)
		if err != nil {
			return nil, nil, err
		}
		if found == nil {
			continue
		}
		var wanted []string
		if want != nil && (p.family == "ip" || want.IPv6.IsValid()) {
			wanted = dockerRules(network)
		}
		for _, spec := range wanted {
			if !slices.Contains(found, spec) {
				missing = append(missing, h.dockerRule(p.program, spec))
			}
		}
		for _, spec := range found {
			ours := strings.Contains(spec+" ", "--comment "+comment(network)+" ")
			if ours && !slices.Contains(wanted, spec) {
				surplus = append(surplus, h.dockerRule(p.program, spec))
			}
		}
	}
	return missing, surplus, nil
}

// dockerUser returns the rules of Docker's chain; nil if there is no such chain.
func (h *Host) dockerUser(ctx context.Context, family, program string) ([]string, error) {
	if h.Ruleset.Chain(nft.TableID{Family: family, Name: "filter"}, dockerChain) == nil && !h.Legacy {
		return nil, nil
	}
	if found, ok := h.docker[program]; ok {
		return found, nil
	}
	found, err := h.listDocker(ctx, program)
	if says(err, "No chain/target/match by that name", "does not exist") {
		found, err = nil, nil
	}
	if err != nil {
		return nil, err
	}
	if h.docker == nil {
		h.docker = map[string][]string{}
	}
	h.docker[program] = found
	return found, nil
}

// listDocker reads the rules of Docker's chain.
func (h *Host) listDocker(ctx context.Context, program string) ([]string, error) {
	out, err := h.Run(ctx, program, "-w", "-S", dockerChain)
	if err != nil {
		return nil, err
	}
	rules := []string{}
	for line := range strings.Lines(out) {
		if spec, ok := strings.CutPrefix(strings.TrimSpace(line), "-A "+dockerChain+" "); ok {
			rules = append(rules, spec)
		}
	}
	return rules, nil
}

func (h *Host) dockerRule(program, spec string) Rule {
	args := strings.Fields(spec)
	return Rule{
		Owner: "Docker", Text: program + " -I " + dockerChain + " " + spec,
		add: func(ctx context.Context) error {
			rules, err := h.listDocker(ctx, program)
			if err != nil || slices.Contains(rules, spec) {
				return err
			}
			// After the administrator's rules, and before the RETURN of older Dockers.
			argv := []string{program, "-w", "-A", dockerChain}
			if last := len(rules); last > 0 && rules[last-1] == "-j RETURN" {
				argv = []string{program, "-w", "-I", dockerChain, strconv.Itoa(last)}
			}
			_, err = h.Run(ctx, append(argv, args...)...)
			return err
		},
		remove: func(ctx context.Context) error {
			rules, err := h.listDocker(ctx, program)
			if says(err, "No chain/target/match by that name", "does not exist") {
				return nil
			}
			for ; err == nil && slices.Contains(rules, spec); rules, err = h.listDocker(ctx, program) {
				if _, err := h.Run(ctx, append([]string{program, "-w", "-D", dockerChain}, args...)...); err != nil {
					return err
				}
			}
			return err
		},
	}
}
