// Package gate decides which NICs the caller of a privileged helper may have: bridge.conf and
// policy.yaml must both allow a NIC.
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

// Files are the paths of the files to read. Only root may choose them.
type Files struct {
	ACL    string // in the format of QEMU's bridge.conf
	Policy string // policy.yaml; it need not exist
}

// Host answers the questions about the machine that a decision depends on.
type Host interface {
	LinkName(nameOrAltname string) (string, error) // the interface name
	Owned(uid int) (int, error)                    // how many NICs a user has
}

// Gate holds the caller's requests so far. Both files are read with the privileges of the process,
// which should be the caller's: so a file's mode decides for which users it is read.
type Gate struct {
	// CountLater leaves the counting of the user's NICs, which looks at all processes, to Still.
	CountLater bool

	caller  privilege.Caller
	aclPath string
	policy  *policy.Policy // nil if there is no policy.yaml
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

// Policy returns the policy that was read, for its profiles.
func (g *Gate) Policy() *policy.Policy { return g.policy }

// Always and ForUsers say whether bridge.conf restricts root as well, as with QEMU's own helper.
const (
	Always   = true
	ForUsers = false
)

// Allow returns an error if the caller may not have all of the requests at once.
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

// byName repeats each request for an altname with the interface's name: a rule may use either, and
// neither may be a way around the other.
func (g *Gate) byName(requests []policy.Request) []policy.Request {
	all := slices.Clone(requests)
	for _, r := range requests {
		asked := r
		for _, name := range []*string{&r.Bridge, &r.Lower, &r.Routed} {
			if *name == "" || r.Network != "" { // an altname is no network's name
				continue
			}
			if real, err := g.host.LinkName(*name); err == nil { // otherwise making the NIC reports the error
				*name = real
			}
		}
		if asked.Bridge != r.Bridge || asked.Lower != r.Lower || asked.Routed != r.Routed {
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
			if acl, err = bridgeconf.ReadRoots(g.aclPath); err != nil {
				return err
			}
		}
		if err := acl.Decide(r.Bridge).Err(); err != nil {
			return err
		}
	}
	return nil
}

// within asks the policy as if the user had that many more NICs. The NICs are counted only if their
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

// decide asks about all requests as if the user then had that many NICs.
func (g *Gate) decide(nics int) error {
	for _, r := range g.asked {
		r.NICs = nics
		if err := g.policy.Decide(r).Err(); err != nil {
			return err
		}
	}
	return nil
}

// Still decides once more when the devices exist and are counted: several requests may have been
// made at the same time, each within the limit but not all of them together.
func (g *Gate) Still() error { return g.within(0) }
