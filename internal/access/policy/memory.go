package policy

import (
	"fmt"
	"os/user"
	"slices"
	"strconv"

	"github.com/goccy/go-yaml/ast"

	"vmnet/internal/strictyaml"
)

// shareMemory is the key for the users whose switches may have a guest's memory.
const shareMemory = "share-memory"

// A Sharing is a guest that would share its memory with a userspace switch (vhost-user).
type Sharing struct {
	UID   int   // of the guest's process
	GIDs  []int // groups of that user
	Owner int   // of the switch
}

// MayShare reports whether the switch may have the guest's memory: it is root's or of the guest's
// own user, or a rule for that user says so. Root's guests need a rule that names root.
func (p *Policy) MayShare(q Sharing) Verdict {
	switch {
	case q.UID < 0 || q.Owner < 0:
		text := fmt.Sprintf("uid %d, switch of uid %d: want no negative numbers", q.UID, q.Owner)
		return Verdict{Reasons: []Reason{{Text: text}}}
	case q.Owner == 0:
		return Verdict{Allowed: true, By: "the privilege of root, whose switch it is"}
	case q.Owner == q.UID:
		return Verdict{Allowed: true, By: "their user, who has both"}
	case p == nil:
		return Verdict{Reasons: []Reason{{
			File: DefaultPath, Cure: "see policy.yaml(5), share-memory; or use --via tap",
			Text: "it does not exist",
		}}, Example: "rules:\n  - {users: [\"*\"], bridges: [\"*\"]}\n  " + q.rule()}
	}
	ids := newNames()
	for i := range p.rules {
		r := &p.rules[i]
		named := *r
		if q.UID == 0 {
			named.anybody, named.groups = false, nil
		}
		if !named.isFor(&Request{UID: q.UID, GIDs: q.GIDs}, ids) {
			continue
		}
		if slices.ContainsFunc(r.shareMemory, func(w who) bool { return ids.user(w) == q.Owner }) {
			line := r.lines[shareMemory]
			return Verdict{Allowed: true, By: fmt.Sprintf("%s:%d", p.File, line), Line: line}
		}
	}
	return Verdict{Reasons: []Reason{{
		File: p.File, Text: fmt.Sprintf("no rule for uid %d has %s: [%s]", q.UID, shareMemory, userName(q.Owner)),
		Cure: "add " + q.rule() + "; or use --via tap",
	}}}
}

// rule returns a rule that allows the sharing, as a line of the file.
func (q Sharing) rule() string {
	return fmt.Sprintf("- {users: [%s], %s: [%s]}", userName(q.UID), shareMemory, userName(q.Owner))
}

// userName returns a user's name as a rule names it, or the id if there is none.
func userName(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return scalar(u.Username)
	}
	return strconv.Itoa(uid)
}

func (d *decoder) sharer(n ast.Node, r *rule) error {
	w, err := d.who(n, shareMemory)
	if w.name == anybody {
		return d.Errorf(strictyaml.TokenOf(n), `%s: "*": name the users whose switches may read that memory`,
			shareMemory)
	}
	r.shareMemory = append(r.shareMemory, w)
	return err
}
