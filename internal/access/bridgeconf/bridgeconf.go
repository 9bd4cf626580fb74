// Package bridgeconf reads bridge.conf, which says on which bridges QEMU's users may have NICs, as
// qemu-bridge-helper does (parse_acl_file in QEMU's qemu-bridge-helper.c).
//
// The decisions are those of QEMU. Some files that QEMU reads are refused instead, whether main or
// included: those that nest deeper than 8, those with more than 1 MiB or 10000 rules and includes
// in all, lines over 4095 bytes (which QEMU splits), relative includes, FIFOs and devices, and
// files that exist and that the caller may read, but that cannot be read now.
package bridgeconf

import (
	"fmt"
	"strings"
)

// DefaultPath is the file's path in the distributions' QEMU packages.
const DefaultPath = "/etc/qemu/bridge.conf"

// All is the word for any bridge in a rule.
const All = "all"

// Rule is an allow or deny line.
type Rule struct {
	File   string `json:"file"`
	Line   int    `json:"line"` // from 1
	Deny   bool   `json:"deny"`
	Bridge string `json:"bridge"` // All: any bridge
}

// String is "FILE:LINE".
func (r Rule) String() string { return fmt.Sprintf("%s:%d", r.File, r.Line) }

func (r Rule) matches(bridge string) bool { return r.Bridge == All || r.Bridge == bridge }

// ACL is a file and the files that it includes, as far as the reader was allowed to read them.
type ACL struct {
	Path    string  // of the main file
	Rules   []Rule  // in the order in which they were read
	Skipped []error // included files that could not be read, or not to their end; QEMU ignores them
}

// Decision says whether a bridge is allowed.
type Decision struct {
	Allowed bool
	Bridge  string
	Path    string  // of the main file
	Rule    *Rule   // the deciding rule; nil if none names this bridge
	Skipped []error // as in the ACL
}

// Decide reports whether bridge is allowed: at least one rule allows it and none denies it. The
// order of the rules does not matter.
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

// Err returns nil if the bridge is allowed. Otherwise the error gives the reason, the cure and the
// included files that could not be read, since one of them may allow the bridge.
func (d Decision) Err() error {
	if d.Allowed {
		return nil
	}
	return fmt.Errorf("bridge %q: %s", d.Bridge, strings.Join(append([]string{d.reason()}, d.skipped()...), "; "))
}

func (d Decision) reason() string {
	if d.Rule != nil {
		return fmt.Sprintf("denied by %s: \"deny %s\", which no allow line beats (remove that line)",
			d.Rule, d.Rule.Bridge)
	}
	if !plain(d.Bridge) {
		return fmt.Sprintf("no line of %s allows it", d.Path)
	}
	return fmt.Sprintf("no line of %s allows it (echo 'allow %s' >> %s)", d.Path, d.Bridge, d.Path)
}

// plain reports whether a name, whatever its source, may be shown as an argument of a shell
// command.
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
