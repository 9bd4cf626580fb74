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
	// Bridged says that what guests send to each other and to the server is dropped too.
	Bridged bool `json:"bridged"`
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
	// Uplinks are the interfaces by which the host reaches other networks. A chain that lets pass
	// all that goes out by one is no obstacle.
	Uplinks []string
}

// Obstacles returns the chains that drop traffic of the network with that bridge. own is the prefix
// of the names of our tables.
func (h Host) Obstacles(bridge, own string) []Obstacle {
	found := []Obstacle{}
	for _, c := range h.dropping(own, "forward", "input") {
		if !h.lets(c, bridge, map[string]bool{}) {
			found = append(found, h.obstacle(c, bridge))
		}
	}
	return append(found, h.legacy()...)
}

// dropping returns the base chains of others that drop what they do not accept, at these hooks.
func (h Host) dropping(own string, hooks ...string) (found []*nft.Chain) {
	for _, c := range h.Ruleset.Chains {
		if !strings.HasPrefix(c.Table.Name, own) && slices.Contains(hooks, c.Hook) && traffic[c.Table.Family] != "" &&
			drops(c) {
			if accepts, _ := h.accepts(c, map[string]bool{}); !accepts {
				found = append(found, c)
			}
		}
	}
	return found
}

func (h Host) legacy() []Obstacle {
	if !slices.Contains(h.Legacy, "filter") {
		return nil
	}
	return []Obstacle{{
		Chain: "filter", Owner: "iptables-legacy", Effect: "may drop what guests send: nft does not list its rules",
		Cure: "iptables-legacy -S FORWARD shows them",
	}}
}

// traffic is what chains of a family decide on.
var traffic = map[string]string{"ip": "IPv4 traffic", "ip6": "IPv6 traffic", "inet": "traffic"}

// of returns an obstacle without its effect and cure.
func of(c *nft.Chain, owner owner) Obstacle {
	return Obstacle{
		Chain: strings.Join([]string{c.Table.Family, c.Table.Name, c.Name}, " "), Owner: owner.name,
		Blocks: c.Hook == "forward",
	}
}

func (h Host) obstacle(c *nft.Chain, bridge string) Obstacle {
	owner := h.owner(c)
	o, what := of(c, owner), traffic[c.Table.Family]
	if c.Hook == "input" {
		o.Effect = "drops " + what + " of guests to the host itself; DHCP and DNS are not affected"
		o.Cure = owner.input(bridge)
		return o
	}
	o.Effect = "drops " + what + " of guests to other networks"
	if o.Bridged = h.BridgeNetfilter && c.Table.Family != "ip6"; o.Bridged {
		o.Effect += ", and to each other and their DHCP server, since net.bridge.bridge-nf-call-iptables is 1"
	}
	o.Cure = owner.forward(passage{link: bridge}, c)
	return o
}

// drops reports whether a base chain drops what none of its rules accepts.
func drops(c *nft.Chain) bool {
	if c.Policy == "drop" {
		return true
	}
	if len(c.Rules) == 0 {
		return false
	}
	kind, _ := always(c.Rules[len(c.Rules)-1])
	return kind == "drop" || kind == "reject"
}

// always returns what a rule does with every packet: "accept", "drop", "reject", or "jump" and
// "goto" with the chain that it leads to. It is empty for a rule that looks at the packet.
func always(r nft.Rule) (kind, chain string) {
	for _, expr := range r {
		for k, raw := range expr {
			switch k {
			case "accept", "drop", "reject":
				kind = k
			case "jump", "goto":
				kind, chain = k, target(raw)
			case "counter", "log", "comment":
			default:
				return "", ""
			}
		}
	}
	return kind, chain
}

// accepts reports whether a chain accepts everything that no rule with a condition decides on.
// decided is false if it leaves that to the chain that it was called from.
func (h Host) accepts(c *nft.Chain, seen map[string]bool) (accepts, decided bool) {
	if c == nil || seen[c.Name] {
		return false, false
	}
	seen[c.Name] = true
	for _, r := range c.Rules {
		switch kind, to := always(r); kind {
		case "accept":
			return true, true
		case "drop", "reject":
			return false, true
		case "jump":
			if accepts, decided := h.accepts(h.Ruleset.Chain(c.Table, to), seen); decided {
				return accepts, true
			}
		case "goto":
			return h.accepts(h.Ruleset.Chain(c.Table, to), seen)
		}
	}
	return false, false
}

// lets reports whether a chain, or one that it jumps to, accepts what comes in by the bridge. seen
// are the chains that are on the way here.
func (h Host) lets(c *nft.Chain, bridge string, seen map[string]bool) bool {
	if c == nil || seen[c.Name] {
		return false
	}
	seen[c.Name] = true
	for _, r := range c.Rules {
		about := h.about(r, bridge)
		if about == nothing {
			continue
		}
		for _, expr := range r {
			for kind, raw := range expr {
				switch kind {
				case "accept":
					if about == guests {
						return true
					}
				case "jump", "goto":
					next := h.Ruleset.Chain(c.Table, target(raw))
					if accepts, _ := h.accepts(next, map[string]bool{}); accepts && about == guests {
						return true
					}
					if h.lets(next, bridge, seen) {
						return true
					}
				}
			}
		}
	}
	return false
}

// subject is what a rule is about.
type subject int

const (
	nothing subject = iota // nothing that comes in by the bridge
	some                   // some of it, or all
	guests                 // what guests send to other networks, and little else
)

// about reads the conditions of a rule.
func (h Host) about(r nft.Rule, bridge string) subject {
	var from, out, other bool
	for _, expr := range r {
		for kind, raw := range expr {
			if kind != "match" {
				continue
			}
			in, isIn := matchesLink(raw, "iif", []string{bridge})
			by, isOut := matchesLink(raw, "oif", h.Uplinks)
			if isIn && !in || isOut && !by {
				return nothing
			}
			from, out, other = from || isIn, out || isOut, other || !isIn && !isOut
		}
	}
	if from || out && !other {
		return guests
	}
	return some
}

// target returns the chain that a jump leads to.
func target(raw json.RawMessage) string {
	var v struct{ Target string }
	_ = json.Unmarshal(raw, &v) // anything else is no chain
	return v.Target
}

// matchesLink reports whether a match is one of the interface that packets come in by ("iif") or go
// out by ("oif"), and holds for one of links.
func matchesLink(raw json.RawMessage, direction string, links []string) (holds, ok bool) {
	var m struct {
		Op   string `json:"op"`
		Left struct {
			Meta struct {
				Key string `json:"key"`
			} `json:"meta"`
		} `json:"left"`
		Right json.RawMessage `json:"right"`
	}
	if json.Unmarshal(raw, &m) != nil || m.Left.Meta.Key != direction+"name" && m.Left.Meta.Key != direction {
		return false, false
	}
	patterns := []json.RawMessage{m.Right}
	var set struct {
		Set []json.RawMessage `json:"set"`
	}
	if json.Unmarshal(m.Right, &set) == nil {
		patterns = set.Set
	}
	named := slices.ContainsFunc(patterns, func(raw json.RawMessage) bool {
		var pattern string
		return json.Unmarshal(raw, &pattern) == nil && slices.ContainsFunc(links, func(link string) bool {
			return matchesName(pattern, link)
		})
	})
	return named == (m.Op != "!="), true
}

// matchesName reports whether a pattern, a name or the beginning of one before a "*", matches name.
func matchesName(pattern, name string) bool {
	if start, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(name, start)
	}
	return pattern == name
}
