package policy

import (
	"errors"
	"fmt"
	"slices"

	"github.com/goccy/go-yaml/ast"

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
	case len(r.bridges)+len(r.networks)+len(r.lowers)+len(r.uplinks) == 0:
		return errors.New("the rule allows nothing (add bridges, networks, lowers or uplinks)")
	case r.security.Has(portsec.IP) && !limited && len(r.bridges)+len(r.lowers) > 0:
		return errors.New("port-security: ip compares with the addresses that a user asks for (add ips)")
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
			fmt.Sprintf("ask with --port-security %s: qemu-netup --port-security ... -- QEMU, "+
				"since QEMU's bridge helper and scripts do not know the guest's address", r.security|q.Checks),
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
