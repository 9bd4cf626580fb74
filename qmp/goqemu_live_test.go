package qmp_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	foreign "github.com/digitalocean/go-qemu/qmp"
	"github.com/digitalocean/go-qemu/qmp/raw"
	"github.com/google/go-cmp/cmp"

	"vmnet/internal/nstest"
	"vmnet/qmp"
	"vmnet/qmp/goqemu"
)

// queries are the typed commands of go-qemu that are right for the QEMUs of today.
var queries = map[string]func(*raw.Monitor) (any, error){
	"name":              func(m *raw.Monitor) (any, error) { return m.QueryName() },
	"version":           func(m *raw.Monitor) (any, error) { return m.QueryVersion() },
	"status":            func(m *raw.Monitor) (any, error) { return m.QueryStatus() },
	"commands":          func(m *raw.Monitor) (any, error) { return m.QueryCommands() },
	"devices":           func(m *raw.Monitor) (any, error) { return m.QomList("/machine/peripheral") },
	"no such object":    func(m *raw.Monitor) (any, error) { return m.QomList("/nowhere") },
	"types":             func(m *raw.Monitor) (any, error) { return m.QomListTypes(ref("pci-device"), ref(false)) },
	"device properties": func(m *raw.Monitor) (any, error) { return m.DeviceListProperties("virtio-net-pci") },
	"filters":           func(m *raw.Monitor) (any, error) { return m.QueryRxFilter(nil) },
	"a filter":          func(m *raw.Monitor) (any, error) { return m.QueryRxFilter(ref("n2")) },
	"no such filter":    func(m *raw.Monitor) (any, error) { return m.QueryRxFilter(ref("none")) },
}

func ref[T any](v T) *T { return &v }

// startWithNICs starts a QEMU with two monitors and as many NICs.
func startWithNICs(t *testing.T) (ours, theirs string) {
	t.Helper()
	theirs = filepath.Join(t.TempDir(), "second")
	ours = qmp.StartQEMU(t, "pc", "-name", "guest=foreign", "-qmp", "unix:"+theirs+",server=on,wait=off",
		"-netdev", "hubport,hubid=1,id=h1", "-device", "virtio-net-pci,id=n1,netdev=h1,romfile=,mac=52:54:00:00:00:01",
		"-netdev", "hubport,hubid=1,id=h2", "-device", "virtio-net-pci,id=n2,netdev=h2,romfile=,mac=52:54:00:00:00:02")
	return ours, theirs
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func dial(t *testing.T, path string) *qmp.Conn {
	t.Helper()
	var c *qmp.Conn
	nstest.Eventually(t, 20*time.Second, "QEMU listens", func() bool { // its socket's name is there before
		var err error
		c, err = qmp.Dial(within(t, 20*time.Second), path)
		if err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatal(err)
		}
		return err == nil
	})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// byGoQEMU runs a query with go-qemu's own client. It connects for each: the client reads into the
// buffer of the reply before (https://github.com/digitalocean/go-qemu/issues/226).
func byGoQEMU(t *testing.T, path string, query func(*raw.Monitor) (any, error)) (any, error) {
	t.Helper()
	s, err := foreign.NewSocketMonitor("unix", path, 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Disconnect()
	if err := s.Connect(); err != nil {
		t.Fatal(err)
	}
	return query(raw.NewMonitor(s))
}

// TestLiveForeignClient: go-qemu's client and ours read the same of one QEMU, and refusals in the
// same words.
func TestLiveForeignClient(t *testing.T) {
	path, second := startWithNICs(t)
	m := goqemu.New(within(t, 60*time.Second), dial(t, path))
	defer m.Disconnect()
	for name, query := range queries {
		got, err := query(raw.NewMonitor(m))
		want, errWant := byGoQEMU(t, second, query)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-go-qemu +ours):\n%s", name, diff)
		}
		var refused *qmp.Error
		switch {
		case err == nil && errWant == nil:
		case !errors.As(err, &refused) || errWant == nil || refused.Desc != errWant.Error():
			t.Errorf("%s: %v, go-qemu has %v", name, err, errWant)
		}
	}
}

// TestLiveGoQEMU uses a QEMU by go-qemu's commands over our connection.
func TestLiveGoQEMU(t *testing.T) {
	path, _ := startWithNICs(t)
	c := dial(t, path)
	ctx := within(t, 60*time.Second)
	m := goqemu.New(ctx, c)
	defer m.Disconnect()
	r := raw.NewMonitor(m)

	version, err := r.QueryVersion()
	if major, minor, micro := c.Version(); err != nil ||
		version.Qemu != (raw.VersionTriple{Major: int64(major), Minor: int64(minor), Micro: int64(micro)}) {
		t.Errorf("version %+v, %v", version, err)
	}
	if status, err := r.QueryStatus(); err != nil || status.Running || status.Status != raw.RunStatePrelaunch {
		t.Errorf("status %+v, %v", status, err)
	}
	filters, err := r.QueryRxFilter(nil)
	if err != nil || len(filters) != 2 {
		t.Fatalf("filters %+v, %v", filters, err)
	}
	for _, f := range filters {
		ours, err := c.RxFilter(ctx, f.Name)
		if err != nil || ours.MainMAC != f.MainMac || len(ours.VLANTable) != len(f.VlanTable) ||
			ours.Multicast != f.Multicast.String() || !f.Promiscuous {
			t.Errorf("filter %+v, ours %+v, %v", f, ours, err)
		}
	}

	schema, err := m.Run([]byte(`{"execute": "query-qmp-schema", "id": "mine"}`))
	var reply struct {
		Return []struct{ Name string }
		ID     string
	}
	if err := errors.Join(err, json.Unmarshal(schema, &reply)); err != nil || len(schema) < 64<<10 ||
		len(reply.Return) < 100 || reply.ID != "mine" {
		t.Errorf("schema: %d bytes with %d entries, id %q, %v", len(schema), len(reply.Return), reply.ID, err)
	}
	if err := r.DeviceDel("none"); !errors.Is(err, qmp.ErrDeviceNotFound) {
		t.Errorf("a device that is not there: %v", err)
	}

	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	const named = `"arguments": {"fdname": "null"}}`
	if _, err := m.RunWithFile([]byte(`{"execute": "getfd", `+named), null); err != nil {
		t.Error(err)
	}
	if _, err := m.Run([]byte(`{"execute": "closefd", ` + named)); err != nil {
		t.Errorf("the file has not come: %v", err)
	}
	var refused *qmp.Error
	if _, err := m.RunWithFile([]byte(`{"execute": "getfd", `+named), nil); !errors.As(err, &refused) {
		t.Errorf("no file: %v", err)
	}

	events, err := m.Events(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.Cont(), r.Stop()); err != nil { // the firmware alone runs
		t.Error(err)
	}
	for _, want := range []string{"RESUME", "STOP"} {
		if e := <-events; e.Event != want || e.Data != nil || e.Timestamp.Seconds < 1e9 {
			t.Errorf("event %+v, want %s", e, want)
		}
	}

	// A stopped QEMU holds no caller up for longer than its context.
	pid := c.Peer().PID
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(pid, syscall.SIGCONT)
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	brief := goqemu.New(short, c)
	defer brief.Disconnect()
	if _, err := raw.NewMonitor(brief).QueryName(); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("of a stopped QEMU: %v", err)
	}
}
