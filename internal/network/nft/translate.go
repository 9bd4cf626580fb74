package nft

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"vmnet/internal/kernel/netns"
)

// Translate replaces matches of iptables in the rules of r by those of nftables. Of such a match,
// libnftables-json(5) has only the name (XT STATEMENT); the listing as text has its content, as far
// as nft can translate it. What it cannot stays as it is.
func Translate(ctx context.Context, ns *netns.NS, r *Ruleset) error {
	texts := map[TableID]map[string][]string{}
	for _, c := range r.Chains {
		if !slices.ContainsFunc(c.Rules, func(rule Rule) bool { return rule.xt() != "" }) {
			continue
		}
		if texts[c.Table] == nil {
			text, err := ListTable(ctx, ns, c.Table.Family, c.Table.Name)
			if err != nil {
				return err
			}
			texts[c.Table] = rulesOf(text)
		}
		c.translate(texts[c.Table][c.Name])
	}
	return nil
}

// xt returns the name of the rule's only match of iptables; empty for none or several.
func (r Rule) xt() (name string) {
	for _, expr := range r {
		var xt struct{ Type, Name string }
		if json.Unmarshal(expr["xt"], &xt) != nil || xt.Type != "match" {
			continue
		}
		if name != "" {
			return ""
		}
		name = xt.Name
	}
	return name
}

// rulesOf returns the lines of each chain's rules in a listing of a table as text.
func rulesOf(table string) map[string][]string {
	chains, in := map[string][]string{}, ""
	for line := range strings.Lines(table) {
		line = strings.TrimSpace(line)
		name, isChain := strings.CutPrefix(line, "chain ")
		switch {
		case isChain:
			in, _, _ = strings.Cut(name, " ")
			chains[in] = nil
		case line == "}":
			in = ""
		case in != "" && line != "" && !strings.HasPrefix(line, "type "):
			chains[in] = append(chains[in], line)
		}
	}
	return chains
}

// xtMatches are what nft prints of matches, by their names, with what they are in JSON.
var xtMatches = map[string]struct {
	text *regexp.Regexp
	left string
}{
	"conntrack": {regexp.MustCompile(`\bct state (!=? )?(\S+)`), `{"ct": {"key": "state"}}`},
	"state":     {regexp.MustCompile(`\bct state (!=? )?(\S+)`), `{"ct": {"key": "state"}}`},
	"icmp":      {regexp.MustCompile(`\bicmp type (!=? )?(\S+)`), `{"payload": {"protocol": "icmp", "field": "type"}}`},
	"icmp6": {
		regexp.MustCompile(`\bicmpv6 type (!=? )?(\S+)`), `{"payload": {"protocol": "icmpv6", "field": "type"}}`,
	},
	"addrtype": {regexp.MustCompile(`\bfib daddr type (!=? )?(\S+)`), `{"fib": {"result": "type", "flags": ["daddr"]}}`},
}

// others are parts of the same matches that would be lost.
var others = regexp.MustCompile(
	`\b(ct (status|original|reply|expiration|direction|protocol)|icmp(v6)? code|fib saddr)\b`)

func (c *Chain) translate(lines []string) {
	if len(lines) != len(c.Rules) {
		return // it has been changed since
	}
	for i, rule := range c.Rules {
		m, known := xtMatches[rule.xt()]
		if !known || others.MatchString(lines[i]) {
			continue
		}
		found := m.text.FindAllStringSubmatch(lines[i], -1)
		if len(found) != 1 {
			continue
		}
		op := "=="
		if found[0][1] != "" {
			op = "!="
		}
		right, err := json.Marshal(strings.Split(found[0][2], ","))
		if err != nil {
			continue
		}
		c.Rules[i] = slices.Clone(rule)
		for j, expr := range rule {
			var xt struct{ Type string }
			if json.Unmarshal(expr["xt"], &xt) == nil && xt.Type == "match" {
				match := fmt.Sprintf(`{"op": %q, "left": %s, "right": %s}`, op, m.left, right)
				c.Rules[i][j] = map[string]json.RawMessage{"match": json.RawMessage(match)}
			}
		}
	}
}
