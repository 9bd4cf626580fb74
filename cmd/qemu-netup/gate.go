package main

import (
	"errors"
	"io/fs"
	"math"
	"slices"

	"vmnet/internal/bridgeconf"
	"vmnet/internal/policy"
	"vmnet/internal/privilege"
	"vmnet/tapmgr"
)

// Where the files are; a distribution's build may have the linker say otherwise.
var (
	aclPath    = bridgeconf.DefaultPath
	policyPath = policy.DefaultPath
)

// gate decides what the caller may have: bridge.conf and policy.yaml must both allow it. Both are
// read with the caller's rights, so that file modes choose whom a file is for.
type gate struct {
	caller privilege.Caller
	policy *policy.Policy // nil where there is no policy.yaml
	m      *tapmgr.Manager
	asked  []policy.Request // so far
	// countLater leaves it to still alone to count the user's NICs, for which all processes are looked at.
	countLater bool
}

func (a *app) openGate(m *tapmgr.Manager) (*gate, error) {
	g := &gate{caller: a.p.Caller, m: m}
	var err error
	g.policy, err = policy.Load(policyPath)
	if errors.Is(err, fs.ErrNotExist) {
		g.policy, err = nil, nil
	}
	return g, err
}

// allow tells by an error what the caller may not have of all that it asks for at once.
func (g *gate) allow(always bool, requests ...policy.Request) error {
	if g.caller.Root() && !always {
		return nil
	}
	more := len(requests)
	requests = g.byName(requests)
	if err := g.acl(requests); err != nil {
		return err
	}
	if g.caller.Root() {
		return nil
	}
	for _, r := range requests {
		r.UID, r.GIDs = g.caller.UID, append([]int{g.caller.GID}, g.caller.Groups...)
		g.asked = append(g.asked, r)
	}
	return g.within(more)
}

// byName adds what is asked for by an altname once more by its name: rules are about either, and
// none may be got round by the other.
func (g *gate) byName(requests []policy.Request) []policy.Request {
	all := slices.Clone(requests)
	for _, r := range requests {
		asked := r
		for _, name := range []*string{&r.Bridge, &r.Lower} {
			if *name == "" {
				continue
			}
			if real, err := g.m.LinkName(*name); err == nil { // else whoever makes the NIC tells
				*name = real
			}
		}
		if asked.Bridge != r.Bridge || asked.Lower != r.Lower {
			all = append(all, r)
		}
	}
	return all
}

func (g *gate) acl(requests []policy.Request) error {
	var acl *bridgeconf.ACL
	for _, r := range requests {
		if r.Bridge == "" {
			continue
		}
		if acl == nil {
			var err error
			if acl, err = bridgeconf.Read(aclPath); err != nil {
				return err
			}
		}
		if err := acl.Decide(r.Bridge).Err(); err != nil {
			return err
		}
	}
	return nil
}

// within asks the policy, with more NICs to come than there are. They are counted only if their
// number matters.
func (g *gate) within(more int) error {
	if len(g.asked) == 0 || g.decide(math.MaxInt) == nil {
		return nil
	}
	if g.countLater && more > 0 {
		return g.decide(more)
	}
	owned, err := g.m.Owned(g.caller.UID)
	if err != nil {
		return err
	}
	return g.decide(owned + more)
}

// decide asks about everything, if the user then had that many NICs.
func (g *gate) decide(nics int) error {
	for _, r := range g.asked {
		r.NICs = nics
		if err := g.policy.Decide(r).Err(); err != nil {
			return err
		}
	}
	return nil
}

// still asks again now that the devices are there and counted: several may have been asked for
// at the same time, each within what is allowed and all together not.
func (g *gate) still() error { return g.within(0) }
