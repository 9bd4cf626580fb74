package guest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"vmnet/internal/kernel/pidfd"
	"vmnet/internal/vmm/qemu"
	"vmnet/qmp"
	"vmnet/tapmgr/nic"
)

// Found is the guest that a Target means, as [Finder.Find] has found it. Its process is held by a
// pidfd from then on. Of two guests it becomes known only when they are opened: if the target names
// no more than a monitor's socket, its listener is the process; libvirt says which process is its
// guest.
type Found struct {
	target  nic.Target
	process qemu.Process // PID 0: not known yet
	hold    *pidfd.Handle
	missing error // why there is no process; Open returns it

	isLibvirts bool
	running    *qemu.Running // nil: /proc has not been read
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
