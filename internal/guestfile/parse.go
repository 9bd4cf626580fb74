package guestfile

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
	"github.com/spf13/pflag"

	"vmnet/internal/cli/nicflags"
	"vmnet/internal/strictyaml"
	"vmnet/tapmgr/nic"
)

// maxNICs bounds the NICs of a file. PCI has room for less.
const maxNICs = 256

// Keys of a NIC that are no flags of all programs.
const (
	keyState      = "state"
	keyPersistent = "persistent"
)

// Parse parses the content of a guest's file. vm is the guest's name if the file does not say it.
// Errors are of type *strictyaml.Error; file is for them.
func Parse(file, vm string, data []byte) (*Guest, error) {
	d := &decoder{Document: strictyaml.New(file, data), g: &Guest{VM: vm}}
	root, err := d.Root()
	if err != nil {
		return nil, err
	}
	if root == nil {
		return nil, d.Errorf(nil, "the file is empty (write nics: {} for a guest without NICs)")
	}
	if err := d.guest(root); err != nil {
		return nil, err
	}
	return d.g, nil
}

// decoder makes a Guest from a document.
type decoder struct {
	*strictyaml.Document
	g *Guest
}

func (d *decoder) guest(root ast.Node) error {
	var nics ast.Node // read last, since keys may come in any order
	err := d.Mapping(root, "the file",
		strictyaml.Key("vm", func(n ast.Node) (err error) { d.g.VM, err = d.Text(n, "vm"); return err }),
		strictyaml.Key("user", func(n ast.Node) error {
			text, err := d.Text(n, "user")
			if err == nil && (text == "" || len(text) > maxUser) {
				err = d.Errorf(strictyaml.TokenOf(n), "user: %q is not the name of a user", text)
			}
			d.g.User = text
			return err
		}),
		strictyaml.Key("nics", func(n ast.Node) error { nics = n; return nil }),
	)
	if err != nil {
		return err
	}
	if err := nic.ValidVM(d.g.VM); err != nil {
		return d.Errorf(nil, "%v (write vm: NAME)", err)
	}
	if nics == nil {
		return d.Errorf(strictyaml.TokenOf(root), "nics is missing (write nics: {} for a guest without NICs)")
	}
	return d.Entries(nics, "nics", d.nic)
}

func (d *decoder) nic(id string, at *token.Token, node ast.Node) error {
	if err := nic.ValidNIC(id); err != nil {
		return d.Errorf(at, "%v", err)
	}
	if len(d.g.NICs) == maxNICs {
		return d.Errorf(at, "more than %d NICs", maxNICs)
	}
	fs, flags := nicflags.All()
	n := NIC{State: Up}
	persistent := false
	fields := []strictyaml.Field{
		strictyaml.Key(keyState, func(node ast.Node) (err error) { n.State, err = d.state(node); return err }),
		strictyaml.Key(keyPersistent, func(node ast.Node) (err error) {
			persistent, err = d.Flag(node, keyPersistent)
			return err
		}),
	}
	keys := 0
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Name == "nic" { // the key of the entry
			return
		}
		fields = append(fields, strictyaml.Key(f.Name, func(node ast.Node) error {
			keys++
			return d.flag(f, node)
		}))
	})
	if err := d.Mapping(node, id, fields...); err != nil {
		return err
	}
	if n.State != Absent || keys > 0 {
		var err error
		if n.Spec, err = flags.Spec(); err != nil {
			return d.Errorf(at, "%s: %v", id, err)
		}
		n.Spec.LinkDown, n.Spec.Persistent = n.State == Down, persistent
	}
	n.Spec.VM, n.Spec.NIC = d.g.VM, id
	if err := n.validate(keys); err != nil {
		return d.Errorf(at, "%s: %v", id, err)
	}
	if other := d.g.sameMAC(n); other != "" {
		return d.Errorf(at, "%s: %s has the mac %s as well", id, other, n.Spec.MAC)
	}
	d.g.NICs = append(d.g.NICs, n)
	return nil
}

func (n NIC) validate(keys int) error {
	if n.State == Absent && keys == 0 {
		return nil
	}
	return n.Spec.Validate()
}

// sameMAC returns the id of a NIC before n for which the file names the same address.
func (g *Guest) sameMAC(n NIC) string {
	i := slices.IndexFunc(g.NICs, func(other NIC) bool {
		return n.Spec.MAC != nil && bytes.Equal(other.Spec.MAC, n.Spec.MAC)
	})
	if i < 0 {
		return ""
	}
	return g.NICs[i].Spec.NIC
}

