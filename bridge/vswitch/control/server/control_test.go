package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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

// patience is how long things may take that need no time on an idle machine.
const patience = 20 * time.Second

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

// guest plugs a socket port in, and returns the guest's end.
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

// station is a guest's address.
func station(n byte) []byte { return []byte{2, 0, 0, 0, 0, n} }

func frame(dst, src []byte) []byte {
	return append(append(append(bytes.Clone(dst), src...), 0x88, 0xb5), make([]byte, 46)...)
}

// awaitFrame reads until a frame comes.
func awaitFrame(t testing.TB, f *os.File) []byte {
	t.Helper()
	b, n := make([]byte, 2000), 0
	nstest.Eventually(t, patience, "a frame comes", func() (ok bool) {
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
	if err := c.RemovePort(soon(t), "b"); err != nil {
		t.Error(err)
	}
	if ports, err := c.Ports(soon(t)); err != nil || len(ports) != 1 || ports[0].Label != "other" {
		t.Errorf("%+v, %v", ports, err)
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
	nstest.Eventually(t, patience, "b's are left", known(2))
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

// sleeper is a process, and a pidfd of it.
func sleeper(t testing.TB) (*exec.Cmd, *os.File) {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd, pidfdOf(t, cmd.Process.Pid)
}

func pidfdOf(t testing.TB, pid int) *os.File {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestPortGoesWithItsHolder(t *testing.T) {
	path, s := serve(t)
	c := client(t, path)
	cmd, pidfd := sleeper(t)
	f := guest(t, c, control.Port{Name: "held", Holder: cmd.Process.Pid}, pidfd)
	guest(t, c, control.Port{Name: "free"})
	send(t, f, frame(station(9), station(1)))
	if got := names(t, c); fmt.Sprint(got) != "[free held]" {
		t.Fatal(got)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	nstest.Eventually(t, patience, "the port is gone", func() bool { return len(names(t, c)) == 1 })
	if all := s.ports.sw.FDB().Dump(); len(all) != 0 {
		t.Errorf("its addresses are left: %+v", all)
	}

	// Its wire may end first: QEMU has closed the guest's end, and stays.
	cmd, pidfd = sleeper(t)
	f = guest(t, c, control.Port{Name: "held", Holder: cmd.Process.Pid}, pidfd)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	other := guest(t, c, control.Port{Name: "other"})
	nstest.Eventually(t, patience, "the port is gone with its wire", func() bool {
		send(t, other, frame(station(9), station(2))) // flooded: only who sends to a closed socket hears of it
		return len(names(t, c)) == 2
	})

	// What has no holder stays, and tells why it ended.
	if err := c.RemovePort(soon(t), "free"); err != nil {
		t.Fatal(err)
	}
	f = guest(t, c, control.Port{Name: "free"})
	_ = f.Close()
	nstest.Eventually(t, patience, "the port has ended", func() bool {
		send(t, other, frame(station(9), station(2)))
		ports, _ := c.Ports(soon(t))
		return len(ports) == 2 && ports[0].Stats.Ended != ""
	})
}

// lifeline is one for a port, whose writing end the caller closes.
func lifeline(t *testing.T) (inode uint64, read, write *os.File) {
	t.Helper()
	inode, read, write, err := control.NewLifeline()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = read.Close()
		_ = write.Close()
	})
	return inode, read, write
}

// TestPortGoesWithItsLifeline: the process that the guest was given to ends first, as of a QEMU
// with -daemonize, or passes nothing on, as a program that closes what it does not know.
func TestPortGoesWithItsLifeline(t *testing.T) {
	path, _ := serve(t)
	c := client(t, path)
	for _, last := range []string{"lifeline", "process"} {
		cmd, pidfd := sleeper(t)
		inode, read, write := lifeline(t)
		guest(t, c, control.Port{Name: "held", Holder: cmd.Process.Pid, Lifeline: inode}, pidfd, read)
		ends := []func() error{cmd.Process.Kill, write.Close}
		if last == "process" {
			slices.Reverse(ends)
		} else if _, err := write.WriteString("a guest that plays with it"); err != nil {
			t.Fatal(err)
		}
		if err := ends[0](); err != nil {
			t.Fatal(err)
		}
		if last == "lifeline" {
			_ = cmd.Wait()
		}
		for range 50 { // its end would be seen within one of them
			ports, err := c.Ports(soon(t))
			if err != nil || len(ports) != 1 || ports[0].Lifeline != inode {
				t.Fatalf("%s: %+v, %v", last, ports, err)
			}
		}
		if err := ends[1](); err != nil {
			t.Fatal(err)
		}
		nstest.Eventually(t, patience, "the port is gone with its "+last, func() bool { return len(names(t, c)) == 0 })
	}
}

func TestLifelineRefused(t *testing.T) {
	path, _ := serve(t)
	c := client(t, path)
	near, far, err := endpoint.SocketFiles()
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	defer far.Close()
	cmd, pidfd := sleeper(t)
	inode, read, _ := lifeline(t)
	for what, files := range map[string][]*os.File{
		"another pipe": {pidfd, read}, "no pipe": {pidfd, far}, "no lifeline": {pidfd}, "a pidfd": {pidfd, pidfd},
	} {
		p := control.Port{Name: "p", Kind: control.Socket, Holder: cmd.Process.Pid, Lifeline: inode + 1}
		if err := c.AddPort(soon(t), p, append(files, near)...); !errors.Is(err, brport.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := (control.Port{Name: "p", Kind: control.Socket, Lifeline: inode}).Validate(); !errors.Is(err,
		brport.ErrInvalid) {
		t.Errorf("a lifeline of nobody: %v", err)
	}
}

func TestHolderRefused(t *testing.T) {
	path, _ := serve(t)
	c := client(t, path)
	near, far, err := endpoint.SocketFiles()
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	defer far.Close()
	cmd, pidfd := sleeper(t)
	dead, deadFD := sleeper(t)
	_ = dead.Process.Kill()
	_ = dead.Wait()
	zombie, zombieFD := sleeper(t)
	_ = zombie.Process.Kill()
	nstest.Eventually(t, patience, "it is a zombie", func() bool { return readable(zombieFD.Fd()) })
	for _, test := range []struct {
		what  string
		pid   int
		file  *os.File
		wrong bool
	}{
		{"another process", 1, pidfd, true},
		{"no pidfd", cmd.Process.Pid, near, true},
		{"a dead process", dead.Process.Pid, deadFD, false},
		{"a zombie", zombie.Process.Pid, zombieFD, false},
	} {
		err := c.AddPort(soon(t), control.Port{Name: "p", Kind: control.Socket, Holder: test.pid}, test.file, near)
		if err == nil || errors.Is(err, brport.ErrInvalid) != test.wrong {
			t.Errorf("%s: %v", test.what, err)
		}
	}
	if got := names(t, c); len(got) != 0 {
		t.Error(got)
	}
}

// TestHolderUnnamed is how an old kernel's switch knows a pidfd.
func TestHolderUnnamed(t *testing.T) {
	_, pidfd := sleeper(t)
	gone, goneFD := sleeper(t)
	_ = gone.Process.Kill()
	_ = gone.Wait()
	for _, test := range []struct {
		f    *os.File
		want int
	}{{pidfd, anyProcess}, {goneFD, -1}} {
		w, err := copyWaited(test.f, "pidfd")
		if err != nil {
			t.Fatal(err)
		}
		h := &holder{pidfd: w}
		if got, err := h.unnamed(); got != test.want || err != nil {
			t.Errorf("%d, %v; want %d", got, err, test.want)
		}
		_ = h.close()
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	copied, err := copyWaited(r, "pidfd")
	if err != nil {
		t.Fatal(err)
	}
	h := &holder{pidfd: copied}
	defer h.close() //nolint:errcheck
	if pid, err := h.unnamed(); err == nil {
		t.Errorf("a pipe is process %d's", pid)
	}
}

func TestStop(t *testing.T) {
	path, s := serve(t)
	c := client(t, path)
	go func() {
		<-s.stopped
		nstest.Eventually(t, patience, "the client waits for the ports to go", func() bool {
			return nstest.Waiting("bridge/vswitch/control.(*Client).Stop") == 1
		})
		s.Close()
	}()
	if err := c.Stop(soon(t)); err != nil {
		t.Error(err)
	}
	if _, err := c.Info(soon(t)); err == nil {
		t.Error("it tells of itself")
	}
}
