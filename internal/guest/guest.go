// Package guest reaches running guests: by QEMU's monitor, or by libvirt, which has the monitors of
// its guests. A verb finds its guest once ([Finder.Find]), opens it, which takes its lock
// ([Finder.Open]), and passes the [Guest] on.
package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"vmnet/internal/backend"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// A Finder finds guests and opens them. Its methods may be called at the same time.
type Finder struct {
	// Maker works in the network namespace of the guests' NICs.
	Maker *backend.Maker
	// Libvirt is the URI or socket of the libvirt that manages guests. If it is empty, the caller's
	// own libvirt has the caller's guests, and the machine's all others.
	Libvirt string
	// Progress reports what is being waited for.
	Progress func(format string, args ...any)
}

// A Guest is a running guest whose lock this process has: no other vmnet changes its NICs. NICs are
// named by their ids.
type Guest struct {
	*Found
	Plugger
	Unplugger

	// One of these two plugs the guest's NICs, the other is nil. A libvirt guest has a Monitor if
	// its NICs are handed over through libvirt's monitor commands, without libvirt's knowledge.
	Monitor *Monitor
	Domain  *Domain

	close []io.Closer // in this order
}

// A Plugger plugs NICs into a guest.
type Plugger interface {
	// CPUs returns the number of the guest's virtual CPUs.
	CPUs(ctx context.Context) (int, error)
	// Has reports whether the NIC is plugged.
	Has(ctx context.Context, nicID string) (bool, error)
	// Plan decides what the guest is asked for, and completes n.Device and n.Record accordingly. It
	// changes nothing in the guest.
	Plan(ctx context.Context, n *backend.NIC) (Handover, error)
}

// An Unplugger takes NICs away from a guest.
type Unplugger interface {
	// UnplugText describes Unplug.
	UnplugText(nicID string) string
	// Unplug asks the guest to release the NIC, and waits until it has. It calls waiting from time
	// to time.
	Unplug(ctx context.Context, nicID string, waiting func(elapsed time.Duration)) error
	// RequestUnplug asks the guest to release the NIC, and does not wait.
	RequestUnplug(ctx context.Context, nicID string) error
}

// A Handover says how a guest gets a NIC's host interface.
type Handover struct {
	// Opener is the uid of the process that opens the host interface by its name: root (0), or the
	// user whose libvirt it is.
	Opener int
	// Notices are what the caller should know although it is no error.
	Notices []string
	// Steps hand the NIC over. The host's steps have run before.
	Steps []step.Step
}

// Open waits for the guest's lock: its monitor or, for a libvirt guest, vmnet's own lock. via
// says how the NIC is or was handed over; empty is the guest's usual way. Close the Guest before g.
func (f *Finder) Open(ctx context.Context, g *Found, via nic.Via) (*Guest, error) {
	if !g.IsLibvirts() {
		if via != "" {
			return nil, fmt.Errorf("%w: guest %s is not libvirt's, --via does not concern it",
				nic.ErrInvalid, g.target.VM)
		}
		return f.openMonitor(ctx, g)
	}
	d, err := f.openDomain(ctx, g)
	if err != nil {
		return nil, err
	}
	if via == nic.ViaMonitor {
		return d.ByMonitor(ctx)
	}
	return d.guest(), nil
}

// OpenToRead opens the guest only to look at its NICs: it takes no lock of a libvirt guest, and
// nothing can be changed.
func (f *Finder) OpenToRead(ctx context.Context, g *Found, via nic.Via) (*Guest, error) {
	switch via {
	case nic.ViaMonitor:
		return nil, errors.New("libvirt does not let a read-only connection use the monitor")
	case nic.ViaLibvirt:
		if !g.IsLibvirts() {
			return nil, fmt.Errorf("process %d is not libvirt's any more", g.PID())
		}
		d, err := f.dialDomain(ctx, g, true)
		if err != nil {
			return nil, err
		}
		return d.guest(), nil
	}
	return f.openMonitor(ctx, g)
}

// Close gives up the lock.
func (g *Guest) Close() error {
	var errs []error
	for _, c := range g.close {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// Rollback makes the VMM release what it was given of a NIC that is not plugged. libvirt has closed
// already what it could not plug.
func (g *Guest) Rollback(ctx context.Context, r nic.Record) error {
	if g.Monitor == nil {
		return nil
	}
	return g.Monitor.rollback(ctx, r)
}

// RollbackElsewhere is Rollback over the guest's other monitors: each monitor has the names of its
// own file descriptors only.
func (g *Guest) RollbackElsewhere(ctx context.Context, r nic.Record) error {
	if g.Monitor == nil {
		return nil
	}
	return g.Monitor.rollbackElsewhere(ctx, r)
}
