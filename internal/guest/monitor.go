package guest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"vmnet/internal/backend"
	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/procview"
	"vmnet/internal/vmm/qemu"
	"vmnet/qmp"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// A Monitor plugs NICs by QEMU's monitor. Its connection is the guest's lock. For a libvirt guest
// the lock is the domain's, and the connection goes through libvirt's monitor commands.
type Monitor struct {
	conn   *qmp.Conn
	finder *Finder
	found  *Found
	socket monitorSocket // that the connection is over; zero if it goes through libvirt
}

// QMP returns the connection, which ends with the Guest.
func (m *Monitor) QMP() *qmp.Conn { return m.conn }

// CPUs returns the number of the guest's virtual CPUs.
func (m *Monitor) CPUs(ctx context.Context) (int, error) { return m.conn.CPUs(ctx) }

// Has reports whether QEMU has the NIC's device.
func (m *Monitor) Has(ctx context.Context, nicID string) (bool, error) {
	return m.conn.HasDevice(ctx, nic.DeviceID(nicID))
}

// RxFilter returns what the guest's driver wants to receive; nil for a model without such a filter.
func (m *Monitor) RxFilter(ctx context.Context, nicID string) (*qmp.RxFilter, error) {
	f, err := m.conn.RxFilter(ctx, nic.DeviceID(nicID))
	var refused *qmp.Error
	if errors.As(err, &refused) {
		return nil, nil
	}
	return &f, err
}

// Plan finds a place for the device, unless its options name one, and the types of its options. The
// steps end with our copies closed: from then on the host interface lives as long as QEMU holds it.
func (m *Monitor) Plan(ctx context.Context, n *backend.NIC) (Handover, error) {
	if err := m.choosePlace(ctx, n); err != nil {
		return Handover{}, err
	}
	if n.Device.Backend == qmp.VhostUser {
		if err := m.planSharing(ctx, n); err != nil {
			return Handover{}, err
		}
	}
	var err error
	if n.Device, err = m.conn.TypeOptions(ctx, n.Device); err != nil {
		return Handover{}, err
	}
	plug := m.conn.PlugSteps(n.Device, &n.Files)
	if n.Device.Backend == qmp.VhostUser {
		m.listen(n, plug)
	}
	if n.Record.Prepared {
		m.undoByReset(plug, n.Record.NIC)
	}
	return Handover{Steps: append(plug, step.Step{
		Name: "close",
		Text: "close our copies of the fds",
		Do:   func(context.Context) error { return n.Close() },
	})}, nil
}

// choosePlace chooses the model that fits the machine best, if none was asked for, and a place for
// it, unless the options name one.
func (m *Monitor) choosePlace(ctx context.Context, n *backend.NIC) (err error) {
	model, port := n.Device.Model, qmp.Port{Bus: n.Device.Bus}
	switch placed := n.Device.Bus != ""; {
	case n.AnyModel && placed:
		model, err = m.conn.BestModel(ctx)
	case n.AnyModel:
		model, port, err = m.conn.BestPlace(ctx)
	case !placed:
		port, err = m.conn.FreePortFor(ctx, model)
	}
	if err != nil {
		return err
	}
	n.Device.Model, n.Device.Bus, n.Device.Addr = model, port.Bus, cmp.Or(n.Device.Addr, port.Addr)
	if n.AnyModel {
		n.Record.Model = model
	}
	return nil
}

// UnplugText describes Unplug.
func (m *Monitor) UnplugText(nicID string) string {
	id := nic.DeviceID(nicID)
	return fmt.Sprintf("device_del %s, again each second until the guest releases it; netdev_del %s",
		id, qmp.NetdevID(id))
}

// Unplug removes the device, for which the guest must release it, and the netdev.
func (m *Monitor) Unplug(ctx context.Context, nicID string, waiting func(time.Duration)) error {
	return m.conn.Unplug(ctx, nic.DeviceID(nicID), waiting)
}

// RequestUnplug asks the guest to release the device, and does not wait.
func (m *Monitor) RequestUnplug(ctx context.Context, nicID string) error {
	return m.conn.RequestUnplug(ctx, nic.DeviceID(nicID))
}

// RemoveNetdev takes the netdev from a NIC, as far as QEMU allows without the guest. None is
// success.
func (m *Monitor) RemoveNetdev(ctx context.Context, nicID string) error {
	return m.conn.Release(ctx, nic.DeviceID(nicID))
}

func (m *Monitor) rollback(ctx context.Context, r nic.Record) error {
	if r.Type == nic.TypeVhostUser {
		return m.conn.RollbackListening(ctx, nic.DeviceID(r.NIC))
	}
	return m.conn.Rollback(ctx, nic.DeviceID(r.NIC), r.Queues)
}

