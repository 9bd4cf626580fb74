package nsport

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"vmnet/internal/backend"
	"vmnet/internal/filelock"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/peers"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/network/config"
	"vmnet/internal/rundir"
	"vmnet/step"
)

// Manager attaches namespaces to the networks of one host, a network namespace itself. Close it.
type Manager struct {
	// Run runs steps; nil is step.Run.
	Run step.Runner
	// DryRun says that Run changes nothing, so that nothing is locked.
	DryRun bool
	// Networks has the files of networks; empty for config.DefaultDir.
	Networks config.Dir
	// LockDir has the lock; empty for the user's own directory for sockets.
	LockDir string

	ns    *netns.NS
	maker *backend.Maker
}

// Open returns a Manager for the namespace that netns.Open knows by that name or path; empty for
// the current one.
func Open(nameOrPath string) (*Manager, error) {
	ns, err := netns.Open(nameOrPath)
	if err != nil {
		return nil, err
	}
	maker, err := backend.Open(ns)
	if err != nil {
		_ = ns.Close()
		return nil, err
	}
	return &Manager{ns: ns, maker: maker}, nil
}

// Close closes what Open has opened.
func (m *Manager) Close() {
	m.maker.Close()
	_ = m.ns.Close()
}

func (m *Manager) nl() *rtnl.Conn { return m.maker.NL }

func (m *Manager) networks() config.Dir { return cmp.Or(m.Networks, config.DefaultDir) }

// lockFile is in the user's own directory for sockets.
const lockFile = "netns.lock"

// lock takes the lock of all attachments, unless nothing is changed. An unfinished one that is seen
// under the lock was interrupted.
func (m *Manager) lock(ctx context.Context) (unlock func() error, err error) {
	if m.DryRun {
		return func() error { return nil }, nil
	}
	dir := m.LockDir
	if uid := os.Geteuid(); dir == "" {
		dir, err = rundir.Make(rundir.Of(uid, os.Getenv("XDG_RUNTIME_DIR")), uid)
	}
	if err != nil {
		return nil, fmt.Errorf("lock the attachments: %w", err)
	}
	unlock, err = filelock.Take(ctx, filepath.Join(dir, lockFile), "another vmnet netns is changing one")
	if err != nil {
		return nil, fmt.Errorf("lock the attachments: %w", err)
	}
	return unlock, nil
}

// attachment is what there is of one.
type attachment struct {
	Record
	host  *rtnl.Link // a veth pair's end here
	end   *rtnl.Link // the end in the namespace; nil if it may not be read
	space *peers.Space
	// claimed says that the alias is one that the users of another user namespace can write. It
	// decides nothing outside the namespace that the caller has named.
	claimed bool
}

// attachments lists those of the View's namespace, by id.
func attachments(v *peers.View) (all []attachment, err error) {
	for _, l := range v.Links() {
		r, ok := ParseRecord(l.Alias)
		if !ok || r.Type != Veth {
			continue
		}
		if p, ok := v.PairOf(l); ok {
			all = append(all, attachment{Record: r, host: l, end: p.Peer, space: p.Space})
		}
	}
	children, err := v.Children()
	if err != nil {
		return nil, err
	}
	for _, c := range children {
		r, ok := ParseRecord(c.Alias)
		if !ok || r.Type != c.Kind || c.Space.Own {
			continue
		}
		r.Source = c.Parent.Name
		all = append(all, attachment{Record: r, end: c.Link, space: c.Space, claimed: c.Space.Foreign})
	}
	slices.SortStableFunc(all, func(a, b attachment) int { return strings.Compare(a.ID, b.ID) })
	return all, nil
}

// isIn reports whether the end is in that namespace, which look was called with.
func (a *attachment) isIn(t *target) bool { return t != nil && a.space.Inode == t.inode }

// look reads what there is around the Manager's namespace, also in t, which may be nil.
func (m *Manager) look(ctx context.Context, t *target) (*peers.View, []attachment, error) {
	var open []*netns.NS
	if t != nil {
		open = append(open, t.ns)
	}
	v, err := peers.Look(ctx, m.ns, m.nl(), open...)
	if err != nil {
		return nil, nil, err
	}
	all, err := attachments(v)
	return v, all, err
}