func (d *decoder) state(n ast.Node) (State, error) {
	text, err := d.Text(n, keyState)
	if err != nil {
		return "", err
	}
	if s := State(text); slices.Contains([]State{Up, Down, Absent}, s) {
		return s, nil
	}
	return "", d.Errorf(strictyaml.TokenOf(n), "state is %q: want %s, %s or %s", text, Up, Down, Absent)
}

// flag gives a flag the value of the key of its name: true or false, a text, or a list of texts.
func (d *decoder) flag(f *pflag.Flag, n ast.Node) error {
	if f.Value.Type() == "bool" {
		on, err := d.Flag(n, f.Name)
		if err != nil {
			return err
		}
		return f.Value.Set(strconv.FormatBool(on))
	}
	if _, isList := n.(*ast.SequenceNode); !isList {
		return d.take(f, n, func(text string) error { return f.Value.Set(text) })
	}
	var all []string
	err := d.List(n, f.Name, func(item ast.Node) error {
		return d.take(f, item, func(text string) error {
			if nicflags.Repeatable(f) {
				return f.Value.Set(text)
			}
			all = append(all, text)
			return nil
		})
	})
	if err != nil || len(all) == 0 {
		return err
	}
	return d.at(f, n, f.Value.Set(strings.Join(all, ",")))
}

func (d *decoder) take(f *pflag.Flag, n ast.Node, set func(string) error) error {
	text, err := d.Text(n, f.Name)
	if err == nil && text == "" {
		err = d.Errorf(strictyaml.TokenOf(n), "%s is empty", f.Name)
	}
	if err != nil {
		return err
	}
	return d.at(f, n, set(text))
}

// at gives the error of a flag's value its place.
func (d *decoder) at(f *pflag.Flag, n ast.Node, err error) error {
	if err == nil {
		return nil
	}
	return d.Errorf(strictyaml.TokenOf(n), "%s: %v", f.Name, err)
}

// Format returns the content of a file that Parse reads as g.
func (g *Guest) Format() []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "# The NICs of a guest: see vmnet-guests(5). After a change: vmnet apply\nvm: %s\n", scalar(g.VM))
	if g.User != "" {
		fmt.Fprintf(&b, "user: %s\n", scalar(g.User))
	}
	if len(g.NICs) == 0 {
		b.WriteString("nics: {}\n")
		return []byte(b.String())
	}
	b.WriteString("nics:\n")
	for _, n := range g.NICs {
		n.format(&b)
	}
	return []byte(b.String())
}

func (n NIC) format(b *strings.Builder) {
	fmt.Fprintf(b, "  %s:\n", scalar(n.Spec.NIC))
	if n.Unknown {
		b.WriteString("    # It was attached with further options, which cannot be read back: add them here.\n")
	}
	fs, _ := nicflags.All()
	for _, w := range nicflags.Words(n.Spec) {
		f := fs.Lookup(w.Flag)
		switch {
		case f == nil: // the link, which state says
		case f.Value.Type() == "bool":
			fmt.Fprintf(b, "    %s: %s\n", w.Flag, w.Values[0])
		case len(w.Values) == 1:
			fmt.Fprintf(b, "    %s: %s\n", w.Flag, scalar(w.Values[0]))
		default:
			var all []string
			for _, v := range w.Values {
				all = append(all, scalar(v))
			}
			fmt.Fprintf(b, "    %s: [%s]\n", w.Flag, strings.Join(all, ", "))
		}
	}
	if n.Spec.Persistent {
		fmt.Fprintf(b, "    %s: true\n", keyPersistent)
	}
	if n.State != Up {
		fmt.Fprintf(b, "    %s: %s\n", keyState, n.State)
	}
	if n.State == Up && len(nicflags.Words(n.Spec)) == 0 {
		b.WriteString("    {}\n")
	}
}

// scalar returns a text as YAML: plain if it is a word or number in each YAML parser, else quoted.
func scalar(s string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
	words := []string{"null", "true", "false", "yes", "no", "on", "off", "y", "n"}
	if s == "" || s[0] == '-' || strings.Trim(s, plain) != "" || slices.Contains(words, strings.ToLower(s)) {
		return strconv.Quote(s)
	}
	return s
}
