// Package bpfguard checks a guest's frames in the kernel, as package portsec (bridge/portsec)
// describes. A BPF program (guard.c) runs as a tc filter with direct action at the clsact qdisc of
// the NIC's device: for the ingress of a tap, for the egress of a macvtap or ipvtap in its own
// netns. Both are the frames that the VMM has written.
//
// Of all ways to filter, this one has the lifetime of the device: the filter goes with the device,
// and its program and maps go with the filter. `nft flush ruleset` does not touch it. The kernel is
// the only place where the configuration and the counters are; Read returns them.
//
// The program needs Linux 5.10. It checks no frames to the guest. Nor can it drop what a packet
// socket reads, which gets a tap's frames before tc does: so an Open vSwitch datapath of type
// netdev reads them.
package bpfguard

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/cilium/ebpf"

	"vmnet/bridge/portsec"
	"vmnet/internal/kernel/clsact"
	"vmnet/internal/kernel/rtnl"
)

// filter is the filter's place at its hook. Filters of others run after it, for frames that pass:
// the program then returns TC_ACT_UNSPEC.
var filter = rtnl.Filter{Priority: 1, Handle: 1, Kind: "bpf", Name: guardProgVmnetGuard}

// hookOf returns where the guest's frames pass.
func hookOf(l *rtnl.Link) rtnl.Hook {
	if l.Kind == "macvtap" || l.Kind == "ipvtap" {
		return rtnl.Egress
	}
	return rtnl.Ingress
}

// Attach checks the frames of the guest behind a link from now on. c is a socket in the link's
// netns. If the link has the filter already, Attach replaces the program: each frame passes the old
// one or the new one, and the counters continue. A configuration that checks nothing detaches.
func Attach(c *rtnl.Conn, l *rtnl.Link, cfg portsec.Config) error {
	if err := attach(c, l, cfg); err != nil {
		return fmt.Errorf("port security of %s: %w", l.Name, err)
	}
	return nil
}

func attach(c *rtnl.Conn, l *rtnl.Link, cfg portsec.Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	if cfg.IsZero() {
		return detach(c, l)
	}
	old, err := find(c, l)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if old != nil {
		defer old.Close()
	}
	p, err := load(cfg, old)
	if err != nil {
		return err
	}
	defer p.Close()
	if err := clsact.Set(c, l, hookOf(l), filter, p.FD(), security.explainFilter); err != nil {
		return errors.Join(err, tidy(c, l))
	}
	return nil
}

// Probe returns an error if this process cannot load the program for cfg. It leaves nothing loaded.
func Probe(cfg portsec.Config) error {
	err := cfg.Validate()
	if err != nil || cfg.IsZero() {
		return err
	}
	p, err := load(cfg, nil)
	if err != nil {
		return err
	}
	return p.Close()
}

// Detach removes the filter, and the clsact qdisc if it has no other filters. It is no error if the
// link has no filter or does not exist.
func Detach(c *rtnl.Conn, l *rtnl.Link) error {
	if err := detach(c, l); err != nil {
		return fmt.Errorf("remove the port security of %s: %w", l.Name, err)
	}
	return nil
}

func detach(c *rtnl.Conn, l *rtnl.Link) error {
	f, err := clsact.Find(c, l.Index, hookOf(l), is(filter))
	if err != nil || f == nil {
		return err
	}
	if err := clsact.Delete(c, l.Index, hookOf(l), *f); err != nil {
		return err
	}
	return tidy(c, l)
}

// tidy removes a clsact qdisc without filters.
func tidy(c *rtnl.Conn, l *rtnl.Link) error {
	if err := c.TidyClsact(l.Index); err != nil {
		return fmt.Errorf("delete the clsact qdisc: %w", err)
	}
	return nil
}

// State is what the kernel checks at a link.
type State struct {
	// Config is what the program compares with. Its IPs include the link-local address.
	Config portsec.Config

	// Current reports whether the program is the one of this build.
	Current bool

	// Drops counts the dropped frames by reason, since the first Attach.
	Drops [portsec.Reasons]uint64
}

// Is reports whether the state is that of cfg, by the program of this build.
func (s State) Is(cfg portsec.Config) bool { return s.Current && s.Config.Equal(cfg) }

// Read reads what the kernel checks at a link. If that is nothing, the error matches fs.ErrNotExist
// with errors.Is. It needs CAP_SYS_ADMIN.
func Read(c *rtnl.Conn, l *rtnl.Link) (State, error) {
	s, err := read(c, l)
	if err != nil {
		return State{}, fmt.Errorf("read the port security of %s: %w", l.Name, err)
	}
	return s, nil
}

func read(c *rtnl.Conn, l *rtnl.Link) (s State, err error) {
	p, err := find(c, l)
	if err != nil {
		return State{}, err
	}
	defer p.Close()
	var settings guardSettings
	if err := errors.Join(p.settings(&settings), p.count(dropsMap, s.Drops[:])); err != nil {
		return State{}, err
	}
	s.Config, s.Current = settings.config(), p.current
	return s, nil
}

// find opens the program of a link's filter.
func find(c *rtnl.Conn, l *rtnl.Link) (*loaded, error) {
	spec, err := object()
	if err != nil {
		return nil, err
	}
	return security.find(c, l.Index, hookOf(l), is(filter), spec, guardProgVmnetGuard, configMap, dropsMap,
		guardMapCaptures)
}

// find opens the program of the filter of a hook for which is returns true, as open does.
func (f feature) find(c *rtnl.Conn, link int, hook rtnl.Hook, is func(rtnl.Filter) bool, spec *ebpf.CollectionSpec,
	program string, maps ...string,
) (*loaded, error) {
	found, err := clsact.Find(c, link, hook, is)
	if err != nil {
		return nil, err
	}
	if found == nil {
		return nil, fmt.Errorf("no filter: %w", fs.ErrNotExist)
	}
	return f.open(found.Program, spec, program, maps...)
}
