package guest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vmnet/internal/backend"
	"vmnet/internal/inventory"
	"vmnet/internal/kernel/pidfd"
	"vmnet/internal/vmm/qemu"
	"vmnet/internal/vmm/qmptest"
	"vmnet/qmp"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// ownMonitor makes this process listen as a QEMU does, and answer each client with serve. A nil
// serve accepts no client, as a QEMU that has one does.
func ownMonitor(t *testing.T, name string, serve func(*qmptest.Session)) qemu.Socket {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if serve != nil {
			qmptest.Serve(l, serve)
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-ended })
	return qemu.Socket{PID: os.Getpid(), Name: name}
}

// greets answers like a QEMU that has all that it is asked for.
func greets(s *qmptest.Session) {
	if s.Negotiate() {
		s.AnswerAll()
	}
}

// ownDialer connects to monitors of this process.
func ownDialer(t *testing.T) *monitorDialer {
	t.Helper()
	hold, err := pidfd.Open(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = hold.Close() })
	g := &Found{target: nic.Target{VM: "P2"}, process: qemu.Process{PID: os.Getpid(), UID: os.Geteuid()}, hold: hold}
	return &monitorDialer{found: g, waiting: func() {}}
}

// TestDialMonitor: which of a guest's sockets is its monitor, and what is said if none is.
func TestDialMonitor(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "mon") // short, for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	interrupted := errors.New("interrupted")
	ctx, cancel := context.WithCancelCause(within(t))
	defer cancel(nil)
	in := func(name string) string { return filepath.Join(dir, name) }
	unique := fmt.Sprintf("@vmnet-test-%d", os.Getpid())
	monitor := ownMonitor(t, in("monitor"), greets)
	abstract := ownMonitor(t, unique, greets)
	padded := ownMonitor(t, unique+"-padded\x00\x00", greets)
	padded.Name = unique + "-padded@@" // as the kernel shows it
	stranger := ownMonitor(t, in("console"), func(s *qmptest.Session) { s.Say("login:") })
	busy := ownMonitor(t, in("busy"), nil)
	removed := qemu.Socket{PID: os.Getpid(), Name: in("removed")}
	told := func(all ...qemu.Socket) []qemu.Socket {
		all = slices.Clone(all)
		for i := range all {
			all[i].Told = true
		}
		return all
	}
	for _, tc := range []struct {
		name    string
		sockets []qemu.Socket
		at      string // the abstract socket; empty for a file
		want    error
		text    string
	}{
		{"the first one", told(monitor, abstract), "", nil, ""},
		{"one that is abstract", told(abstract), unique[1:], nil, ""},
		{"one whose name ends with NULs", told(padded), padded.Name[1:], nil, ""},
		{"one that was removed", told(removed), "", fs.ErrNotExist, "it was removed, or QEMU sees another directory"},
		{"the second one", told(removed, monitor), "", nil, ""},
		{"one that greets", []qemu.Socket{removed, busy, monitor}, "", nil, ""},
		{"none that greets", []qemu.Socket{stranger, removed}, "", qemu.ErrNoMonitor, "name it with --qmp"},
		{"until the caller ends it", []qemu.Socket{busy}, "", interrupted, "where nothing greets"},
		{"when the caller has ended it", []qemu.Socket{busy}, "", interrupted, "look up"},
	} {
		d := ownDialer(t)
		if tc.want == interrupted {
			d.waiting = func() { cancel(interrupted) }
		}
		err := d.first(ctx, tc.sockets)
		if !errors.Is(err, tc.want) || tc.want != nil && !strings.Contains(explainMonitor(err).Error(), tc.text) {
			t.Errorf("%s: %v, want %v: %s", tc.name, err, tc.want, tc.text)
		}
		if tc.want == nil && (d.conn == nil || d.at.abstract != tc.at || (d.at.file == nil) == (tc.at == "")) {
			t.Errorf("%s: at %+v", tc.name, d.at)
		}
		if again := ownDialer(t); tc.want == nil && tc.at != "" {
			again.not = d.at
			if err := again.first(ctx, tc.sockets); !errors.Is(err, errSameSocket) {
				t.Errorf("%s, once more: %v", tc.name, err)
			}
		}
		if d.conn != nil {
			_ = d.conn.Close()
		}
	}
}

// TestOpenByMonitor: who listens on a socket that the user names must be the guest of that name.
func TestOpenByMonitor(t *testing.T) {
	t.Parallel()
	q := qmptest.Start(t, qmptest.Config{Name: guestName()})
	f := &Finder{Progress: t.Logf}
	for vm, want := range map[string]error{q.Name: nil, "another": nic.ErrOtherGuest} {
		g, err := f.Find(nic.Target{VM: vm, QMP: q.Sockets[0]})
		if err != nil {
			t.Fatal(err)
		}
		open, err := f.OpenToRead(within(t), g, "")
		if !errors.Is(err, want) || (err == nil) != (want == nil) {
			t.Errorf("%s: %v, want %v", vm, err, want)
		}
		if err == nil {
			if g.PID() != q.PID || open.Domain != nil {
				t.Errorf("%s: process %d, want %d", vm, g.PID(), q.PID)
			}
			if _, err := f.Open(within(t), g, nic.ViaLibvirt); !errors.Is(err, nic.ErrInvalid) {
				t.Errorf("by libvirt: %v", err)
			}
			_ = open.Close()
		}
		_ = g.Close()
	}
}

// monitored is a guest whose monitor is open.
type monitored struct {
	*Guest
	q *qmptest.QEMU
}

