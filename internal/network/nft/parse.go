package nft

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
)

// Ruleset is what nft lists of a namespace.
type Ruleset struct {
	Chains []*Chain
	tables map[TableID][]any
}

// TableID names a table.
type TableID struct{ Family, Name string }

// Chain is a chain of a table. It is a base chain if it has a hook.
type Chain struct {
	Table  TableID
	Name   string
	Hook   string // "input", "forward", ...; empty for a chain that others jump to
	Policy string // "accept" or "drop", of a base chain
	Rules  []Rule

	Devices []string // of a base chain of family netdev
}

// Rule is the list of a rule's expressions, each an object with one key in libnftables-json(5).
type Rule []map[string]json.RawMessage

// object is the part of what libnftables-json(5) tells of tables, chains and rules that is read.
type object struct {
	Family string `json:"family"`
	Table  string `json:"table"`
	Name   string `json:"name"`
	Chain  string `json:"chain"`
	Hook   string `json:"hook"`
	Policy string `json:"policy"`
	Expr   Rule   `json:"expr"`

	Dev json.RawMessage `json:"dev"` // one or several
}

// Parse parses what nft -j list ruleset prints. Objects of kinds that are unknown here are part of
// their tables only.
func Parse(data []byte) (*Ruleset, error) {
	var listing struct {
		Objects []map[string]json.RawMessage `json:"nftables"`
	}
	if err := json.Unmarshal(data, &listing); err != nil {
		return nil, fmt.Errorf("nft -j list ruleset: %w", err)
	}
	r := &Ruleset{tables: map[TableID][]any{}}
	chains := map[TableID]map[string]*Chain{}
	for _, o := range listing.Objects {
		for kind, raw := range o {
			if kind == "metainfo" {
				continue
			}
			if err := r.add(kind, raw, chains); err != nil {
				return nil, fmt.Errorf("nft -j list ruleset: %s: %w", kind, err)
			}
		}
	}
	return r, nil
}

func (r *Ruleset) add(kind string, raw json.RawMessage, chains map[TableID]map[string]*Chain) error {
	var o object
	if err := json.Unmarshal(raw, &o); err != nil {
		return err
	}
	id := TableID{o.Family, o.Table}
	switch kind {
	case "table":
		id.Name = o.Name
	case "chain":
		c := &Chain{Table: id, Name: o.Name, Hook: o.Hook, Policy: o.Policy, Devices: words(o.Dev)}
		if chains[id] == nil {
			chains[id] = map[string]*Chain{}
		}
		chains[id][o.Name] = c
		r.Chains = append(r.Chains, c)
	case "rule":
		if c := chains[id][o.Chain]; c != nil {
			c.Rules = append(c.Rules, o.Expr)
		}
	}
	var content map[string]any
	if err := json.Unmarshal(raw, &content); err != nil {
		return err
	}
	delete(content, "handle") // which the kernel counts up
	r.tables[id] = append(r.tables[id], map[string]any{kind: content})
	return nil
}

// hookedAt finds the devices of a base chain in a listing as text.
var hookedAt = regexp.MustCompile(`chain (\S+) \{\s+type \S+ hook \S+ devices? (?:= \{([^}]*)\}|(\S+)) priority`)

// readDevices fills in the devices of chains of family netdev, which nft before 1.0.7 leaves out of
// its JSON. list returns a table as text.
func (r *Ruleset) readDevices(list func(TableID) (string, error)) error {
	texts := map[TableID]string{}
	for _, c := range r.Chains {
		if c.Table.Family != "netdev" || c.Hook == "" || len(c.Devices) > 0 {
			continue
		}
		if _, read := texts[c.Table]; !read {
			text, err := list(c.Table)
			if err != nil {
				return err
			}
			texts[c.Table] = text
		}
		for _, m := range hookedAt.FindAllStringSubmatch(texts[c.Table], -1) {
			if m[1] == c.Name {
				c.Devices = strings.Fields(strings.NewReplacer(",", " ", `"`, "").Replace(m[2] + m[3]))
			}
		}
	}
	return nil
}

// words returns the strings of a string or of an array of them.
func words(raw json.RawMessage) (all []string) {
	var one string
	if json.Unmarshal(raw, &one) == nil && one != "" {
		return []string{one}
	}
	_ = json.Unmarshal(raw, &all) // anything else names none
	return all
}

// Tables returns the names of all tables, of whichever family.
func (r *Ruleset) Tables() (names []string) {
	for id := range r.tables {
		names = append(names, id.Name)
	}
	return names
}

// Table returns all that a table has, for comparisons; nil if there is none.
func (r *Ruleset) Table(id TableID) []any { return r.tables[id] }

// Chain returns a chain of a table, or nil.
func (r *Ruleset) Chain(id TableID, name string) *Chain {
	for _, c := range r.Chains {
		if c.Table == id && c.Name == name {
			return c
		}
	}
	return nil
}
