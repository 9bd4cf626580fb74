// Package firewall finds chains of other programs that drop what a network's guests send or get.
// A packet passes only if every base chain lets it, so no rule of ours helps.
package firewall

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"vmnet/internal/network/nft"
)

// Obstacle is a chain that drops traffic of a network.
type Obstacle struct {
	Chain  string `json:"chain"`  // "ip filter FORWARD"
	Owner  string `json:"owner"`  // "Docker"
	Effect string `json:"effect"` // what does not work
	Cure   string `json:"cure"`
	Blocks bool   `json:"blocks"` // the network does not work as its file says
}

// String describes the obstacle in one line.
func (o Obstacle) String() string {
	return fmt.Sprintf("%s of %s %s (%s)", o.Chain, o.Owner, o.Effect, o.Cure)
}

// Host is what is read of a namespace.
type Host struct {
	Ruleset *nft.Ruleset
	// BridgeNetfilter says that bridged frames pass the chains for IPv4 as well
	// (net.bridge.bridge-nf-call-iptables).
	BridgeNetfilter bool
	Legacy          []string // tables of iptables-legacy, whose rules nft does not list
}

// Obstacles returns the chains that drop traffic of the network with that bridge. own is the prefix
// of the names of our tables.
func (h Host) Obstacles(bridge, own string) []Obstacle {
	found := []Obstacle{}
	for _, c := range h.Ruleset.Chains {
		if strings.HasPrefix(c.Table.Name, own) || !slices.Contains([]string{"ip", "ip6", "inet"}, c.Table.Family) {
			continue
		}
		if c.Hook != "forward" && c.Hook != "input" || !drops(c) || h.lets(c, bridge, map[string]bool{}) {
			continue
		}
		found = append(found, h.obstacle(c, bridge))
	}
	if slices.Contains(h.Legacy, "filter") {
		found = append(found, Obstacle{
			Chain: "filter", Owner: "iptables-legacy", Effect: "may drop what guests send: nft does not list its rules",
			Cure: "iptables-legacy -S FORWARD shows them",
		})
	}
	return found
}

func (h Host) obstacle(c *nft.Chain, bridge string) Obstacle {
	owner := h.owner(c)
	o := Obstacle{
		Chain: strings.Join([]string{c.Table.Family, c.Table.Name, c.Name}, " "), Owner: owner.name,
		Blocks: c.Hook == "forward",
	}
	what := map[string]string{"ip": "IPv4 traffic", "ip6": "IPv6 traffic", "inet": "traffic"}[c.Table.Family]
	if c.Hook == "input" {
		o.Effect = "drops " + what + " of guests to the host itself; DHCP and DNS are not affected"
		o.Cure = owner.input(bridge)
		return o
	}
	o.Effect = "drops " + what + " of guests to other networks"
	if h.BridgeNetfilter && c.Table.Family != "ip6" {
		o.Effect += ", and to each other and their DHCP server, since net.bridge.bridge-nf-call-iptables is 1"
	}
	o.Cure = owner.forward(bridge, c)
	return o
}

// drops reports whether a base chain drops what none of its rules accepts.
func drops(c *nft.Chain) bool {
	if c.Policy == "drop" {
		return true
	}
	return len(c.Rules) > 0 && always(c.Rules[len(c.Rules)-1])
}

// always reports whether a rule drops or rejects everything: it has nothing else but what counts
// and logs.
func always(r nft.Rule) bool {
	final := false
	for _, expr := range r {
		for kind := range expr {
			switch kind {
			case "drop", "reject":
				final = true
			case "counter", "log", "comment":
			default:
				return false
			}
		}
	}
	return final
}

// lets reports whether a chain, or one that it jumps to, accepts what comes in by the bridge. seen
// are the chains that are on the way here.
func (h Host) lets(c *nft.Chain, bridge string, seen map[string]bool) bool {
	if c == nil || seen[c.Name] {
		return false
	}
	seen[c.Name] = true
	for _, r := range c.Rules {
		from, accepts, to := false, false, []string(nil)
		for _, expr := range r {
			for kind, raw := range expr {
				switch kind {
				case "match":
					from = from || matchesInput(raw, bridge)
				case "accept":
					accepts = true
				case "jump", "goto":
					to = append(to, target(raw))
				}
			}
		}
		if from && accepts {
			return true
		}
		for _, name := range to {
			if h.lets(h.Ruleset.Chain(c.Table, name), bridge, seen) {
				return true
			}
		}
	}
	return false
}

// target returns the chain that a jump leads to.
func target(raw json.RawMessage) string {
	var v struct{ Target string }
	_ = json.Unmarshal(raw, &v) // anything else is no chain
	return v.Target
}

// matchesInput reports whether a match is one of the interface that packets come in by, for bridge.
func matchesInput(raw json.RawMessage, bridge string) bool {
	var m struct {
		Op   string `json:"op"`
		Left struct {
			Meta struct {
				Key string `json:"key"`
			} `json:"meta"`
		} `json:"left"`
		Right json.RawMessage `json:"right"`
	}
	if json.Unmarshal(raw, &m) != nil || m.Op != "==" || m.Left.Meta.Key != "iifname" && m.Left.Meta.Key != "iif" {
		return false
	}
	var one string
	if json.Unmarshal(m.Right, &one) == nil {
		return matchesName(one, bridge)
	}
	var set struct {
		Set []json.RawMessage `json:"set"`
	}
	_ = json.Unmarshal(m.Right, &set)
	return slices.ContainsFunc(set.Set, func(raw json.RawMessage) bool {
		return json.Unmarshal(raw, &one) == nil && matchesName(one, bridge)
	})
}

// matchesName reports whether a pattern, a name or the beginning of one before a "*", matches name.
func matchesName(pattern, name string) bool {
	if start, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(name, start)
	}
	return pattern == name
}
