package tapmgr

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"vmnet/internal/netns"
	"vmnet/internal/pidfd"
	"vmnet/internal/qemu"
	"vmnet/internal/rtnl"
	"vmnet/internal/step"
	"vmnet/qmp"
)

// A Manager works on the taps and bridges of one network namespace. Its methods
// may be called at the same time, and by several processes.
type Manager struct {
	// Run runs a list of steps; nil is step.Run alone. It is where steps are
	// printed, timed and, in tests, broken.
	Run func(ctx context.Context, steps []step.Step) error
	// Progress, if not nil, is told what is being waited for.
	Progress func(text string)
	// Owner is the uid for which a privileged helper works, as the aliases of
	// its links say; 0 where nobody but root is concerned.
	Owner int
	// HelperPath, if not empty, is the path of the privileged program that makes taps where
	// the caller may not: see Serve. What else needs a right is then not done.
	HelperPath string
	// Libvirt is the URI or socket of the libvirt that manages guests; empty: the caller's own for
	// the caller's guests, else the machine's.
	Libvirt string
	// Declarations are what --persistent needs of a domain's metadata; the zero value stores nothing.
	Declarations Declarations

	// LookInto, if not nil, runs f with the right to look into other users' processes, which a privileged
	// helper has at no other time: it counts what a user has, and sees whom a new NIC would disturb.
	LookInto func(f func() error) error

	// Switches, if not nil, lists the control sockets of the userspace switches that are asked for guests' NICs, as
	// control.Running does; nil asks none, as a privileged helper must: a switch is anybody's.
	Switches func() ([]string, error)
	// Notice, if not nil, is told of what could not be seen, such as a switch that does not answer.
	Notice func(text string)

	ns      *netns.NS
	nl      *rtnl.Conn
	silence silence
	speech  sync.Mutex // held while Progress or Notice is called
}

// New returns a Manager for ns, which stays the caller's and must stay open.
// Close the Manager.
func New(ns *netns.NS) (*Manager, error) {
	nl, err := rtnl.Open(ns)
	if err != nil {
		return nil, err
	}
	return &Manager{ns: ns, nl: nl}, nil
}

// In runs f with a Manager for a namespace that netns.Open knows by that name or path; empty
// for the current one.
func In(nameOrPath string, f func(*Manager) error) error {
	ns, err := netns.Open(nameOrPath)
	if err != nil {
		return err
	}
	defer ns.Close()
	m, err := New(ns)
	if err != nil {
		return err
	}
	defer m.Close()
	return f(m)
}

// Close closes the netlink socket.
func (m *Manager) Close() { m.nl.Close() }

func (m *Manager) run(ctx context.Context, steps []step.Step) error {
	if m.Run != nil {
		return m.Run(ctx, steps)
	}
	return step.Run(ctx, steps, nil)
}

func (m *Manager) lookInto(f func() error) error {
	if m.LookInto != nil {
		return m.LookInto(f)
	}
	return f()
}

func (m *Manager) progress(format string, args ...any) {
	m.speech.Lock()
	defer m.speech.Unlock()
	if m.Progress != nil {
		m.Progress(fmt.Sprintf(format, args...))
	}
}

func (m *Manager) notice(format string, args ...any) {
	m.speech.Lock()
	defer m.speech.Unlock()
	if m.Notice != nil {
		m.Notice(fmt.Sprintf(format, args...))
	}
}

// locate finds the guest's process and its monitor's socket. With only a socket
// named, the process stays unknown until its listener tells.
func locate(t Target) (proc qemu.Process, path string, err error) {
	switch {
	case t.PID != 0:
		if proc, err = qemu.ByPID(t.PID); err != nil {
			return proc, "", err
		}
		if proc.Name != "" && proc.Name != t.VM {
			return proc, "", fmt.Errorf("%w: process %d is guest %q, not %q", ErrOtherGuest, t.PID, proc.Name, t.VM)
		}
	case t.QMP == "":
		if proc, err = qemu.Find(t.VM); err != nil {
			return proc, "", err
		}
	}
	if t.QMP != "" {
		return proc, t.QMP, nil
	}
	path, err = proc.MonitorPath()
	return proc, path, err
}

// guest is the process of a Target, held from when it was found until the verb ends.
type guest struct {
	qemu.Process
	hold *pidfd.Handle // nil until the process is known
}

// checkPeer makes sure that who listens on the monitor's socket is the guest that is meant,
// and may be: the kernel's word on the peer (SO_PEERCRED, SO_PEERPIDFD) is the proof, a
// command line is none. process is the peer's pidfd, or nil.
func checkPeer(t Target, g *guest, p qmp.Peer, process *os.File) error {
	if g.hold == nil {
		if err := g.take(t, p); err != nil {
			return err
		}
	}
	switch {
	case p.PID != g.PID, process != nil && !g.hold.Is(process):
		return fmt.Errorf("%w: process %d listens there, not the guest's process %d (name the guest's own socket with --qmp)", fs.ErrPermission, p.PID, g.PID)
	case p.UID != g.UID && p.UID != 0: // QEMU listens before it gives up root's ids (-runas)
		return fmt.Errorf("%w: uid %d has made the socket of process %d listen, which is uid %d's", fs.ErrPermission, p.UID, g.PID, g.UID)
	}
	return g.hold.Check()
}

// take makes the process that listens the guest, where only its socket was named.
func (g *guest) take(t Target, p qmp.Peer) error {
	if p.UID != os.Geteuid() {
		return fmt.Errorf("%w: process %d listens there for uid %d (name it with --pid %d if that is the guest you mean)", qemu.ErrOtherUser, p.PID, p.UID, p.PID)
	}
	proc, err := qemu.AnyByPID(p.PID)
	if err != nil {
		return err
	}
	if proc.Name != "" && proc.Name != t.VM {
		return fmt.Errorf("%w: process %d, which listens there, is guest %q, not %q", ErrOtherGuest, p.PID, proc.Name, t.VM)
	}
	g.Process = proc
	g.hold, err = proc.Hold()
	return err
}

func explainMonitor(err error, t Target) error {
	switch {
	case errors.Is(err, qmp.ErrBusy):
		return fmt.Errorf("%w (it serves one client at a time: end the other one, wait for it, or give the guest a second -qmp socket)", err)
	case errors.Is(err, fs.ErrNotExist) && t.QMP == "":
		return fmt.Errorf("%w (its command line tells this path, and nothing is there: name the socket with --qmp)", err)
	}
	return err
}

// monitorTimeout is the cause of giving up on a monitor where no limit was asked for.
func monitorTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, monitorWait, noAnswer(monitorWait))
}

func noAnswer(within time.Duration) error {
	return fmt.Errorf("no answer within %v: %w", within, context.DeadlineExceeded)
}

// pollEvery is how often the kernel is asked for something that has no event we could wait for.
const pollEvery = 5 * time.Millisecond

// gone makes success of an error that tells that the link is not there any more.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
