package firewall

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"vmnet/internal/network/nft"
)

// maxJumps bounds how deep chains call each other (NFT_JUMP_STACK_SIZE of the kernel).
const maxJumps = 16

// A Passed is a base chain that a packet does not, or may not, pass.
type Passed struct {
	Obstacle
	Sure bool // it drops the packet; otherwise its rules look at what is not known
}

// Trace returns the base chains at a hook that drop the packet, or may do so. The family is
// "bridge", "netdev", or that of the packet's protocol, whose packets pass the chains of inet too.
func (h Host) Trace(hook, family string, p Packet) (found []Passed) {
	for _, c := range h.Ruleset.Chains {
		here := c.Table.Family == family || c.Table.Family == "inet" && (family == "ip" || family == "ip6")
		if c.Hook != hook || !here || family == "netdev" && !slices.Contains(c.Devices, p.In) {
			continue
		}
		end := h.follow(c, &p, 0)
		if end.through && c.Policy == "drop" {
			end.drop = true
		}
		if !end.drop {
			continue
		}
		o := h.owner(c)
		passed := Passed{Obstacle: of(c, o), Sure: !end.accept && (!end.through || c.Policy == "drop")}
		passed.Cure = cureOf(c, o, &p)
		found = append(found, passed)
	}
	return found
}

// cureOf returns how a base chain lets the packet pass.
func cureOf(c *nft.Chain, o owner, p *Packet) string {
	list := "nft -a list chain " + strings.Join([]string{c.Table.Family, c.Table.Name, c.Name}, " ")
	switch {
	case c.Table.Family == "bridge" || c.Table.Family == "netdev":
		return list + " shows the rule; nft delete rule removes it by its handle"
	case c.Hook == "forward":
		return o.forward(passage{link: p.In}, c)
	case c.Hook == "input" && strings.HasPrefix(o.name, anyTable):
		return fmt.Sprintf("nft insert rule %s %s %s iifname %s accept", c.Table.Family, c.Table.Name, c.Name, p.In)
	case c.Hook == "input":
		return o.input(p.In)
	}
	return list + " shows its rules"
}

// Translates reports whether a chain gives the packet, on its way out, another source address. sure
// is false if a rule that may do so looks at what is not known.
func (h Host) Translates(p Packet) (translates, sure bool) {
	for _, c := range h.Ruleset.Chains {
		if c.Hook != "postrouting" || c.Table.Family != p.Protocol && c.Table.Family != "inet" {
			continue
		}
		if end := h.follow(c, &p, 0); end.translated {
			return true, !end.through
		}
	}
	return false, true
}

// ends is how a packet may leave a chain.
type ends struct{ accept, drop, through, translated bool }

func (e *ends) add(other ends) {
	e.accept, e.drop = e.accept || other.accept, e.drop || other.drop
	e.translated = e.translated || other.translated
}

// follow returns how a packet may leave a chain.
func (h Host) follow(c *nft.Chain, p *Packet, depth int) (e ends) {
	if c == nil || depth > maxJumps {
		return ends{through: true}
	}
	for _, r := range c.Rules {
		holds, verdict, value := p.asksFor(r)
		if holds == no {
			continue
		}
		one := h.outcome(c, verdict, value, p, depth)
		e.add(one.ends)
		if one.returns {
			e.through = true
		}
		if holds == yes && !one.through {
			return e
		}
	}
	e.through = true
	return e
}

// outcome is what one rule does with a packet that it matches. through means that the next rule
// follows, returns that the chain which called this one goes on.
type outcome struct {
	ends
	returns bool
}

func (h Host) outcome(c *nft.Chain, verdict string, value json.RawMessage, p *Packet, depth int) (o outcome) {
	switch verdict {
	case "accept", "dnat", "redirect":
		o.accept = true
	case "masquerade", "snat":
		o.accept, o.translated = true, true
	case "drop", "reject":
		o.drop = true
	case "queue":
		o.accept, o.drop = true, true
	case "return":
		o.returns = true
	case "jump":
		o.ends = h.follow(h.Ruleset.Chain(c.Table, target(value)), p, depth+1)
	case "goto":
		o.ends = h.follow(h.Ruleset.Chain(c.Table, target(value)), p, depth+1)
		o.returns, o.through = o.through, false
	case "vmap":
		return h.mapped(c, value, p, depth)
	default: // "continue", or no verdict
		o.through = true
	}
	return o
}

// mapped is the outcome of a map from values to verdicts.
func (h Host) mapped(c *nft.Chain, raw json.RawMessage, p *Packet, depth int) (o outcome) {
	var m struct {
		Key  json.RawMessage
		Data struct{ Set [][2]json.RawMessage }
	}
	value, known := "", maybe
	if json.Unmarshal(raw, &m) == nil {
		value, known = p.field(m.Key)
	}
	o.through = true
	if known == no {
		return o
	}
	for _, pair := range m.Data.Set {
		equal := maybe
		if known == yes {
			equal = p.equals(value, pair[0])
		}
		var verdict map[string]json.RawMessage
		if equal == no || json.Unmarshal(pair[1], &verdict) != nil {
			continue
		}
		for kind, to := range verdict {
			one := h.outcome(c, kind, to, p, depth)
			o.add(one.ends)
			o.returns = o.returns || one.returns
			if equal == yes {
				o.through = one.through
				return o
			}
		}
	}
	return o
}
