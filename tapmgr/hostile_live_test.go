package tapmgr_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/procfd"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

// race has the helper exchange the files of fds 3 to 3+n-1 for one another at a hundred further
// fds.
func race(n int) int {
	for i := 0; ; i++ {
		if err := unix.Dup3(3+i%n, 100+i/n%100, 0); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
}

// racing starts a process, called like a QEMU, of a user who exchanges these files for one another.
func (h *host) racing(files ...*os.File) {
	h.Helper()
	h.hostile(order{Race: len(files)}, "qemu-system-x86_64 -name guest=web", files...)
}

// hostile starts a process of a user, whose first file is its fd 3.
func (h *host) hostile(o order, argv string, files ...*os.File) *exec.Cmd {
	h.Helper()
	return h.hostileTo(nil, o, argv, files...)
}

// hostileTo is hostile with its output.
func (h *host) hostileTo(out *os.File, o order, argv string, files ...*os.File) *exec.Cmd {
	h.Helper()
	cmd := h.command(o)
	if out != nil {
		cmd.Stdout = out
	}
	cmd.Args = strings.Fields(argv)
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = files
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: user, Gid: user}
	if err := cmd.Start(); err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
	return cmd
}

// opens counts how often this process opens a file (fanotify(7)): other programs may look at all
// processes meanwhile.
func (h *host) opens(path string) func() int {
	h.Helper()
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK|unix.FAN_REPORT_FID,
		unix.O_RDONLY)
	if err == nil {
		err = unix.FanotifyMark(fd, unix.FAN_MARK_ADD, unix.FAN_OPEN, unix.AT_FDCWD, path)
	}
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { _ = unix.Close(fd) })
	return func() (n int) {
		events := make([]byte, 64<<10)
		length, err := unix.Read(fd, events)
		if err != nil && !errors.Is(err, unix.EAGAIN) {
			h.Fatal(err)
		}
		// struct fanotify_event_metadata: its length first, the process last.
		for rest := events[:max(length,
			0)]; len(rest) >= unix.FAN_EVENT_METADATA_LEN; rest = rest[binary.NativeEndian.Uint32(rest):] {
			if int(binary.NativeEndian.Uint32(rest[unix.FAN_EVENT_METADATA_LEN-4:])) == os.Getpid() {
				n++
			}
		}
		return n
	}
}

// terminal is a pty's terminal, whose other end would see it opened.
func (h *host) terminal() (*os.File, string) {
	h.Helper()
	pty := h.file(os.OpenFile("/dev/ptmx", os.O_RDWR, 0))
	n, err := unix.IoctlGetInt(int(pty.Fd()), unix.TIOCGPTN)
	err = errors.Join(err, unix.IoctlSetPointerInt(int(pty.Fd()), unix.TIOCSPTLCK, 0))
	if err != nil {
		h.Fatal(err)
	}
	path := fmt.Sprintf("/dev/pts/%d", n)
	return h.file(os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)), path
}

// fifo makes one and opens it so that nobody's open waits for its other end.
func (h *host) fifo(name string) (*os.File, string) {
	h.Helper()
	path := filepath.Join(h.TempDir(), name)
	err := unix.Mkfifo(path, 0o600)
	if err != nil {
		h.Fatal(err)
	}
	return h.file(os.OpenFile(path, os.O_RDWR, 0)), path
}

func (h *host) file(f *os.File, err error) *os.File {
	h.Helper()
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { _ = f.Close() })
	return f
}

// TestLiveNothingOfOthersIsOpened: a user's process has, at each of a hundred fds, now what belongs
// to a NIC and now a FIFO, or a terminal. All verbs that look at processes end, and have opened
// neither.
func TestLiveNothingOfOthersIsOpened(t *testing.T) {
	h := newHost(t)
	h.wire()
	made := h.launch(macvtapSpec("web", "net0"))
	h.persistentTaps("web-net1")
	h.markOurs("web-net1")
	theirs, err := tun.Create(nstest.New(t), "web-net1", false) // of the same name as one of ours
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	inode, err := h.ns.Inode()
	if err != nil {
		t.Fatal(err)
	}
	label := h.file(
		procfd.NewLabel(
			fmt.Sprintf(
				"vmnet vm=web nic=net2 type=socket source=none switch=on netns=%d mac=52:54:00:00:00:09 model=e1000 queues=1",
				inode)))
	pty, path := h.terminal()

	watched := map[string]func() int{"the terminal": h.opens(path)}
	for i := range 3 { // namespaces that nobody else has open
		ns, err := netns.New()
		if err != nil {
			t.Fatal(err)
		}
		bait := h.file(ns.File())
		fifo, path := h.fifo("ns")
		watched[fmt.Sprintf("the FIFO of namespace %d", i)] = h.opens(path)
		h.racing(bait, fifo)
		if err := errors.Join(ns.Close(), bait.Close()); err != nil {
			t.Fatal(err)
		}
	}
	for name, bait := range map[string]*os.File{
		"tun": theirs.Queues()[0], "tap9": made.NICs[0].Files.Queues[0], "label": label,
	} {
		fifo, path := h.fifo(name)
		watched["the FIFO "+name] = h.opens(path)
		h.racing(bait, fifo, pty)
	}
	ctx := h.context(20 * time.Second)
	verbs := map[string]func() error{
		"list":      func() error { _, err := h.ListAll(ctx, ""); return err },
		"show":      func() error { _, err := h.Show(ctx, "web"); return err },
		"check":     func() error { _, err := h.Check(ctx); return err },
		"reconcile": func() error { _, err := h.Reconcile(ctx, true); return err },
		"count":     func() error { _, err := h.Host().Owned(user); return err },
		"mirrors":   func() error { _, err := h.Mirrors(ctx); return err },
		"detach": func() error {
			_, err := h.Detach(ctx, tapmgr.DetachSpec{Target: nic.Target{VM: "nobody"}, NIC: "net0"})
			if strings.Contains(fmt.Sprint(err), "no such guest") {
				return nil
			}
			return err
		},
	}
	for range 3 {
		for name, verb := range verbs {
			if err := verb(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	for name, opened := range watched {
		if n := opened(); n != 0 {
			t.Errorf("%s was opened %d times", name, n)
		}
	}
}

// TestContextEndsAnInventory: who interrupts a verb does not wait for the look at processes.
func TestContextEndsAnInventory(t *testing.T) {
	h := newUserHost(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("interrupted")
	cancel(why)
	for name, verb := range map[string]func() error{
		"list":      func() error { _, err := h.ListAll(ctx, ""); return err },
		"check":     func() error { _, err := h.Check(ctx); return err },
		"reconcile": func() error { _, err := h.Reconcile(ctx, false); return err },
		"show":      func() error { _, err := h.Show(ctx, "web"); return err },
	} {
		if err := verb(); !errors.Is(err, why) {
			t.Errorf("%s: %v, want %v", name, err, why)
		}
	}
}

// TestOpenNetnsOpensNothingElse: a path that is no network namespace's is refused without having
// been opened.
func TestOpenNetnsOpensNothingElse(t *testing.T) {
	h := &host{TB: t}
	fifo, path := h.fifo("fifo")
	opened := h.opens(path)
	for _, p := range []string{
		path, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fifo.Fd()), "/proc/self/ns/mnt",
		"/proc/self/ns/user", t.TempDir(),
	} {
		if ns, err := netns.Open(p); err == nil || !strings.Contains(err.Error(), "is not a network namespace") {
			_ = ns.Close()
			t.Errorf("%s: %v", p, err)
		}
	}
	if n := opened(); n != 0 {
		t.Errorf("the FIFO was opened %d times", n)
	}
}
