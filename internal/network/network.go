// Package network makes the networks that guests are in: a bridge with addresses of the host, the
// rules by which its guests reach the world, and the server that gives them addresses and names. A
// network is a file (package config); the kernel is the only database of what there is of it.
package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/network/config"
	"vmnet/internal/network/integrate"
	"vmnet/internal/network/managers"
	"vmnet/internal/network/server"
	"vmnet/step"
)

// Manager makes, compares and deletes the networks of one network namespace. Close it.
type Manager struct {
	NS      *netns.NS
	Dir     config.Dir
	State   string // the directory of the lease files
	Resolv  string // the host's resolv.conf; empty for server.ResolvConf
	Service Service
	// Elsewhere makes the networks in place of the Manager; nil for networks of the namespace NS.
	Elsewhere Elsewhere
	// Firewall runs programs of other firewalls; nil is integrate.In(NS).
	Firewall integrate.Run
	// Run runs steps; nil is step.Run.
	Run step.Runner
	// DryRun says that Run changes nothing, so that nothing is locked.
	DryRun bool
	// Managers is where NetworkManager and systemd-networkd read what they keep off; nil where they
	// do not work.
	Managers *managers.Host
	// Confirm is how long a move of the host's addresses may be confirmed, before it is taken back;
	// 0 if it need not be. Guard starts the process that takes back, which runs AwaitConfirm, and
	// returns once that process is ready.
	Confirm time.Duration
	Guard   func(ctx context.Context, network string) error

	nl       *rtnl.Conn
	creating bool // by Create
}

// A Service starts and ends servers, as processes other than this one.
type Service interface {
	// Start starts a network's server, or replaces one that is out of date, and has the network
	// made at boot, if the Service can. It returns once guests are answered. For a network without
	// a server it ends one that runs.
	Start(ctx context.Context, m *Manager, n *config.Network) error
	// Stop ends a network's server, and keeps the network from being made at boot.
	Stop(ctx context.Context, m *Manager, n *config.Network) error
	// AtBoot reports whether the network is made at boot, or the Service cannot do that.
	AtBoot(ctx context.Context, n *config.Network) bool
	// Text returns what Start does, for people.
	Text(n *config.Network) string
}

// Open fills in what a Manager needs of the kernel.
func (m *Manager) Open() (err error) {
	m.nl, err = rtnl.Open(m.NS)
	return err
}

// Close closes what Open has opened.
func (m *Manager) Close() { m.nl.Close() }

// lock takes the networks' lock, unless nothing is changed.
func (m *Manager) lock(ctx context.Context) (unlock func() error, err error) {
	if m.DryRun {
		return func() error { return nil }, nil
	}
	return m.Dir.Lock(ctx)
}

// ErrForeign is the error for a bridge or another device that has a network's name and is something
// else's.
var ErrForeign = errors.New("it is not a network's")

// bridge reads the bridge of a network; nil if there is none. One that is somebody else's is an
// error.
func (m *Manager) bridge(name string) (*rtnl.Link, record, error) {
	l, err := m.nl.Link(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, record{}, nil
	}
	if err != nil {
		return nil, record{}, err
	}
	r, ok := recordOf(l)
	if !ok && m.adopts(l) {
		r, ok = record{network: name}, true
	}
	if !ok || r.network != name {
		return nil, record{}, fmt.Errorf("network %s: there is a device of that name, and %w "+
			"(ip link show %[1]s; choose another name)", name, ErrForeign)
	}
	return l, r, nil
}

// there is bridge for what needs one.
func (m *Manager) there(name string) (*rtnl.Link, record, error) {
	l, r, err := m.bridge(name)
	if err == nil && l == nil {
		err = fmt.Errorf("network %s: its bridge has gone (vmnet network apply %[1]s)", name)
	}
	return l, r, err
}

// remember writes what a network's bridge remembers of the host.
func (m *Manager) remember(name string, change func(*memory)) error {
	return m.record(name, func(r *record) { change(&r.memory) })
}

// record writes the alias of a network's bridge.
func (m *Manager) record(name string, change func(*record)) error {
	br, r, err := m.there(name)
	if err != nil {
		return err
	}
	change(&r)
	if err := m.nl.Set(br.Index, rtnl.Alias(r.String())); err != nil {
		return fmt.Errorf("set the alias of %s: %w", name, bridges.Explain(err))
	}
	return nil
}

// bridges returns the records of all networks' bridges, by the indices of their links.
func (m *Manager) bridges() (map[int]record, error) {
	links, err := m.nl.Links("bridge", 0)
	if err != nil {
		return nil, err
	}
	found := map[int]record{}
	for _, l := range links {
		if r, ok := recordOf(l); ok && r.network == l.Name {
			found[l.Index] = r
		}
	}
	return found, nil
}

// ServerConfig returns what the server of a network runs with.
func (m *Manager) ServerConfig(n *config.Network) server.Config {
	return server.Config{NS: m.NS, Network: n, State: m.State, Resolv: m.Resolv}
}
