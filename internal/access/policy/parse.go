package policy

import (
	"fmt"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"

	"vmnet/bridge/brport"
	"vmnet/internal/strictyaml"
)

// Parse parses a file's content; name is for the errors, which are of type *strictyaml.Error.
func Parse(name string, data []byte) (*Policy, error) {
	d := &decoder{Document: strictyaml.New(name, data), p: &Policy{File: name, profiles: map[string]Profile{}}}
	root, err := d.Root()
	if err != nil {
		return nil, err
	}
	if root == nil {
		return d.p, nil
	}
	err = d.Mapping(root,
		"the file",
		strictyaml.Key("rules", func(n ast.Node) error { return d.List(n, "rules", d.rule) }),
		strictyaml.Key("profiles", func(n ast.Node) error { return d.Entries(n, "profiles", d.profile) }),
		strictyaml.Key("scripts", func(n ast.Node) error { return d.List(n, "scripts", d.script) }),
	)
	if err == nil {
		err = d.checkScripts()
	}
	if err != nil {
		return nil, err
	}
	return d.p, nil
}

// decoder makes a Policy from a document.
type decoder struct {
	*strictyaml.Document
	p    *Policy
	uses []*token.Token // of profiles in scripts
}

func (d *decoder) profile(name string, at *token.Token, n ast.Node) error {
	if name == "" || len(name) > 64 || strings.ContainsAny(name, " \t\r\n") {
		return d.Errorf(at, "profile name %q: want 1 to 64 bytes without spaces", name)
	}
	var p Profile
	flag := func(key string, to *bool) strictyaml.Field {
		return strictyaml.Key(key, func(n ast.Node) (err error) { *to, err = d.Flag(n, key); return err })
	}
	number := func(key string, to *int, most int) strictyaml.Field {
		return strictyaml.Key(key, func(n ast.Node) (err error) { *to, err = d.Number(n, key, 1, most); return err })
	}
	place := func(key string, to *string) strictyaml.Field {
		return strictyaml.Key(key, func(n ast.Node) (err error) { *to, err = d.bridgeName(n, key); return err })
	}
	err := d.Mapping(n,
		"a profile",
		place("bridge", &p.Bridge),
		place("network", &p.Network),
		strictyaml.Key("ovsdb", func(n ast.Node) (err error) { p.OVSDB, err = d.socket(n, "ovsdb"); return err }),
		number("vlan", &p.Port.VLAN, 4094),
		strictyaml.Key("trunk", func(n ast.Node) (err error) { p.Port.Trunk, err = d.vlans(n, "trunk"); return err }),
		number("native", &p.Port.Native, 4094),
		flag("isolated", &p.Port.Isolated),
		flag("hairpin", &p.Port.Hairpin),
		flag("no-learning", &p.Port.NoLearning),
		flag("no-flood", &p.Port.NoFlood),
		strictyaml.Key("forward", func(n ast.Node) (err error) {
			p.Port.Forward, err = d.protocols(n, "forward")
			return err
		}),
		number("queues", &p.Queues, maxQueues),
	)
	if err != nil {
		return err
	}
	if p.OVSDB != "" && p.Network != "" {
		return d.Errorf(at, "profile %s: ovsdb and network: no network is on a bridge of Open vSwitch", name)
	}
	if p.Bridge != "" && p.Network != "" {
		return d.Errorf(at, "profile %s: bridge and network: a NIC is on only one of them", name)
	}
	if err := p.Port.Validate(); err != nil {
		return d.Errorf(at, "profile %s: %v", name, err)
	}
	d.p.profiles[name] = p
	return nil
}

// bridgeName parses the name of a bridge, or of a network, whose bridge has that name.
func (d *decoder) bridgeName(n ast.Node, what string) (string, error) {
	name, err := d.Text(n, what)
	if err == nil && !brport.ValidName(name) {
		err = d.Errorf(strictyaml.TokenOf(n),
			"%s name %q: want 1 to 15 bytes without spaces, '/', ':' or '%%'", what, name)
	}
	return name, err
}

// socket parses the path of a database's socket, which is no pattern.
func (d *decoder) socket(n ast.Node, what string) (string, error) {
	path, err := d.socketGlob(n, what)
	if err == nil && strings.ContainsAny(path, "*?") {
		err = d.Errorf(strictyaml.TokenOf(n), "%s: %q: want the path of one socket, without * and ?", what, path)
	}
	return path, err
}

func (d *decoder) script(n ast.Node) error {
	var s script
	var use *token.Token
	err := d.Mapping(n,
		"a script",
		strictyaml.Key("interface", func(n ast.Node) (err error) { s.glob, err = d.glob(n, "interface"); return err }),
		strictyaml.Key("profile", func(n ast.Node) (err error) {
			use = strictyaml.TokenOf(n)
			s.profile, err = d.Text(n, "profile")
			return err
		}),
	)
	if err == nil && (s.glob == "" || use == nil) {
		err = d.Errorf(strictyaml.TokenOf(n), "a script needs both interface and profile")
	}
	d.p.scripts = append(d.p.scripts, s)
	d.uses = append(d.uses, use)
	return err
}

// checkScripts runs last, since profiles may come after the scripts that name them.
func (d *decoder) checkScripts() error {
	for i, s := range d.p.scripts {
		if _, ok := d.p.profiles[s.profile]; !ok {
			return d.Errorf(d.uses[i], "there is no profile %q (the profiles are %s)",
				s.profile, listed(d.p.Profiles()))
		}
	}
	return nil
}

// vlans parses a list such as [10, 20-29], or a text as --trunk takes it.
func (d *decoder) vlans(n ast.Node, what string) ([]brport.VLANRange, error) {
	return joined(d, n, what, brport.ParseVLANs)
}

// protocols parses a list such as [lldp, lacp], or a text as --forward takes it.
func (d *decoder) protocols(n ast.Node, what string) (brport.Protocols, error) {
	return joined(d, n, what, brport.ParseProtocols)
}

// joined parses one text, or a list of texts joined with commas.
func joined[T any](d *decoder, n ast.Node, what string, parse func(string) (T, error)) (T, error) {
	var items []string
	var none T
	add := func(n ast.Node) error {
		item, err := d.Text(n, what)
		items = append(items, item)
		return err
	}
	var err error
	if _, ok := n.(*ast.SequenceNode); ok {
		err = d.List(n, what, add)
	} else {
		err = add(n)
	}
	if err != nil || len(items) == 0 {
		return none, err
	}
	value, err := parse(strings.Join(items, ","))
	if err != nil {
		return none, d.Errorf(strictyaml.TokenOf(n), "%s: %v", what, err)
	}
	return value, nil
}

// listed joins names for a message.
func listed(names []string) string {
	const most = 20
	switch {
	case len(names) == 0:
		return "none"
	case len(names) > most:
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}