func (m *Monitor) rollbackElsewhere(ctx context.Context, r nic.Record) error {
	all, err := m.found.process.Sockets()
	if err != nil || !all[0].Told { // no other is surely a monitor
		return nil
	}
	var errs []error
	for _, s := range all {
		dialing, cancel := WithTimeout(ctx)
		other, err := m.openOther(dialing, s)
		if other != nil {
			err = errors.Join(other.rollback(dialing, r), other.conn.Close())
		}
		cancel()
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// openMonitor opens a guest that libvirt does not manage: it connects to the guest's own monitor,
// and waits until no other client uses that.
func (f *Finder) openMonitor(ctx context.Context, g *Found) (*Guest, error) {
	if g.missing != nil {
		return nil, g.missing
	}
	m, err := f.connect(ctx, g, func(d *monitorDialer) error {
		if g.target.QMP != "" {
			return d.named(ctx, g.target.QMP)
		}
		all, err := g.process.Sockets()
		if err != nil {
			return err
		}
		return d.first(ctx, all)
	})
	if err != nil {
		return nil, err
	}
	return &Guest{Found: g, Plugger: m, Unplugger: m, Monitor: m, close: []io.Closer{m.conn}}, nil
}

// openOther opens another monitor of a guest whose monitor is open; nil if it is the same.
func (m *Monitor) openOther(ctx context.Context, s qemu.Socket) (*Monitor, error) {
	other, err := m.finder.connect(ctx, m.found, func(d *monitorDialer) error {
		d.not = m.socket
		return d.socket(ctx, s)
	})
	if errors.Is(err, errSameSocket) {
		return nil, nil
	}
	return other, err
}

// connect has dial connect to a monitor of the guest.
func (f *Finder) connect(ctx context.Context, g *Found, dial func(*monitorDialer) error) (*Monitor, error) {
	d := &monitorDialer{found: g, waiting: sync.OnceFunc(func() {
		f.Progress("waiting for the monitor of %s: another client has it, or QEMU is paused", g.target.VM)
	})}
	if err := dial(d); err != nil {
		return nil, fmt.Errorf("guest %s: %w", g.target.VM, explainMonitor(err))
	}
	return &Monitor{conn: d.conn, finder: f, found: g, socket: d.at}, nil
}

// monitorSocket identifies a socket regardless of its name.
type monitorSocket struct {
	file     fs.FileInfo // nil for an abstract one
	abstract string
}

func (a monitorSocket) same(b monitorSocket) bool {
	if a.file == nil || b.file == nil {
		return a.file == b.file && a.abstract == b.abstract
	}
	return os.SameFile(a.file, b.file)
}

var errSameSocket = errors.New("it is the socket that is open")

// monitorDialer connects to one guest's monitor.
type monitorDialer struct {
	found   *Found
	waiting func()
	not     monitorSocket // do not connect to this one

	conn *qmp.Conn
	at   monitorSocket
}

// named connects to a socket by the path that the user has given.
func (d *monitorDialer) named(ctx context.Context, path string) error {
	info, _ := os.Stat(path) // nil if it is not there, about which dial returns the error
	return d.dial(ctx, qmp.Dialer{}, path, monitorSocket{file: info})
}

// first connects to the first socket that accepts the connection. If the command line says that a
// socket is a monitor, first waits for it until ctx ends, for it is the lock.
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
	// greetingWait bounds the wait for the greeting of a socket that may not be a monitor, and
	// probeEvery is the pause before the next try, since it may be a busy monitor.
	greetingWait = 500 * time.Millisecond
	probeEvery   = time.Second
)

// probe tries sockets that may be a monitor until one greets. It sends nothing to the others.
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
			return fmt.Errorf("%w: it listens on no socket that greets as one (name it with --qmp): %w",
				qemu.ErrNoMonitor, errors.Join(errs...))
		}
		select {
		case <-time.After(probeEvery):
		case <-ctx.Done():
			return fmt.Errorf("%w: it listens on %s, where nothing greets: %w",
				qmp.ErrBusy, all[0].Name, context.Cause(ctx))
		}
	}
}

// socket connects to a socket on which the guest listens, by what its name means to the guest.
func (d *monitorDialer) socket(ctx context.Context, s qemu.Socket) error {
	if name, ok := strings.CutPrefix(s.Name, "@"); ok {
		return d.abstract(ctx, s.PID, name)
	}
	files, err := procview.Locate(ctx, s.PID, s.Name)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf(
			"monitor %s: %w (it was removed, or QEMU sees another directory there: name the socket with --qmp)",
			s.Name, fs.ErrNotExist)
	}
	var errs []error
	for _, f := range files {
		info, err := f.Stat()
		if err == nil {
			err = d.dial(ctx, qmp.Dialer{Name: s.Name}, procview.Address(f), monitorSocket{file: info})
		}
		_ = f.Close()
		if err == nil || errors.Is(err, qmp.ErrBusy) || ctx.Err() != nil {
			fdpass.CloseAll(files)
			return err
		}
		errs = append(errs, err)
	}
	return errors.Join(append(errs, err)...)
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

// dial connects to the address of the socket.
func (d *monitorDialer) dial(ctx context.Context, dialer qmp.Dialer, address string, at monitorSocket) (err error) {
	if d.not != (monitorSocket{}) && d.not.same(at) {
		return errSameSocket
	}
	dialer.CheckPeer = func(p qmp.Peer, process *os.File) error { return d.found.checkPeer(p, process) }
	dialer.Waiting = d.waiting
	d.conn, err = dialer.Dial(ctx, address)
	d.at = at
	return err
}

func explainMonitor(err error) error {
	if errors.Is(err, qmp.ErrBusy) {
		return fmt.Errorf(
			"%w (it serves one client at a time: end the other one, wait for it, or give the guest a second -qmp socket)",
			err)
	}
	return err
}