// newMonitored starts a QEMU with that many monitors and opens the guest.
func newMonitored(t *testing.T, monitors int) *monitored {
	t.Helper()
	m := &monitored{q: qmptest.Start(t, qmptest.Config{Name: guestName(), Monitors: monitors})}
	m.open(t, &Finder{Progress: t.Logf}, m.q.Name, "")
	return m
}

// newRelayed opens a domain by its monitor, through libvirt.
func newRelayed(t *testing.T) *monitored {
	t.Helper()
	f := newDomain(t)
	m := &monitored{q: f.QEMU}
	m.open(t, f.Finder, f.Name, nic.ViaMonitor)
	return m
}

func (m *monitored) open(t *testing.T, f *Finder, vm string, via nic.Via) {
	t.Helper()
	found, err := f.Find(nic.Target{VM: vm})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = found.Close() })
	if m.Guest, err = f.Open(within(t), found, via); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
}

// nic is a NIC with a file in place of a tap.
func (m *monitored) nic(t *testing.T, edit func(*backend.NIC)) *backend.NIC {
	t.Helper()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	spec := nic.Spec{
		Target: nic.Target{VM: m.q.Name}, NIC: "net0", Bridge: "br0", MAC: net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1},
	}
	n := (&backend.Maker{Host: &inventory.Host{}}).New(spec, nic.PhaseAttaching)
	n.AnyModel, n.Record.Queues = true, 1
	n.Device = qmp.NIC{ID: nic.DeviceID("net0"), MAC: spec.MAC, Queues: 1}
	n.Files.Queues = []*os.File{f}
	t.Cleanup(func() { _ = errors.Join(n.Close(), f.Close()) })
	edit(n)
	return n
}

// plug plugs a NIC, and breaks the step of that name after it was done.
func (m *monitored) plug(t *testing.T, n *backend.NIC, bad string) error {
	t.Helper()
	h, err := m.Plan(within(t), n)
	if err != nil {
		t.Fatal(err)
	}
	return step.Run(within(t), h.Steps, breaking(bad))
}

func asItIs(*backend.NIC) {}

// has demands how many devices, netdevs and files QEMU has.
func (m *monitored) has(t *testing.T, what string, devices, netdevs, files int) {
	t.Helper()
	s := m.q.State()
	if len(s.Devices) != devices || len(s.Netdevs) != netdevs || len(s.FDs) != files {
		t.Errorf("%s: QEMU has %v, %v and files %q, want %d, %d and %d",
			what, s.Devices, s.Netdevs, s.FDs, devices, netdevs, files)
	}
}

// TestMonitorOfEachKind: a NIC is plugged and unplugged by QEMU's own monitor, and by the one that
// libvirt holds and passes commands to. Whatever fails, QEMU has nothing of it.
func TestMonitorOfEachKind(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(*testing.T) *monitored{
		"own":       func(t *testing.T) *monitored { return newMonitored(t, 1) },
		"libvirt's": newRelayed,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := start(t)
			n := m.nic(t, asItIs)
			h, err := m.Plan(within(t), n)
			if err != nil || n.Record.Model != "virtio-net-pci" || n.Device.Bus != "pci.0" {
				t.Fatalf("%+v, %v", n.Device, err)
			}
			for _, s := range h.Steps {
				if err := m.plug(t, m.nic(t, asItIs), s.Name); !errors.Is(err, errBroken) {
					t.Errorf("%s is broken: %v", s.Name, err)
				}
				m.has(t, s.Name+" is broken", 0, 0, 0)
			}
			if err := m.plug(t, n, ""); err != nil {
				t.Fatal(err)
			}
			m.has(t, "plugged", 1, 1, 0)
			if has, err := m.Has(within(t), "net0"); err != nil || !has {
				t.Errorf("has net0: %v, %v", has, err)
			}
			if f, err := m.Monitor.RxFilter(within(t), "net0"); err != nil || f != nil {
				t.Errorf("filter %+v, %v", f, err)
			}
			if err := errors.Join(m.Announce(within(t), "net0"), m.Unplug(within(t), "net0", nil)); err != nil {
				t.Error(err)
			}
			m.has(t, "unplugged", 0, 0, 0)
			m.q.Behave(qmptest.Behaviour{Refuse: map[string]string{"device_add": "no room"}})
			if err := m.plug(t, m.nic(t, asItIs), ""); err == nil || !strings.Contains(err.Error(), "no room") {
				t.Errorf("refused: %v", err)
			}
			m.has(t, "refused", 0, 0, 0)
			m.q.Kill()
			if _, err := m.Has(within(t), "net0"); !errors.Is(err, qmp.ErrClosed) {
				t.Errorf("of a QEMU that has ended: %v", err)
			}
		})
	}
}

// TestRollbackElsewhere: what another monitor of the guest was given has the names of that monitor,
// and is closed there.
func TestRollbackElsewhere(t *testing.T) {
	t.Parallel()
	for _, monitors := range []int{1, 2} {
		m := newMonitored(t, monitors)
		if monitors == 1 {
			if err := m.RollbackElsewhere(within(t), nic.Record{NIC: "net0", Queues: 1}); err != nil {
				t.Errorf("there is no other: %v", err)
			}
			continue
		}
		first, err := qmp.Dial(within(t), m.q.Sockets[0])
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		err = errors.Join(first.GetFD(within(t), "vmnet-net0-q0", f), f.Close(), first.Close())
		if m.has(t, "given", 0, 0, 1); err != nil {
			t.Fatal(err)
		}
		if err := m.RollbackElsewhere(within(t), nic.Record{NIC: "net0", Queues: 1}); err != nil {
			t.Error(err)
		}
		m.has(t, "rolled back", 0, 0, 0)
	}
}
