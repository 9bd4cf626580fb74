// Package tapmgr gives guests their NICs: it makes the host interface, puts it on its bridge, hands
// its queues to the VMM, and takes all of that away again.
//
// The kernel is the only database. What a NIC should be is stored in the alias of its link
// (IFLA_IFALIAS); what it is, is read from the kernel and the VMM each time. A host interface lives
// as long as its VMM holds its file descriptors, so nothing outlives a guest.
//
// The VMM's monitor is the lock of a guest: it serves one client at a time. A verb connects to it
// before it makes the first device, and stays connected until its last step is done.
package tapmgr

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"vmnet/internal/backend"
	"vmnet/internal/guest"
	"vmnet/internal/inventory"
	"vmnet/internal/kernel/netns"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// A Manager works on the NICs of one network namespace. Its methods may be called at the same time,
// and by several processes. Set its fields before the first call.
type Manager struct {
	// Run runs a list of steps; nil is step.Run. A Run that calls no step makes a dry run.
	Run step.Runner
	// Progress, if not nil, is called while a verb runs, by one goroutine at a time.
	Progress func(kind ProgressKind, text string)

	// Libvirt is the URI or socket of the libvirt that manages guests. If it is empty, the caller's
	// own libvirt has the caller's guests, and the machine's all others.
	Libvirt string
	// AskSwitches has userspace switches asked for the guests' NICs: those that are in Switches,
	// paths of control sockets as control.Running returns them, and those that NICs' records name.
	// A privileged helper must not ask: anybody can run a switch.
	AskSwitches bool
	Switches    []string
	// MayShare returns nil if a switch of user owner may have the memory of a guest of user uid, or
	// why it may not. If it is nil, no switch may but the guest's user's own and root's.
	MayShare func(uid, owner int) error
	// Keep, for CreateTap, starts a process that calls KeepTap for that NIC, and returns once it
	// waits.
	Keep func(ctx context.Context, vm, nicID string) error
	// LeaseStates are directories with lease files of networks, besides dhcp.DefaultState.
	LeaseStates []string

	host     *backend.Maker
	ns       *netns.NS
	reported sync.Mutex // held while Progress is called
}

// ProgressKind is what Progress is called about.
type ProgressKind int

const (
	Waiting ProgressKind = iota // for what the verb waits
	Unseen                      // what it could not see, such as a switch that does not answer
)

// Open returns a Manager for a network namespace: that of the calling thread if nameOrPath is
// empty, the one of that name in ip-netns(8), or, if nameOrPath contains a slash, the one at that
// path, such as /proc/self/fd/7. Close the Manager.
func Open(nameOrPath string) (*Manager, error) {
	ns, err := netns.Open(nameOrPath)
	if err != nil {
		return nil, err
	}
	host, err := backend.Open(ns)
	if err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	m := &Manager{host: host, ns: ns}
	host.Run = func(ctx context.Context, steps []step.Step) error { return m.Run.Do(ctx, steps) }
	host.Notice = func(text string) { m.report(Unseen, text) }
	host.MayShare = func(uid, owner int) error {
		if m.MayShare == nil {
			return errors.New("run the switch as that user or root")
		}
		return m.MayShare(uid, owner)
	}
	host.Switches = func() (paths []string, ok bool, err error) { return m.Switches, m.AskSwitches, nil }
	return m, nil
}

// In runs f with a Manager for a network namespace, named as for Open.
func In(nameOrPath string, f func(*Manager) error) error {
	m, err := Open(nameOrPath)
	if err != nil {
		return err
	}
	defer m.Close()
	return f(m)
}

// Close closes the netlink socket and the namespace.
func (m *Manager) Close() {
	m.host.Close()
	_ = m.ns.Close()
}

// UseDatabases has rows of NICs that have gone removed from the databases of Open vSwitch with
// these sockets, instead of that of this machine.
func (m *Manager) UseDatabases(paths ...string) { m.host.OVSDBs = paths }

