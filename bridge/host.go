package bridge

import (
	"errors"
	"fmt"

	"vmnet/bridge/brport"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
)

// Host is a network namespace whose bridges are read and, with CAP_NET_ADMIN over it, changed.
// Bridges and ports are known by their names. Several goroutines may call methods at the same time,
// but none may after Close.
type Host struct{ nl *rtnl.Conn }

// Open opens a network namespace: that of the calling thread if nameOrPath is empty, the one of
// that name in ip-netns(8), or, if nameOrPath contains a slash, the one at that path. Close the
// Host.
func Open(nameOrPath string) (*Host, error) {
	ns, err := netns.Open(nameOrPath)
	if err != nil {
		return nil, err
	}
	defer ns.Close() // the socket stays in the namespace
	nl, err := rtnl.Open(ns)
	if err != nil {
		return nil, err
	}
	return &Host{nl}, nil
}

// Close closes the host's netlink socket.
func (h *Host) Close() { h.nl.Close() }

// AddPort makes a link a port of a bridge with the settings cfg, and brings it up. It refuses a
// link that is a port of another bridge, which the kernel would move silently. The port is never up
// without its settings: a link that is up is taken down until it has them. If the kernel refuses
// them, AddPort removes the port again.
func (h *Host) AddPort(bridge, port string, cfg brport.Settings) error {
	br, l, err := h.links(bridge, port)
	if err != nil {
		return err
	}
	return bridges.AddPort(h.nl, br, l, cfg)
}

// SetPort gives a port of a bridge exactly the settings of cfg. While it changes a port that is up,
// no frame passes that both the old and the new settings drop. On a bridge that does not filter
// VLANs, SetPort refuses a cfg with VLANs.
func (h *Host) SetPort(bridge, port string, cfg brport.Settings) error {
	br, l, err := h.links(bridge, port)
	if err != nil {
		return err
	}
	return bridges.SetPort(h.nl, br, l, cfg)
}

// AddSettings adds the settings of cfg to a port that another program has set up, and keeps its
// other settings. It only turns flags on, and sets VLANs only if cfg names some. changed reports
// whether the port lacked any of them.
func (h *Host) AddSettings(bridge, port string, cfg brport.Settings) (changed bool, err error) {
	br, l, err := h.links(bridge, port)
	if err != nil {
		return false, err
	}
	return bridges.AddSettings(h.nl, br, l, cfg)
}

// ReadPort returns the current settings of a port of a bridge. On a bridge that filters VLANs, a
// port that was given none is an access port of the default VLAN. On one that does not filter, the
// result has no VLANs.
func (h *Host) ReadPort(bridge, port string) (brport.Settings, error) {
	br, l, err := h.links(bridge, port)
	if err != nil {
		return brport.Settings{}, err
	}
	return bridges.ReadPort(h.nl, br, l)
}

// RemovePort removes a link from its bridge.
func (h *Host) RemovePort(port string) error {
	l, err := h.link(port)
	if err != nil {
		return err
	}
	return bridges.RemovePort(h.nl, l)
}

// Learned returns the MAC addresses that the FDB of a bridge has behind one of its ports.
func (h *Host) Learned(bridge, port string) ([]brport.Learned, error) {
	br, l, err := h.links(bridge, port)
	if err != nil {
		return nil, err
	}
	learned, err := bridges.LearnedBy(h.nl, br.Index, l.Index)
	return learned[l.Index], err
}

func (h *Host) links(bridge, port string) (br, l *rtnl.Link, err error) {
	br, brErr := bridges.Get(h.nl, bridge)
	l, err = h.link(port)
	return br, l, errors.Join(brErr, err)
}

func (h *Host) link(port string) (*rtnl.Link, error) {
	l, err := h.nl.Link(port)
	if err != nil {
		return nil, fmt.Errorf("port %s: %w", port, err)
	}
	return l, nil
}
