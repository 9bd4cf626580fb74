package bridge

import (
	"errors"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
)

// Host is a network namespace whose bridges can be looked at, and with CAP_NET_ADMIN in it changed.
// It is for programs outside of this module, which know links by their names; methods may be called
// by several goroutines, but not after Close.
type Host struct{ nl *rtnl.Conn }

// Open opens a network namespace: the calling thread's if nameOrPath is empty, else one that
// ip-netns(8) lists by this name or, if there is a slash in it, the one at that path. Close it.
func Open(nameOrPath string) (*Host, error) {
	ns, err := netns.Open(nameOrPath)
	if err != nil {
		return nil, err
	}
	nl, err := rtnl.Open(ns)
	if err != nil {
		ns.Close()
		return nil, err
	}
	ns.Close() // the socket stays in it
	return &Host{nl}, nil
}

// Close closes the host's netlink socket.
func (h *Host) Close() { h.nl.Close() }

// List returns all bridges, as [List] does.
func (h *Host) List() ([]Info, error) { return List(h.nl) }

// Show returns one bridge, as [Show] does.
func (h *Host) Show(name string) (Info, error) { return Show(h.nl, name) }

// Create makes a bridge, as [Create] does.
func (h *Host) Create(cfg Config) error { return Create(h.nl, cfg) }

// Ensure makes a bridge, or one that is there as it should be, as [Ensure] does.
func (h *Host) Ensure(cfg Config) (Ensured, error) { return Ensure(h.nl, cfg) }

// Delete removes a bridge, as [Delete] does.
func (h *Host) Delete(name string, force bool) error { return Delete(h.nl, name, force) }

// AddPort puts a link on a bridge with these settings, as [AddPortWith] does.
func (h *Host) AddPort(bridge, port string, cfg PortConfig) error {
	br, brErr := Get(h.nl, bridge)
	l, err := h.nl.Link(port)
	if err := errors.Join(brErr, err); err != nil {
		return err
	}
	return AddPortWith(h.nl, br, l, cfg)
}

// RemovePort takes a link off its bridge, as [RemovePort] does.
func (h *Host) RemovePort(port string) error {
	l, err := h.nl.Link(port)
	if err != nil {
		return err
	}
	return RemovePort(h.nl, l)
}
