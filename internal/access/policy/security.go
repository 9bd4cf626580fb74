package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/goccy/go-yaml/ast"

	"vmnet/bridge/inbound"
	"vmnet/bridge/portsec"
	"vmnet/internal/strictyaml"
)

func (d *decoder) etherType(n ast.Node) (portsec.EtherType, error) {
	text, err := d.Text(n, "a type of ethertypes")
	if err != nil {
		return 0, err
	}
	t, err := portsec.ParseEtherType(text)
	if err != nil {
		return 0, d.Errorf(strictyaml.TokenOf(n), "ethertypes: %v", err)
	}
	return t, nil
}

// consistent returns an error for port security that a user could escape: without ips, a user
// would name another's address. A network gives each address to one guest only.
func (r *rule) consistent() error {
	_, limited := r.lines["ips"]
	switch {
	case !r.anybody && len(r.users)+len(r.groups) == 0:
		return errors.New("the rule has no users (add users or groups)")
	case len(r.bridges)+len(r.networks)+len(r.lowers)+len(r.uplinks)+len(r.shareMemory) == 0:
		return errors.New("the rule allows nothing (add bridges, networks, lowers, uplinks or share-memory)")
	case r.security.Has(portsec.IP) && !limited && len(r.bridges)+len(r.lowers) > 0:
		return errors.New("port-security: ip compares with the addresses that a user asks for (add ips)")
	case r.shape == shapeRequire && r.maxUp.Bits+r.maxDown.Bits == 0:
		return errors.New("shape: require shapes a rate in bits (add max-rate-up or max-rate-down)")
	case r.security == 0 && len(r.etherTypes) > 0:
		return errors.New("ethertypes pass only what port-security drops (add port-security)")
	}
	return nil
}

// checkSecurity demands the checks of the rule, for NICs of all kinds. More checks are allowed.
func (r *rule) checkSecurity(q *Request) *objection {
	if missing := r.security &^ q.Checks; missing != 0 {
		return &objection{
			"port-security", fmt.Sprintf("port security %s must be asked for", missing),
			fmt.Sprintf("ask with --port-security %s, which QEMU's bridge helper and scripts cannot",
				r.security|q.Checks),
		}
	}
	if r.security == 0 {
		return nil
	}
	for _, t := range q.EtherTypes {
		if !slices.Contains(r.etherTypes, t) {
			var allowed []string
			for _, a := range r.etherTypes {
				allowed = append(allowed, a.String())
			}
			return &objection{
				"ethertypes", "EtherType " + t.String() + notAmong(allowed), fmt.Sprintf("add %s to ethertypes", t),
			}
		}
	}
	return nil
}

func (d *decoder) inbound(n ast.Node) (inbound.Rule, error) {
	text, err := d.Text(n, "a rule of allow-in")
	if err != nil {
		return inbound.Rule{}, err
	}
	r, err := inbound.ParseRule(text)
	if err != nil {
		return r, d.Errorf(strictyaml.TokenOf(n), "allow-in: %v", err)
	}
	return r, nil
}

// checkInbound demands that what comes in is filtered, and that no more is asked for than the rule
// allows. A user may ask for less.
func (r *rule) checkInbound(q *Request) *objection {
	if r.allowIn.IsZero() {
		return nil
	}
	if q.AllowIn.IsZero() {
		var flags []string
		for _, in := range r.allowIn {
			flags = append(flags, "--allow-in "+in.String())
		}
		return &objection{
			"allow-in", "what comes in to the guest must be filtered",
			fmt.Sprintf("ask with %s, or less, which QEMU's bridge helper and scripts cannot",
				strings.Join(flags, " ")),
		}
	}
	for _, asked := range q.AllowIn {
		covers := func(in inbound.Rule) bool { return in.Covers(asked) }
		if !slices.ContainsFunc(r.allowIn, covers) {
			var allowed []string
			for _, in := range r.allowIn {
				allowed = append(allowed, in.String())
			}
			return &objection{
				"allow-in", fmt.Sprintf("what may come in, %s%s", asked, notAmong(allowed)),
				fmt.Sprintf("add %q to allow-in", asked),
			}
		}
	}
	return nil
}
