package tapmgr

import (
	"context"
	"fmt"
	"sync"
	"time"

	"vmnet/internal/backend"
	"vmnet/internal/kernel/netns"
	"vmnet/step"
	"vmnet/tapmgr/hostaccess"
)

// A Manager works on the taps and bridges of one network namespace. Its methods
// may be called at the same time, and by several processes.
type Manager struct {
	// Run runs a list of steps; nil is step.Run alone. It is where steps are
	// printed, timed and, in tests, broken.
	Run func(ctx context.Context, steps []step.Step) error
	// Progress, if not nil, is told what is being waited for.
	Progress func(text string)
	// Libvirt is the URI or socket of the libvirt that manages guests; empty: the caller's own for
	// the caller's guests, else the machine's.
	Libvirt string

	// Switches, if not nil, lists the control sockets of the userspace switches that are asked for
	// guests' NICs, as control.Running does; nil asks none, as a privileged helper must: a switch
	// is anybody's.
	Switches func() ([]string, error)
	// Notice, if not nil, is told of what could not be seen, such as a switch that does not answer.
	Notice func(text string)

	host   *backend.Maker
	speech sync.Mutex // held while Progress or Notice is called
}

// New returns a Manager for ns, which stays the caller's and must stay open.
// Close the Manager.
func New(ns *netns.NS) (*Manager, error) {
	host, err := backend.Open(ns)
	if err != nil {
		return nil, err
	}
	m := &Manager{host: host}
	host.Switches, host.Notice, host.Run = m.switches, m.notice, m.run
	return m, nil
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
func (m *Manager) Close() { m.host.Close() }

// UseHelper has taps made by the privileged program at that path (qemu-netup), where the caller may
// not make them. What else needs a privilege is then not done.
func (m *Manager) UseHelper(path string) { m.host.HelperPath = path }

// HasHelper reports whether a helper makes taps.
func (m *Manager) HasHelper() bool { return m.host.HelperPath != "" }

// HostAccess returns what switches host access on and off in the Manager's network namespace.
func (m *Manager) HostAccess() *hostaccess.Host { return hostaccess.On(m.host) }

func (m *Manager) run(ctx context.Context, steps []step.Step) error {
	if m.Run != nil {
		return m.Run(ctx, steps)
	}
	return step.Run(ctx, steps, nil)
}

func (m *Manager) progress(format string, args ...any) {
	m.speech.Lock()
	defer m.speech.Unlock()
	if m.Progress != nil {
		m.Progress(fmt.Sprintf(format, args...))
	}
}

func (m *Manager) notice(text string) {
	m.speech.Lock()
	defer m.speech.Unlock()
	if m.Notice != nil {
		m.Notice(text)
	}
}

func (m *Manager) switches() (paths []string, ok bool, err error) {
	if m.Switches == nil {
		return nil, false, nil
	}
	paths, err = m.Switches()
	return paths, true, err
}

// monitorTimeout is the cause of giving up on a monitor where no limit was asked for.
func monitorTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, monitorWait, noAnswer(monitorWait))
}

func noAnswer(within time.Duration) error {
	return fmt.Errorf("no answer within %v: %w", within, context.DeadlineExceeded)
}
