// Package backend makes the host's half of a NIC, its backend in QEMU's terms, and removes it: a
// tap on a bridge or a switch, a socket to a switch, a macvtap or ipvtap on its parent device. It
// knows nothing of the VMM that gets the files: a running one gets them through its monitor or
// through libvirt (package tapmgr), one that is about to start inherits them (Launch), and a
// privileged helper passes them to its caller (Serve).
//
// A NIC is planned first, as data, and then made by a list of steps. The steps add each file that
// they open for the VMM to the NIC's qmp.Files, from which the steps of package qmp pass it on.
package backend

import (
	"context"

	"vmnet/internal/inventory"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/step"
)

// A Maker works in one network namespace. Its methods may be called concurrently.
type Maker struct {
	*inventory.Host

	// Run runs a list of steps; nil is step.Run alone.
	Run func(ctx context.Context, steps []step.Step) error
	// Owner is the uid for which a privileged helper works, as the aliases of its links say; 0 for
	// root.
	Owner int
	// HelperPath, if not empty, is the path of the privileged program that makes taps if the
	// caller may not: see Serve.
	HelperPath string
}

// Open returns a Maker for ns, which stays the caller's and must stay open. Close the Maker.
func Open(ns *netns.NS) (*Maker, error) {
	nl, err := rtnl.Open(ns)
	if err != nil {
		return nil, err
	}
	return &Maker{Host: &inventory.Host{NS: ns, NL: nl}}, nil
}

// In runs f with a Maker for a namespace that netns.Open knows by that name or path; empty for the
// current one.
func In(nameOrPath string, f func(*Maker) error) error {
	ns, err := netns.Open(nameOrPath)
	if err != nil {
		return err
	}
	defer ns.Close()
	m, err := Open(ns)
	if err != nil {
		return err
	}
	defer m.Close()
	return f(m)
}

// Close closes the netlink socket.
func (m *Maker) Close() { m.NL.Close() }

func (m *Maker) run(ctx context.Context, steps []step.Step) error {
	if m.Run != nil {
		return m.Run(ctx, steps)
	}
	return step.Run(ctx, steps, nil)
}
