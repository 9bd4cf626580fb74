// Package bridgeconf reads the file that says which bridges QEMU's users may have NICs on,
// as qemu-bridge-helper does (parse_acl_file in QEMU's qemu-bridge-helper.c).
//
// The answers are those of QEMU. Some files that QEMU reads are refused instead, whether main or
// included: those that nest deeper than 8, that have more than 1 MiB or 10000 rules and includes
// in all, lines over 4095 bytes (which QEMU splits) or relative includes, fifos and devices, and
// those that cannot be read though they are there and the caller may.
package bridgeconf

import (
	"fmt"
	"strings"
)

// DefaultPath is where distributions' QEMU has the file.
const DefaultPath = "/etc/qemu/bridge.conf"

// All is the word that stands for any bridge in a rule.
const All = "all"

// Rule is an allow or deny line.
type Rule struct {
	File   string `json:"file"`
	Line   int    `json:"line"` // from 1
	Deny   bool   `json:"deny"`
	Bridge string `json:"bridge"` // All is any
}

// String is "FILE:LINE".
func (r Rule) String() string { return fmt.Sprintf("%s:%d", r.File, r.Line) }

func (r Rule) matches(bridge string) bool { return r.Bridge == All || r.Bridge == bridge }

// ACL is a file and those that it includes, as whoever read it was allowed to.
type ACL struct {
	Path    string  // of the main file
	Rules   []Rule  // in the order in which they were read
	Skipped []error // what QEMU ignores: files, or the rest of files, that were included and could not be read
}

// Decision is whether a bridge may be had.
type Decision struct {
	Allowed bool
	Bridge  string
	Path    string  // of the main file
	Rule    *Rule   // that decided; nil where none is about this bridge
	Skipped []error // as in the ACL
}

// Decide tells whether bridge may be had: if a rule allows it and none denies it, in
// whatever order they are.
func (a *ACL) Decide(bridge string) Decision {
	d := Decision{Bridge: bridge, Path: a.Path, Skipped: a.Skipped}
	for i := range a.Rules {
		r := &a.Rules[i]
		switch {
		case !r.matches(bridge):
		case r.Deny:
			d.Allowed, d.Rule = false, r
			return d
		case d.Rule == nil:
			d.Allowed, d.Rule = true, r
		}
	}
	return d
}

// Err is nil for what is allowed. For a denial it is the reason, the cure, and which
// included files could not be read, since what would allow the bridge may be in one of them.
func (d Decision) Err() error {
	if d.Allowed {
		return nil
	}
	return fmt.Errorf("bridge %q: %s", d.Bridge, strings.Join(append([]string{d.reason()}, d.skipped()...), "; "))
}

func (d Decision) reason() string {
	if d.Rule != nil {
		return fmt.Sprintf("denied by %s: \"deny %s\", which no allow line beats (remove that line)", d.Rule, d.Rule.Bridge)
	}
	if !plain(d.Bridge) {
		return fmt.Sprintf("no line of %s allows it", d.Path)
	}
	return fmt.Sprintf("no line of %s allows it (echo 'allow %s' >> %s)", d.Path, d.Bridge, d.Path)
}

// plain tells whether a name may be offered for the shell, wherever it came from.
func plain(name string) bool {
	other := strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
	return name != "" && len(name) <= maxName && other == ""
}

func (d Decision) skipped() []string {
	var texts []string
	for _, err := range d.Skipped {
		texts = append(texts, "not read: "+err.Error())
	}
	return texts
}
