package tapmgr

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/pidfd"
	"vmnet/internal/kernel/procview"
	"vmnet/internal/vmm/qemu"
	"vmnet/qmp"
	"vmnet/tapmgr/nic"
)

// guest is the process of a Target, held from when it was found until the verb ends.
type guest struct {
	qemu.Process
	hold *pidfd.Handle // nil until the process is known
}

// locate finds the guest's process. With only a socket named, the process stays unknown
// until its listener tells.
func locate(t nic.Target) (qemu.Process, error) {
	switch {
	case t.PID != 0:
		proc, err := qemu.ByPID(t.PID)
		if errors.Is(err, qemu.ErrNotFound) && !errors.Is(err, pidfd.ErrDoubtful) && t.QMP != "" {
			proc, err = qemu.AnyByPID(t.PID) // its monitor proves it
		}
		if err == nil && proc.Name != "" && proc.Name != t.VM {
			err = fmt.Errorf("%w: process %d is guest %q, not %q", nic.ErrOtherGuest, t.PID, proc.Name, t.VM)
		}
		return proc, err
	case t.QMP == "":
		return qemu.Find(t.VM)
	}
	return qemu.Process{}, nil
}

// checkPeer makes sure that who listens on the monitor's socket is the guest that is meant,
// and may be: the kernel's word on the peer (SO_PEERCRED, SO_PEERPIDFD) is the proof, a
// command line is none. process is the peer's pidfd, or nil.
func checkPeer(t nic.Target, g *guest, p qmp.Peer, process *os.File) error {
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
func (g *guest) take(t nic.Target, p qmp.Peer) error {
	if p.UID != os.Geteuid() {
		return fmt.Errorf("%w: process %d listens there for uid %d (name it with --pid %d if that is the guest you mean)", qemu.ErrOtherUser, p.PID, p.UID, p.PID)
	}
	proc, err := qemu.AnyByPID(p.PID)
	if err != nil {
		return err
	}
	if proc.Name != "" && proc.Name != t.VM {
		return fmt.Errorf("%w: process %d, which listens there, is guest %q, not %q", nic.ErrOtherGuest, p.PID, proc.Name, t.VM)
	}
	g.Process = proc
	g.hold, err = proc.Hold()
	return err
}

// openMonitor opens a guest that libvirt does not manage: it makes sure that the monitor is the
// guest's own, and waits until nobody else uses it.
func (m *Manager) openMonitor(ctx context.Context, t nic.Target) (*vm, error) {
	proc, err := locate(t)
	if err != nil {
		return nil, err
	}
	return m.connect(ctx, t, proc, func(d *monitorDialer) error {
		if t.QMP != "" {
			return d.named(ctx, t.QMP)
		}
		all, err := proc.Sockets()
		if err != nil {
			return err
		}
		return d.first(ctx, all)
	})
}

// openOther opens another monitor of a guest that is open; nil where it is the same.
func (m *Manager) openOther(ctx context.Context, v *vm, name string, s qemu.Socket) (*vm, error) {
	t := nic.Target{VM: name, PID: v.guest.PID}
	other, err := m.connect(ctx, t, v.guest.Process, func(d *monitorDialer) error {
		d.not = v.socket
		return d.socket(ctx, s)
	})
	if errors.Is(err, errSameSocket) {
		return nil, nil
	}
	return other, err
}

// connect has dial connect to a monitor of the process, which is unknown where it has no PID.
func (m *Manager) connect(ctx context.Context, t nic.Target, proc qemu.Process, dial func(*monitorDialer) error) (_ *vm, err error) {
	d := &monitorDialer{m: m, t: t, guest: &guest{Process: proc}}
	defer func() {
		if err != nil {
			_ = d.guest.hold.Close()
			err = fmt.Errorf("guest %s: %w", t.VM, explainMonitor(err))
		}
	}()
	if proc.PID != 0 {
		if d.guest.hold, err = proc.Hold(); err != nil {
			return nil, err
		}
	}
	d.waiting = sync.OnceFunc(func() {
		m.progress("waiting for the monitor of %s: another client has it, or QEMU stands still", t.VM)
	})
	if err := dial(d); err != nil {
		return nil, err
	}
	return &vm{Conn: d.conn, m: m, guest: d.guest, socket: d.at}, nil
}

// monitorSocket tells sockets apart, however they were named.
type monitorSocket struct {
	file     fs.FileInfo // nil for an abstract one
	abstract string
}

func (a monitorSocket) same(b monitorSocket) bool {
	return a.abstract == b.abstract && (a.file == nil) == (b.file == nil) && (a.file == nil || os.SameFile(a.file, b.file))
}

var errSameSocket = errors.New("it is the socket that is open")

// monitorDialer connects to one guest's monitor.
type monitorDialer struct {
	m       *Manager
	t       nic.Target
	guest   *guest
	waiting func()
	not     monitorSocket // is not connected to

	conn *qmp.Conn
	at   monitorSocket
}

// named connects to a socket by the path that the user has given.
func (d *monitorDialer) named(ctx context.Context, path string) error {
	info, _ := os.Stat(path) // nil of one that is not there, which dial says
	return d.dial(ctx, qmp.Dialer{}, path, monitorSocket{file: info})
}

// first connects to the first socket that can be. One that the command line has is waited
// for until ctx ends, for it is the lock.
func (d *monitorDialer) first(ctx context.Context, all []qemu.Socket) error {
	if !all[0].Told {
		return d.probe(ctx, all)
	}
	var errs []error
	for _, s := range all {
		err := d.socket(ctx, s)
		if err == nil || errors.Is(err, qmp.ErrBusy) || ctx.Err() != nil {
			return err
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

const (
	// greetingWait is how long a socket has for its greeting that may be no monitor, and
	// probeEvery the pause before it is tried again, since it may be a busy one.
	greetingWait = 500 * time.Millisecond
	probeEvery   = time.Second
)

// probe tries sockets that may be a monitor until one greets. Nothing is sent to one that does not.
func (d *monitorDialer) probe(ctx context.Context, all []qemu.Socket) error {
	var errs []error
	for {
		var silent []qemu.Socket
		for _, s := range all {
			one, cancel := context.WithTimeoutCause(ctx, greetingWait, noAnswer(greetingWait))
			err := d.socket(one, s)
			cancel()
			switch {
			case err == nil:
				return nil
			case errors.Is(err, qmp.ErrBusy):
				silent = append(silent, s)
			default:
				errs = append(errs, err)
			}
		}
		if all = silent; len(all) == 0 {
			return fmt.Errorf("%w: it listens on no socket that greets as one (name it with --qmp): %w", qemu.ErrNoMonitor, errors.Join(errs...))
		}
		select {
		case <-time.After(probeEvery):
		case <-ctx.Done():
			return fmt.Errorf("%w: it listens on %s, where nobody greets: %w", qmp.ErrBusy, all[0].Name, context.Cause(ctx))
		}
	}
}

// socket connects to a socket of the guest's, by whatever its name means to the guest.
func (d *monitorDialer) socket(ctx context.Context, s qemu.Socket) error {
	if name, ok := strings.CutPrefix(s.Name, "@"); ok {
		return d.abstract(ctx, s.PID, name)
	}
	files, err := procview.Locate(ctx, s.PID, s.Name)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("monitor %s: %w (it was removed, or QEMU sees another directory there: name the socket with --qmp)", s.Name, fs.ErrNotExist)
	}
	var errs []error
	for _, f := range files {
		info, err := f.Stat()
		if err == nil {
			err = d.dial(ctx, qmp.Dialer{Name: s.Name}, procview.Address(f), monitorSocket{file: info})
		}
		_ = f.Close()
		if err == nil || errors.Is(err, qmp.ErrBusy) || ctx.Err() != nil {
			closeRest(files)
			return err
		}
		errs = append(errs, err)
	}
	return errors.Join(append(errs, err)...)
}

func closeRest(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// abstract connects to an abstract socket, in the netns that the guest is in. The kernel
// shows the NULs in a name, and behind one (tight=off), as "@".
func (d *monitorDialer) abstract(ctx context.Context, pid int, name string) error {
	ns, err := netns.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return err
	}
	defer ns.Close()
	dialer := qmp.Dialer{Name: "@" + name, In: ns.Do}
	tight := strings.TrimRight(name, "@")
	var errs []error
	for _, address := range []string{"@" + name, "@" + tight + strings.Repeat("\x00", len(name)-len(tight))} {
		err := d.dial(ctx, dialer, address, monitorSocket{abstract: name})
		if err == nil || errors.Is(err, qmp.ErrBusy) || ctx.Err() != nil || tight == name {
			return err
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// dial connects to an address that is the socket.
func (d *monitorDialer) dial(ctx context.Context, dialer qmp.Dialer, address string, at monitorSocket) (err error) {
	if d.not != (monitorSocket{}) && d.not.same(at) {
		return errSameSocket
	}
	dialer.CheckPeer = func(p qmp.Peer, process *os.File) error { return checkPeer(d.t, d.guest, p, process) }
	dialer.Waiting = d.waiting
	d.conn, err = dialer.Dial(ctx, address)
	d.at = at
	return err
}

func explainMonitor(err error) error {
	if errors.Is(err, qmp.ErrBusy) {
		return fmt.Errorf("%w (it serves one client at a time: end the other one, wait for it, or give the guest a second -qmp socket)", err)
	}
	return err
}