// UseHelper has host interfaces made by the privileged program at that path (qemu-netup), since the
// caller may not make them. What else needs a privilege is then not done.
func (m *Manager) UseHelper(path string) { m.host.HelperPath = path }

// HasHelper reports whether a helper makes host interfaces.
func (m *Manager) HasHelper() bool { return m.host.HelperPath != "" }

// AskLibvirt has libvirt asked what a NIC was whose host interface was deleted under its guest. It
// waits for a second at most. A program that libvirt waits for, such as its hook, must not ask, nor
// must a privileged helper.
func (m *Manager) AskLibvirt() {
	m.host.OfLibvirt = func(ctx context.Context, pids []int) []inventory.LibvirtNIC {
		return m.finder().OfLibvirt(ctx, pids)
	}
}

// hasPrivilege reports whether the caller may change a NIC that is there. A caller that needs a
// helper may change only a NIC without a link, such as one on a socket.
func (m *Manager) hasPrivilege(dev *inventory.Device) bool {
	return !m.HasHelper() || !dev.HasLink()
}

func (m *Manager) report(kind ProgressKind, text string) {
	m.reported.Lock()
	defer m.reported.Unlock()
	if m.Progress != nil {
		m.Progress(kind, text)
	}
}

func (m *Manager) progress(format string, args ...any) {
	m.report(Waiting, fmt.Sprintf(format, args...))
}

func (m *Manager) finder() *guest.Finder {
	return &guest.Finder{Maker: m.host, Libvirt: m.Libvirt, Progress: m.progress}
}

// openGuest is a guest that was found and opened in one go.
type openGuest struct{ *guest.Guest }

// Close closes the guest and releases its process.
func (g *openGuest) Close() error { return errors.Join(g.Guest.Close(), g.Found.Close()) }

// open finds a guest and waits for its lock.
func (m *Manager) open(ctx context.Context, t nic.Target, via nic.Via) (*openGuest, error) {
	return m.findAnd(t, func(g *guest.Found) (*guest.Guest, error) { return m.finder().Open(ctx, g, via) })
}

// openToRead opens the guest that holds a NIC only to look at it.
func (m *Manager) openToRead(ctx context.Context, dev inventory.Device) (*openGuest, error) {
	t := nic.Target{VM: dev.Want.VM, PID: dev.VMMPID()}
	return m.findAnd(t, func(g *guest.Found) (*guest.Guest, error) {
		return m.finder().OpenToRead(ctx, g, dev.Want.Via)
	})
}

func (m *Manager) findAnd(t nic.Target, open func(*guest.Found) (*guest.Guest, error)) (*openGuest, error) {
	found, err := m.finder().Find(t)
	if err != nil {
		return nil, err
	}
	g, err := open(found)
	if err != nil {
		return nil, errors.Join(err, found.Close())
	}
	return &openGuest{g}, nil
}

// open opens the guest of NICs that process pid holds. A QEMU that waits for a switch which was
// killed while it added a NIC answers nobody: then something serves it in place of the switch,
// until end is called.
func (r *reconciler) open(ctx, reading context.Context, pid int, nics []inventory.Device) (
	g *openGuest, end func(), err error,
) {
	target, via := nic.Target{VM: nics[0].Want.VM, PID: pid}, nics[0].Want.Via
	end = func() {}
	g, err = r.m.open(reading, target, via)
	lost := slices.ContainsFunc(nics, func(dev inventory.Device) bool { return dev.HasLostMemory() })
	if r.Dry || !lost {
		return g, end, err
	}
	if err == nil {
		if _, err = g.Has(reading, nics[0].Want.NIC); err == nil {
			return g, end, nil
		}
		err = errors.Join(err, g.Close())
	}
	if served := r.m.host.StandInFor(ctx, pid, nics); served != nil {
		again, cancel := guest.WithTimeout(ctx)
		defer cancel()
		if g, err = r.m.open(again, target, via); err != nil {
			return g, served, err
		}
		_, err = g.Has(again, nics[0].Want.NIC) // it answers: from here on, only a switch is to serve it
		served()
	}
	return g, end, err
}
