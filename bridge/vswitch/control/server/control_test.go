package server

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/control"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/endpoint"
	"vmnet/internal/leaktest"
	"vmnet/internal/nstest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// patience limits the wait for things that take no time on an idle machine.
const patience = 20 * time.Second

// socketFiles returns both ends of a socket port, which the test closes at its end.
func socketFiles(t testing.TB) (near, far *os.File) {
	t.Helper()
	near, far, err := endpoint.SocketFiles()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = near.Close(), far.Close() })
	return near, far
}

// serve runs a switch and its server until the test ends.
func serve(t testing.TB) (path string, s *Server) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "sw")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	sw := vswitch.New(vswitch.Config{})
	s = New(sw, control.Info{Name: "sw", Version: "1", Ageing: 300})
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		s.stop()
		if err := errors.Join(<-done, sw.Close(), l.Close()); err != nil {
			t.Error(err)
		}
		s.Close()
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("its socket: %v", err)
		}
	})
	return path, s
}

func soon(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func client(t testing.TB, path string) *control.Client {
	t.Helper()
	c, err := control.Dial(soon(t), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// guest adds a socket port, and returns the guest's end.
func guest(t testing.TB, c *control.Client, p control.Port, pidfd ...*os.File) *os.File {
	t.Helper()
	near, far, err := endpoint.SocketFiles()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = far.Close() })
	defer near.Close()
	p.Kind = control.Socket
	if err := c.AddPort(soon(t), p, append(pidfd, near)...); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(int(far.Fd()), true); err != nil {
		t.Fatal(err)
	}
	return far
}

// station returns a guest's address.
func station(n byte) []byte { return []byte{2, 0, 0, 0, 0, n} }

func frame(dst, src []byte) []byte {
	return append(append(append(bytes.Clone(dst), src...), 0x88, 0xb5), make([]byte, 46)...)
}

// awaitFrame reads until a frame arrives.
func awaitFrame(t testing.TB, f *os.File) []byte {
	t.Helper()
	b, n := make([]byte, 2000), 0
	nstest.Eventually(t, patience, "a frame arrives", func() (ok bool) {
		var err error
		n, err = unix.Read(int(f.Fd()), b)
		return err == nil
	})
	return b[:n]
}

func send(t testing.TB, f *os.File, frame []byte) {
	t.Helper()
	if _, err := unix.Write(int(f.Fd()), frame); err != nil {
		t.Fatal(err)
	}
}

func names(t testing.TB, c *control.Client) (all []string) {
	t.Helper()
	ports, err := c.Ports(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range ports {
		all = append(all, p.Name)
	}
	return all
}

func TestGuests(t *testing.T) {
	path, _ := serve(t)
	c := client(t, path)
	a := guest(t, c, control.Port{Name: "a", Label: "vmnet vm=P2 nic=net0", Config: vport.Config{MaxAddresses: 4}})
	b := guest(t, c, control.Port{Name: "b"})
	all := bytes.Repeat([]byte{0xff}, 6)
	send(t, a, frame(all, station(1)))
	if got := awaitFrame(t, b); !bytes.Equal(got, frame(all, station(1))) {
		t.Errorf("%x", got)
	}
	ports, err := c.Ports(soon(t))
	if err != nil || len(ports) != 2 {
		t.Fatalf("%+v, %v", ports, err)
	}
	if p := ports[0]; p.Name != "a" || p.Kind != control.Socket || p.Label != "vmnet vm=P2 nic=net0" ||
		p.Config.MaxAddresses != 4 || p.Stats == nil {
		t.Errorf("%+v", p)
	}
	nstest.Eventually(t, patience, "the frame is counted", func() bool {
		ports, _ := c.Ports(soon(t))
		return len(ports) == 2 && ports[0].Stats.Total().RxFrames == 1
	})
	entries, err := c.FDB(soon(t))
	if err != nil || len(entries) != 1 || entries[0] != (control.FDBEntry{MAC: "02:00:00:00:00:01", Port: "a"}) {
		t.Errorf("%+v, %v", entries, err)
	}
	info, err := c.Info(soon(t))
	if err != nil || info.Name != "sw" || info.PID != os.Getpid() || info.UID != os.Geteuid() || info.Ports != 2 ||
		info.FDB.Entries != 1 || info.Version != "1" || info.Started.IsZero() || info.Ageing != 300 {
		t.Errorf("%+v, %v", info, err)
	}
	if err := c.SetLabel(soon(t), "a", "other"); err != nil {
		t.Error(err)
	}
	if err := c.SetPort(soon(t), "a", vport.Config{Settings: brport.Settings{Isolated: true}}); err != nil {
		t.Error(err)
	}
	for what, err := range map[error]error{
		fs.ErrNotExist:    c.SetPort(soon(t), "x", vport.Config{}),
		brport.ErrInvalid: c.SetPort(soon(t), "a", vport.Config{MTU: 9000}),
	} {
		if !errors.Is(err, what) {
			t.Errorf("%v, want %v", err, what)
		}
	}
	if err := c.RemovePort(soon(t), "b"); err != nil {
		t.Error(err)
	}
	if ports, err := c.Ports(soon(t)); err != nil || len(ports) != 1 || ports[0].Label != "other" ||
		!ports[0].Config.Isolated || ports[0].Config.MaxAddresses != 0 {
		t.Errorf("%+v, %v", ports, err)
	}
	if entries, err := c.FDB(soon(t)); err != nil || len(entries) != 1 {
		t.Errorf("its address was forgotten: %+v, %v", entries, err)
	}
}

func TestFDB(t *testing.T) {
	path, _ := serve(t)
	c := client(t, path)
	a, b := guest(t, c, control.Port{Name: "a"}), guest(t, c, control.Port{Name: "b"})
	for i, f := range []*os.File{a, b} {
		send(t, f, frame(station(99), station(byte(i+1))))
	}
	fixed := control.FDBEntry{MAC: "02:00:00:00:00:09", Port: "b", Static: true}
	if err := c.AddStatic(soon(t), fixed); err != nil {
		t.Error(err)
	}
	known := func(n int) func() bool {
		return func() bool {
			all, err := c.FDB(soon(t))
			return err == nil && len(all) == n
		}
	}
	nstest.Eventually(t, patience, "three addresses are known", known(3))
	if err := c.Flush(soon(t), "a"); err != nil {
		t.Error(err)
	}
	nstest.Eventually(t, patience, "the addresses of b remain", known(2))
	if err := c.Flush(soon(t), ""); err != nil {
		t.Error(err)
	}
	if all, err := c.FDB(soon(t)); err != nil || len(all) != 1 || all[0] != fixed {
		t.Errorf("%+v, %v", all, err)
	}
	if err := c.RemoveStatic(soon(t), fixed); err != nil {
		t.Error(err)
	}
	for _, test := range []struct {
		what string
		err  error
		want error
	}{
		{"remove it again", c.RemoveStatic(soon(t), fixed), fs.ErrNotExist},
		{
			"an address of no port", c.AddStatic(soon(t), control.FDBEntry{MAC: "02:00:00:00:00:09", Port: "x"}),
			fs.ErrNotExist,
		},
		{
			"a multicast address", c.AddStatic(soon(t), control.FDBEntry{MAC: "03:00:00:00:00:09", Port: "a"}),
			brport.ErrInvalid,
		},
		{"no address", c.AddStatic(soon(t), control.FDBEntry{MAC: "x", Port: "a"}), brport.ErrInvalid},
		{
			"a VLAN too many", c.AddStatic(soon(t), control.FDBEntry{MAC: "02:00:00:00:00:09", VLAN: 4095, Port: "a"}),
			brport.ErrInvalid,
		},
		{
			"a VLAN where none is filtered",
			c.AddStatic(soon(t), control.FDBEntry{MAC: "02:00:00:00:00:09", VLAN: 7, Port: "a"}), brport.ErrInvalid,
		},
		{"flush no port", c.Flush(soon(t), "x"), fs.ErrNotExist},
	} {
		if !errors.Is(test.err, test.want) {
			t.Errorf("%s: %v", test.what, test.err)
		}
	}
}

func TestStop(t *testing.T) {
	path, s := serve(t)
	c := client(t, path)
	go func() {
		<-s.stopped
		nstest.Eventually(t, patience, "the client waits until the ports are removed", func() bool {
			return nstest.Waiting("bridge/vswitch/control.(*Client).Stop") == 1
		})
		s.Close()
	}()
	if err := c.Stop(soon(t)); err != nil {
		t.Error(err)
	}
	if _, err := c.Info(soon(t)); err == nil {
		t.Error("the switch reports itself")
	}
}
