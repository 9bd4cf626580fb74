// Package guest reaches running guests: by QEMU's monitor, or by libvirt, which has the monitors of
// its guests. A verb finds its guest once ([Finder.Find]), opens it, which takes its lock
// ([Finder.Open]), and passes the [Guest] on.
package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"vmnet/internal/backend"
	"vmnet/internal/kernel/pidfd"
	"vmnet/internal/vmm/qemu"
	"vmnet/qmp"
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
		if via != "" && g.missing == nil {
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

// Found is the guest that a Target means, as [Finder.Find] has found it. Its process is held by a
// pidfd from then on. In two cases the process becomes known only when the guest is opened: if the
// target names no more than a monitor's socket, whose listener is the process, and if libvirt
// manages the guest, since libvirt says which process it is.
type Found struct {
	target  nic.Target
	process qemu.Process // PID 0: not known yet
	hold    *pidfd.Handle
	missing error // why there is no process; Open returns it

	isLibvirts bool
	running    *qemu.Running // nil: /proc has not been read
}

// HasEnded reports whether the process that was found has ended since, or is ending: its monitor
// closes before it is gone.
func (f *Found) HasEnded() bool {
	if f.process.PID == 0 {
		return false
	}
	_, err := qemu.AnyByPID(f.process.PID)
	return errors.Is(err, qemu.ErrNotFound) && !errors.Is(err, pidfd.ErrDoubtful)
}

// Find finds the guest. An error is returned if the target's process cannot be used. That no guest
// has the target's name is an error of the Found: [Found.Missing], and of Open. Close the Found.
func (f *Finder) Find(t nic.Target) (*Found, error) {
	g := &Found{target: t}
	c, err := g.look()
	if err != nil {
		return nil, err
	}
	g.process, g.isLibvirts, g.missing = c.process, c.isLibvirts, c.missing
	if g.process.PID != 0 && !g.isLibvirts && g.missing == nil {
		g.hold, g.missing = g.process.Hold()
	}
	return g, nil
}

// look reads of /proc what it takes to choose the process: all of it only if the target has no more
// than a name.
func (g *Found) look() (choice, error) {
	t := g.target
	switch {
	case t.QMP != "" && t.PID == 0:
		return choice{}, nil // the listener is the process
	case t.QMP != "":
		proc, err := qemu.ByPID(t.PID)
		if errors.Is(err, qemu.ErrNotFound) && !errors.Is(err, pidfd.ErrDoubtful) {
			proc, err = qemu.AnyByPID(t.PID) // its monitor proves it
		}
		return choosePID(t, proc, err), nil
	case t.PID != 0:
		proc, err := qemu.ByPID(t.PID)
		return choosePID(t, proc, nil), err
	}
	running, err := qemu.Look()
	g.running = &running
	return chooseNamed(t.VM, running), err
}

// A choice is which process is the guest's.
type choice struct {
	process    qemu.Process // none if libvirt must say which of several it is
	isLibvirts bool
	missing    error
}

// choosePID decides about the process that the target names by its PID. err is why it could not be
// read.
func choosePID(t nic.Target, proc qemu.Process, err error) choice {
	c := choice{process: proc, isLibvirts: proc.Libvirt && t.QMP == "", missing: err}
	if err == nil && !c.isLibvirts && proc.Name != "" && proc.Name != t.VM {
		c.missing = fmt.Errorf("%w: process %d is guest %q, not %q", nic.ErrOtherGuest, t.PID, proc.Name, t.VM)
	}
	return c
}

// chooseNamed decides which of the running QEMUs is the guest of that name. A process says itself
// that it is libvirt's, which libvirt must confirm. The caller's own guest of that name comes
// first.
func chooseNamed(vm string, running qemu.Running) choice {
	proc, err := running.Find(vm)
	if len(running.OfLibvirt(vm)) > 0 && (err != nil || proc.Libvirt) {
		return choice{isLibvirts: true}
	}
	return choice{process: proc, missing: err}
}

// IsLibvirts reports whether libvirt manages the guest, as its process says.
func (g *Found) IsLibvirts() bool { return g.isLibvirts }

// Missing returns why there is no process; nil if there is one, or if it becomes known later.
func (g *Found) Missing() error { return g.missing }

// PID returns the VMM's process id; 0 if it is not known yet.
func (g *Found) PID() int { return g.process.PID }

// Alive returns an error if the process has ended. Until then its PID has meant no other process.
func (g *Found) Alive() error { return g.hold.Check() }

// Close releases the process.
func (g *Found) Close() error {
	err := g.hold.Close()
	g.hold = nil
	return err
}

// domainOf returns the processes that may be the QEMU of a libvirt domain, and the target.
func (g *Found) domainOf(name, uuid string, runAs int) ([]qemu.Process, error) {
	if g.running == nil {
		running, err := qemu.Look()
		if err != nil {
			return nil, err
		}
		g.running = &running
	}
	return chooseDomain(g.target, g.running.OfDomain(name, uuid, runAs)), nil
}

// chooseDomain leaves those of the processes that the target may mean.
func chooseDomain(t nic.Target, procs []qemu.Process) []qemu.Process {
	if t.PID == 0 {
		return procs
	}
	var named []qemu.Process
	for _, p := range procs {
		if p.PID == t.PID {
			named = append(named, p)
		}
	}
	return named
}

// candidates returns the processes that say that they are the target and libvirt's.
func (g *Found) candidates() []qemu.Process {
	if g.target.PID != 0 {
		return []qemu.Process{g.process}
	}
	return g.running.OfLibvirt(g.target.VM)
}

// checkPeer returns an error unless the peer of a monitor's socket is the guest, and may be trusted
// to be: the kernel's word on the peer (SO_PEERCRED, SO_PEERPIDFD) is a proof, a command line is
// not. process is the peer's pidfd, or nil.
func (g *Found) checkPeer(p qmp.Peer, process *os.File) error {
	if g.hold == nil {
		if err := g.take(p); err != nil {
			return err
		}
	}
	if err := isPeer(g.process, p, process == nil || g.hold.Is(process)); err != nil {
		return err
	}
	return g.hold.Check()
}

// isPeer decides whether a peer is the process. samePidfd is false if their pidfds differ.
func isPeer(proc qemu.Process, p qmp.Peer, samePidfd bool) error {
	switch {
	case p.PID != proc.PID, !samePidfd:
		return fmt.Errorf(
			"%w: process %d listens there, not the guest's process %d (name the guest's own socket with --qmp)",
			fs.ErrPermission, p.PID, proc.PID)
	case p.UID != proc.UID && p.UID != 0: // QEMU listens before it gives up root's ids (-runas)
		return fmt.Errorf("%w: uid %d has made the socket of process %d listen, which is uid %d's",
			fs.ErrPermission, p.UID, proc.PID, proc.UID)
	}
	return nil
}

// take makes the listener the guest's process, if the target names no more than its socket.
func (g *Found) take(p qmp.Peer) error {
	if err := mayTake(p, os.Geteuid()); err != nil {
		return err
	}
	proc, err := qemu.AnyByPID(p.PID)
	if err != nil {
		return err
	}
	if proc.Name != "" && proc.Name != g.target.VM {
		return fmt.Errorf("%w: process %d, which listens there, is guest %q, not %q", nic.ErrOtherGuest, p.PID,
			proc.Name, g.target.VM)
	}
	g.process = proc
	g.hold, err = proc.Hold()
	return err
}

// mayTake returns an error if another user listens on a socket that the caller has named.
func mayTake(p qmp.Peer, caller int) error {
	if p.UID == caller {
		return nil
	}
	return fmt.Errorf("%w: process %d listens there for uid %d (name it with --pid %d if that is the guest you mean)",
		qemu.ErrOtherUser, p.PID, p.UID, p.PID)
}

// MayOpen returns an error if the process that holds a NIC's link is not to be taken for the guest
// of the target, as [qemu.Running.Find] does: anybody can choose a guest's name. holder is 0 if
// no holder is seen.
func MayOpen(t nic.Target, link string, holder int) error {
	if holder == 0 || t.PID != 0 || t.QMP != "" {
		return nil
	}
	proc, err := qemu.ByPID(holder)
	if err != nil { // Find decides
		return nil
	}
	return mayOpen(proc, link, os.Geteuid())
}

func mayOpen(proc qemu.Process, link string, caller int) error {
	if proc.UID == 0 || proc.UID == caller || proc.Libvirt { // libvirt confirms its own
		return nil
	}
	return fmt.Errorf(
		"%w: %s is held by process %d, which uid %d runs (name it with --pid %d if that is the guest you mean)",
		qemu.ErrOtherUser, link, proc.PID, proc.UID, proc.PID)
}
