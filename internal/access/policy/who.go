package policy

import (
	"fmt"
	"os/user"
	"slices"
	"strconv"

	"github.com/goccy/go-yaml/ast"

	"vmnet/internal/strictyaml"
)

// who is a user or group of a rule.
type who struct {
	name string // as written; empty if id is set
	id   int
	line int
}

func (d *decoder) who(n ast.Node, what string) (who, error) {
	text, err := d.Text(n, what)
	if err != nil {
		return who{}, err
	}
	if text == "" || len(text) > 256 {
		return who{}, d.Errorf(strictyaml.TokenOf(n), "%s: %q is not a name", what, text)
	}
	// An id is decimal, as programs print one: 010 and 0x10 are names, which no user has.
	id, err := strconv.ParseUint(text, 10, 32)
	if err == nil && strconv.FormatUint(id, 10) == text {
		return who{id: int(id), line: line(n)}, nil
	}
	return who{name: text, line: line(n)}, nil
}

const anybody = "*"

func (d *decoder) user(n ast.Node, r *rule) error {
	w, err := d.who(n, "users")
	if w.name == anybody {
		r.anybody = true
		return err
	}
	r.users = append(r.users, w)
	return err
}

func (d *decoder) group(n ast.Node, r *rule) error {
	w, err := d.who(n, "groups")
	if w.name == anybody {
		return d.Errorf(strictyaml.TokenOf(n), `groups: "*": write users: ["*"] for everybody`)
	}
	r.groups = append(r.groups, w)
	return err
}

// names caches the lookup of names. -1 marks a name that does not exist.
type names struct{ users, groups map[string]int }

func newNames() *names { return &names{map[string]int{}, map[string]int{}} }

func (n *names) user(w who) int {
	return lookUp(n.users, w, func(name string) (string, error) {
		u, err := user.Lookup(name)
		if err != nil {
			return "", err
		}
		return u.Uid, nil
	})
}

func (n *names) group(w who) int {
	return lookUp(n.groups, w, func(name string) (string, error) {
		g, err := user.LookupGroup(name)
		if err != nil {
			return "", err
		}
		return g.Gid, nil
	})
}

func lookUp(known map[string]int, w who, ask func(string) (string, error)) int {
	if w.name == "" {
		return w.id
	}
	if id, ok := known[w.name]; ok {
		return id
	}
	id := -1
	if text, err := ask(w.name); err == nil {
		if n, err := strconv.ParseUint(text, 10, 32); err == nil {
			id = int(n)
		}
	}
	known[w.name] = id
	return id
}

// isFor reports whether the rule applies to the user: as one of its users or by one of its groups.
func (r *rule) isFor(q *Request, n *names) bool {
	return r.anybody ||
		slices.ContainsFunc(r.users, func(w who) bool { return n.user(w) == q.UID }) || // which is not -1
		slices.ContainsFunc(r.groups, func(w who) bool {
			id := n.group(w)
			return id >= 0 && slices.Contains(q.GIDs, id)
		})
}

// Warnings returns what a file allows but hardly means: names that do not exist, and for a draft
// the reason why Load would refuse it. A nil Policy has no warnings.
func (p *Policy) Warnings() []string {
	if p == nil {
		return nil
	}
	var all []string
	if p.draft != nil {
		all = append(all, p.draft.Error())
	}
	n := newNames()
	for _, r := range p.rules {
		for _, w := range slices.Concat(r.users, r.shareMemory) {
			if n.user(w) < 0 {
				all = append(all, fmt.Sprintf("%s:%d: there is no user %q (add the user, or correct the name)",
					p.File, w.line, w.name))
			}
		}
		for _, w := range r.groups {
			if n.group(w) < 0 {
				all = append(all, fmt.Sprintf("%s:%d: there is no group %q (add the group, or correct the name)",
					p.File, w.line, w.name))
			}
		}
	}
	if len(p.rules) == 0 {
		all = append(all, fmt.Sprintf("%s: without rules only root may have a NIC (add a rule)", p.File))
	}
	return all
}
