package policy

import (
	"fmt"
	"os/user"
	"slices"
	"strconv"

	"github.com/goccy/go-yaml/ast"
)

// who is a user or group of a rule.
type who struct {
	name string // as written; empty where id counts
	id   int
	line int
}

func (d *document) who(n ast.Node, what string) (who, error) {
	text, err := d.text(n, what)
	if err != nil {
		return who{}, err
	}
	if text == "" || len(text) > 256 {
		return who{}, d.errorf(tokenOf(n), "%s: %q is no name", what, text)
	}
	// An id is written as programs write one: 010 and 0x10 are names, which nobody has.
	id, err := strconv.ParseUint(text, 10, 32)
	if err == nil && strconv.FormatUint(id, 10) == text {
		return who{id: int(id), line: line(n)}, nil
	}
	return who{name: text, line: line(n)}, nil
}

const anybody = "*"

func (d *document) user(n ast.Node, r *rule) error {
	w, err := d.who(n, "users")
	if w.name == anybody {
		r.anybody = true
		return err
	}
	r.users = append(r.users, w)
	return err
}

func (d *document) group(n ast.Node, r *rule) error {
	w, err := d.who(n, "groups")
	if w.name == anybody {
		return d.errorf(tokenOf(n), `groups: "*": anybody is users: ["*"]`)
	}
	r.groups = append(r.groups, w)
	return err
}

// names looks up names, each one once. -1 is a name that nobody has.
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

// isFor tells whether the rule is for whoever asks: one of its users or in one of its groups.
func (r *rule) isFor(q *Request, n *names) bool {
	return r.anybody ||
		slices.ContainsFunc(r.users, func(w who) bool { return n.user(w) == q.UID }) || // which is not -1
		slices.ContainsFunc(r.groups, func(w who) bool { id := n.group(w); return id >= 0 && slices.Contains(q.GIDs, id) })
}

// Warnings is what is allowed in a file but hardly meant: names that nobody has, and for a
// draft why Load would refuse it. A nil Policy has none.
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
		for _, w := range r.users {
			if n.user(w) < 0 {
				all = append(all, fmt.Sprintf("%s:%d: there is no user %q (add the user, or correct the name)", p.File, w.line, w.name))
			}
		}
		for _, w := range r.groups {
			if n.group(w) < 0 {
				all = append(all, fmt.Sprintf("%s:%d: there is no group %q (add the group, or correct the name)", p.File, w.line, w.name))
			}
		}
	}
	if len(p.rules) == 0 {
		all = append(all, fmt.Sprintf("%s: without rules nobody but root may have a NIC (add a rule)", p.File))
	}
	return all
}
