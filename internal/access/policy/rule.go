package policy

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/goccy/go-yaml/ast"

	"vmnet/bridge/brport"
	"vmnet/bridge/inbound"
	"vmnet/bridge/portrate"
	"vmnet/bridge/portsec"
	"vmnet/internal/strictyaml"
)

// rule says what some users may have. A nil list is one that the file does not have.
type rule struct {
	line          int
	lines         map[string]int // of its keys, for messages
	anybody       bool
	users, groups []who
	bridges       []string // globs
	networks      []string // globs
	lowers        []string // globs
	uplinks       []string // globs
	shareMemory   []who
	modes         []string
	ips           []netip.Prefix // masked
	guests        []string       // globs
	vlans         []brport.VLANRange
	port          []string // names of settings
	require       []string // names of requirements
	security      portsec.Checks
	allowIn       inbound.Rules
	maxUp         portrate.Limit
	maxDown       portrate.Limit
	shape         string   // of shapes
	ifaceIDs      []string // globs
	ovsdb         []string // globs of sockets
	etherTypes    []portsec.EtherType
	macs          []macRange
	nics          int // 0: no limit
	queues        int
}

// settings are the words for a port's settings besides VLANs. The first one only restricts the
// guest, and is always allowed.
var settings = []struct {
	word string
	on   func(brport.Settings) bool
}{
	{isolated, func(c brport.Settings) bool { return c.Isolated }},
	{"hairpin", func(c brport.Settings) bool { return c.Hairpin }},
	{"no-learning", func(c brport.Settings) bool { return c.NoLearning }},
	{"no-flood", func(c brport.Settings) bool { return c.NoFlood }},
	{"forward", func(c brport.Settings) bool { return c.Forward != 0 }},
}

// The requirements that a rule can make of a port.
const (
	isolated = "isolated"
	vlan     = "vlan"
)

func (d *decoder) rule(n ast.Node) error {
	r := rule{line: line(n), lines: map[string]int{}, shape: shapes[0], queues: defaultQueues}
	// one returns a field for a value, and of for a list, of which take parses each item.
	one := func(key string, take func(ast.Node) error) strictyaml.Field {
		return strictyaml.Key(key, func(n ast.Node) error { r.lines[key] = line(n); return take(n) })
	}
	of := func(key string, take func(ast.Node) error) strictyaml.Field {
		return one(key, func(n ast.Node) error { return d.List(n, key, take) })
	}
	number := func(key string, to *int, most int) strictyaml.Field {
		return one(key, func(n ast.Node) (err error) { *to, err = d.Number(n, key, 1, most); return err })
	}
	rate := func(key string, to *portrate.Limit) strictyaml.Field {
		return one(key, func(n ast.Node) (err error) { *to, err = d.rate(n, key); return err })
	}
	globs := func(key string, to *[]string, glob func(ast.Node, string) (string, error)) strictyaml.Field {
		return of(key, func(n ast.Node) error {
			g, err := glob(n, key)
			*to = append(*to, g)
			return err
		})
	}
	words := func(key string, to *[]string, from ...string) strictyaml.Field {
		return of(key, func(n ast.Node) error {
			word, err := d.oneOf(n, key, from)
			*to = append(*to, word)
			return err
		})
	}
	err := d.Mapping(n,
		"a rule",
		of("users", func(n ast.Node) error { return d.user(n, &r) }),
		of("groups", func(n ast.Node) error { return d.group(n, &r) }),
		globs("bridges", &r.bridges, d.glob),
		globs("networks", &r.networks, d.glob),
		globs("lowers", &r.lowers, d.glob),
		globs("uplinks", &r.uplinks, d.glob),
		of(shareMemory, func(n ast.Node) error { return d.sharer(n, &r) }),
		words("modes", &r.modes, allModes()...),
		of("ips", func(n ast.Node) error {
			p, err := d.ipRange(n)
			r.ips = append(r.ips, p)
			return err
		}),
		globs("guests", &r.guests, d.guestGlob),
		one("vlans", func(n ast.Node) (err error) { r.vlans, err = d.vlans(n, "vlans"); return err }),
		words("port", &r.port, settingWords()...),
		words("require", &r.require, isolated, vlan),
		one("port-security", func(n ast.Node) (err error) {
			r.security, err = joined(d, n, "port-security", portsec.ParseChecks)
			return err
		}),
		of("ethertypes", func(n ast.Node) error {
			t, err := d.etherType(n)
			r.etherTypes = append(r.etherTypes, t)
			return err
		}),
		of("allow-in", func(n ast.Node) error {
			in, err := d.inbound(n)
			r.allowIn = append(r.allowIn, in)
			return err
		}),
		rate("max-rate-up", &r.maxUp),
		rate("max-rate-down", &r.maxDown),
		one("shape", func(n ast.Node) (err error) { r.shape, err = d.oneOf(n, "shape", shapes); return err }),
		globs("iface-ids", &r.ifaceIDs, d.ifaceIDGlob),
		globs("ovsdb", &r.ovsdb, d.socketGlob),
		of("macs", func(n ast.Node) error {
			m, err := d.macRange(n)
			r.macs = append(r.macs, m)
			return err
		}),
		number("nics", &r.nics, 1<<20),
		number("queues", &r.queues, maxQueues),
	)
	if err != nil {
		return err
	}
	if err := r.consistent(); err != nil {
		return d.Errorf(strictyaml.TokenOf(n), "%v", err)
	}
	d.p.rules = append(d.p.rules, r)
	return nil
}

// oneOf parses one of some words.
func (d *decoder) oneOf(n ast.Node, key string, from []string) (string, error) {
	word, err := d.Text(n, key)
	if err == nil && !slices.Contains(from, word) {
		err = d.Errorf(strictyaml.TokenOf(n), "%s: %q: want %s", key, word, strings.Join(from, ", "))
	}
	return word, err
}

func settingWords() []string {
	var words []string
	for _, s := range settings {
		words = append(words, s.word)
	}
	return words
}

// line returns the line where a node begins.
func line(n ast.Node) int {
	if t := strictyaml.TokenOf(n); t != nil && t.Position != nil {
		return t.Position.Line
	}
	return 1
}
