// Package gate decides what NICs the caller of a privileged helper may have: bridge.conf and
// policy.yaml must both allow it.
package gate

import (
	"errors"
	"io/fs"
	"math"
	"slices"

	"vmnet/internal/access/bridgeconf"
	"vmnet/internal/access/policy"
	"vmnet/internal/access/privilege"
)

// Files are the paths of what is read; it is for root to say where they are.
type Files struct {
	ACL    string // as QEMU's bridge.conf
	Policy string // policy.yaml; it need not be there
}

// Host answers what the decisions need to know of the machine.
type Host interface {
	LinkName(nameOrAltname string) (string, error) // the interface name
	Owned(uid int) (int, error)                    // how many NICs a user has
}

// Gate is what the caller has asked for so far. Both files are read with the rights of the
// process, which should be the caller's: so file modes choose whom a file is for.
type Gate struct {
	// CountLater leaves it to Still alone to count the user's NICs, for which all processes are looked at.
	CountLater bool

	caller  privilege.Caller
	aclPath string
	policy  *policy.Policy // nil where there is no policy.yaml
	host    Host
	asked   []policy.Request
}

// Open reads the policy.
func Open(f Files, caller privilege.Caller, host Host) (*Gate, error) {
	g := &Gate{caller: caller, aclPath: f.ACL, host: host}
	var err error
	g.policy, err = policy.Load(f.Policy)
	if errors.Is(err, fs.ErrNotExist) {
		g.policy, err = nil, nil
	}
	return g, err
}

// Policy is what was read, for the profiles in it.
func (g *Gate) Policy() *policy.Policy { return g.policy }

// Always and ForUsers tell whether bridge.conf binds root as well, as it does with QEMU's own helper.
const (
	Always   = true
	ForUsers = false
)

// Allow tells by an error what the caller may not have of all that it asks for at once.
func (g *Gate) Allow(always bool, requests ...policy.Request) error {
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
func (g *Gate) byName(requests []policy.Request) []policy.Request {
	all := slices.Clone(requests)
	for _, r := range requests {
		asked := r
		for _, name := range []*string{&r.Bridge, &r.Lower} {
			if *name == "" {
				continue
			}
			if real, err := g.host.LinkName(*name); err == nil { // else whoever makes the NIC tells
				*name = real
			}
		}
		if asked.Bridge != r.Bridge || asked.Lower != r.Lower {
			all = append(all, r)
		}
	}
	return all
}

func (g *Gate) acl(requests []policy.Request) error {
	var acl *bridgeconf.ACL
	for _, r := range requests {
		if r.Bridge == "" {
			continue
		}
		if acl == nil {
			var err error
			if acl, err = bridgeconf.Read(g.aclPath); err != nil {
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
func (g *Gate) within(more int) error {
	if len(g.asked) == 0 || g.decide(math.MaxInt) == nil {
		return nil
	}
	if g.CountLater && more > 0 {
		return g.decide(more)
	}
	owned, err := g.host.Owned(g.caller.UID)
	if err != nil {
		return err
	}
	return g.decide(owned + more)
}

// decide asks about everything, if the user then had that many NICs.
func (g *Gate) decide(nics int) error {
	for _, r := range g.asked {
		r.NICs = nics
		if err := g.policy.Decide(r).Err(); err != nil {
			return err
		}
	}
	return nil
}

// Still asks again now that the devices are there and counted: several may have been asked for
// at the same time, each within what is allowed and all together not.
func (g *Gate) Still() error { return g.within(0) }
