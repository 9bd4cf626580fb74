package policy

import (
	"path/filepath"
	"slices"
	"strings"

	"github.com/goccy/go-yaml/ast"

	"vmnet/internal/strictyaml"
)

// glob is a pattern for names of interfaces.
func (d *decoder) glob(n ast.Node, what string) (string, error) {
	return d.pattern(n, what, 64, " /:%")
}

// guestGlob is a pattern for names of guests, which may contain spaces.
func (d *decoder) guestGlob(n ast.Node, what string) (string, error) {
	return d.pattern(n, what, 100, "")
}

// ifaceIDGlob is a pattern for ids of ports of Open vSwitch.
func (d *decoder) ifaceIDGlob(n ast.Node, what string) (string, error) {
	return d.pattern(n, what, 64, " /")
}

// socketGlob is a pattern for paths of sockets.
func (d *decoder) socketGlob(n ast.Node, what string) (string, error) {
	g, err := d.pattern(n, what, 107, "")
	if err == nil && !cleanPath(g) {
		err = d.Errorf(strictyaml.TokenOf(n), "%s: %q: want a socket's absolute and clean path (without //, . and ..)",
			what, g)
	}
	return g, err
}

func (d *decoder) pattern(n ast.Node, what string, most int, without string) (string, error) {
	g, err := d.Text(n, what)
	if err == nil && (g == "" || len(g) > most || strings.ContainsAny(g, "\t\r\n[]{}\\"+without)) {
		err = d.Errorf(strictyaml.TokenOf(n),
			"%s: %q is not a name or pattern (only * for any text and ? for any byte are special)", what, g)
	}
	return g, err
}

// match reports whether glob matches all of name. It takes at most len(glob) times len(name) steps.
func match(glob, name string) bool {
	g, n := 0, 0
	star, mark := -1, 0 // the last star, and where in name its match ends
	for n < len(name) {
		switch {
		case g < len(glob) && glob[g] == '*':
			star, mark = g, n
			g++
		case g < len(glob) && (glob[g] == '?' || glob[g] == name[n]):
			g++
			n++
		case star >= 0:
			mark++
			g, n = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(glob[g:], "*") == ""
}

func matchAny(globs []string, name string) bool {
	for _, g := range globs {
		if match(g, name) {
			return true
		}
	}
	return false
}

// matchAnyPath reports whether path is clean and one of the globs matches it; their * and ? match
// no slash. "/run/ovs/../x" is not below /run/ovs.
func matchAnyPath(globs []string, path string) bool {
	elements := strings.Split(path, "/")
	return cleanPath(path) && slices.ContainsFunc(globs, func(glob string) bool {
		return slices.EqualFunc(strings.Split(glob, "/"), elements, match)
	})
}

func cleanPath(path string) bool { return filepath.IsAbs(path) && filepath.Clean(path) == path }
