package qmptest_test

import (
	"context"
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"vmnet/internal/vmm/qemu"
	"vmnet/internal/vmm/qmptest"
	"vmnet/qmp"
)

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func dial(t *testing.T, q *qmptest.QEMU) *qmp.Conn {
	t.Helper()
	c, err := qmp.Dial(within(t, 20*time.Second), q.Sockets[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// held counts the process's files that are the other end of a pipe: a read fails with EOF once
// nobody holds it.
func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close(); _ = w.Close() })
	return r, w
}

// TestANICComesAndGoes: the process is found like a QEMU, takes a NIC's files, holds them as long
// as its netdev is there, and closes them then.
func TestANICComesAndGoes(t *testing.T) {
	q := qmptest.Start(t, qmptest.Config{Name: "P2"})
	p, err := qemu.ByPID(q.PID)
	if err != nil || p.Name != "P2" {
		t.Fatalf("found %+v, %v", p, err)
	}
	if all, err := p.Sockets(); err != nil || len(all) != 1 || all[0].Name != q.Sockets[0] || !all[0].Told {
		t.Errorf("monitors %+v, %v", all, err)
	}
	c := dial(t, q)
	r, w := pipe(t)
	n := qmp.NIC{ID: "vmnet-net0"}
	if err := c.GetFD(within(t, 20*time.Second), "q0", w); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	if got := q.State().FDs; !slices.Equal(got, []string{"q0"}) {
		t.Errorf("files %q", got)
	}
	ctx := within(t, 20*time.Second)
	netdev := map[string]any{"type": "tap", "id": qmp.NetdevID(n.ID), "fds": "q0"}
	device := map[string]any{"driver": "virtio-net-pci", "id": n.ID, "netdev": qmp.NetdevID(n.ID)}
	for _, err := range []error{c.NetdevAdd(ctx, netdev), c.DeviceAdd(ctx, device)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	var refusal *qmp.Error
	if err := c.NetdevAdd(ctx, netdev); !errors.As(err, &refusal) {
		t.Errorf("the same netdev again: %v", err)
	}
	if has, err := c.HasDevice(ctx, n.ID); !has || err != nil {
		t.Errorf("has the device: %v, %v", has, err)
	}
	if port, err := c.FreePortFor(ctx, "virtio-net-pci"); err != nil || port.Bus != "pci.0" {
		t.Errorf("free port %+v, %v", port, err)
	}
	if err := r.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the netdev does not hold its file: %v", err)
	}
	if err := c.Unplug(ctx, n.ID, nil); err != nil {
		t.Fatal(err)
	}
	if err := r.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the file is still open after the netdev has gone")
	}
	if s := q.State(); len(s.Devices)+len(s.Netdevs)+len(s.FDs) > 0 {
		t.Errorf("left: %+v", s)
	}
}

// TestBehaviour: what a test asks for is what the client gets.
func TestBehaviour(t *testing.T) {
	q := qmptest.Start(t, qmptest.Config{Name: "P2", Monitors: 2})
	if len(q.Sockets) != 2 {
		t.Fatalf("monitors %q", q.Sockets)
	}
	c := dial(t, q)
	q.Behave(qmptest.Behaviour{Refuse: map[string]string{"query-name": "not today"}, CPUs: 3})
	if _, err := c.Name(within(t, 20*time.Second)); err == nil {
		t.Error("the command that is to be refused succeeded")
	}
	if n, err := c.CPUs(within(t, 20*time.Second)); n != 3 || err != nil {
		t.Errorf("%d CPUs, %v", n, err)
	}
	q.Behave(qmptest.Behaviour{Ignore: []string{"query-name"}})
	if name, err := c.Name(within(t, 50*time.Millisecond)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the command that is to be ignored: %q, %v", name, err)
	}
	if got := q.State().Asked; !slices.Equal(got, []string{"query-name", "query-cpus-fast", "query-name"}) {
		t.Errorf("asked %q", got)
	}
	q.Kill()
	if _, err := qemu.ByPID(q.PID); !errors.Is(err, qemu.ErrNotFound) {
		t.Errorf("killed: %v", err)
	}
}
