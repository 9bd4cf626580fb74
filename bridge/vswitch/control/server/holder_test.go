package server

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch/control"
	"vmnet/internal/nstest"
)

// sleeper starts a process, and returns it with its pidfd.
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
		t.Errorf("its addresses remain: %+v", all)
	}

	// The wire may end first: QEMU has closed the guest's end, and still runs.
	cmd, pidfd = sleeper(t)
	f = guest(t, c, control.Port{Name: "held", Holder: cmd.Process.Pid}, pidfd)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	other := guest(t, c, control.Port{Name: "other"})
	nstest.Eventually(t, patience, "the port is removed with its wire", func() bool {
		// Flooded: only a sender notices a closed socket.
		send(t, other, frame(station(9), station(2)))
		return len(names(t, c)) == 2
	})

	// A port without a holder stays, and reports why it has ended.
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

// lifeline makes a lifeline for a port. The caller closes its write end.
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

// TestPortGoesWithItsLifeline ends the first process of a guest before the others, as QEMU does
// with -daemonize, or lets it close the lifeline, as a program does that closes all unknown files.
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
		for range 50 { // the end of the port would be seen in one of these
			ports, err := c.Ports(soon(t))
			if err != nil || len(ports) != 1 || ports[0].Lifeline != inode {
				t.Fatalf("%s: %+v, %v", last, ports, err)
			}
		}
		if err := ends[1](); err != nil {
			t.Fatal(err)
		}
		nstest.Eventually(t, patience, "the port is removed with its "+last, func() bool {
			return len(names(t, c)) == 0
		})
	}
}

func TestLifelineRefused(t *testing.T) {
	path, _ := serve(t)
	c := client(t, path)
	near, far := socketFiles(t)
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
		t.Errorf("a lifeline without a holder: %v", err)
	}
}

func TestHolderRefused(t *testing.T) {
	path, _ := serve(t)
	c := client(t, path)
	near, _ := socketFiles(t)
	cmd, pidfd := sleeper(t)
	dead, deadFD := sleeper(t)
	_ = dead.Process.Kill()
	_ = dead.Wait()
	zombie, zombieFD := sleeper(t)
	_ = zombie.Process.Kill()
	nstest.Eventually(t, patience, "the process is a zombie", func() bool { return readable(zombieFD.Fd()) })
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

// TestHolderUnnamed checks how a switch on an old kernel recognises a pidfd.
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
		t.Errorf("a pipe was taken for the pidfd of process %d", pid)
	}
}
