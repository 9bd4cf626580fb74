package tun_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/procfd"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/leaktest"
	"vmnet/internal/nstest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestLiveTapLivesAsLongAsItsQueues(t *testing.T) {
	ns := nstest.New(t)
	nl := nstest.Handle(t, ns)
	tap, err := tun.Create(ns, "tap0", true)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := tap.AddQueue(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := nl.LinkByName("tap0"); err != nil {
		t.Errorf("while open: %v", err)
	}
	if got := queues(t, ns, "tap0"); got != 4 {
		t.Errorf("this process holds %d queues, want 4", got)
	}
	if err := tap.Close(); err != nil {
		t.Fatal(err)
	}
	if l, err := nl.LinkByName("tap0"); err == nil {
		t.Errorf("after Close the link still exists: %+v", l)
	}
	if err := tap.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}

func TestLiveCreateIsExclusive(t *testing.T) {
	ns := nstest.New(t)
	tap, err := tun.Create(ns, "tap0", false)
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	if _, err := tun.Create(ns, "tap0", false); !errors.Is(err, unix.EBUSY) {
		t.Errorf("name taken: got %v, want EBUSY", err)
	}
	if err := tap.AddQueue(); err == nil {
		t.Error("a second queue of a single-queue tap was opened")
	}
}

func TestLiveNobodyElseAddsAQueue(t *testing.T) {
	ns := nstest.New(t)
	tap, err := tun.Create(ns, "tap0", true)
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	// On a thread that ends: it keeps the other user's ids.
	err = ns.Do(func() error {
		fd, err := unix.Open(tun.Device, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		const nobody = 65534
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 {
			return errno
		}
		ifr, err := unix.NewIfreq("tap0")
		if err != nil {
			return err
		}
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_MULTI_QUEUE)
		return unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	})
	if !errors.Is(err, unix.EPERM) {
		t.Errorf("another user added a queue: %v, want EPERM", err)
	}
}

func TestLiveHoldersTellNetnsApart(t *testing.T) {
	a, b := nstest.New(t), nstest.New(t)
	open := func(ns *netns.NS) *tun.Tap {
		t.Helper()
		tap, err := tun.Create(ns, "same", false)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { tap.Close() })
		return tap
	}
	open(a)
	open(b)
	for _, ns := range []*netns.NS{a, b} {
		if got := queues(t, ns, "same"); got != 1 {
			t.Errorf("this process holds %d queues there, want 1", got)
		}
	}
}

// queues counts the fds of this process that are queues of a tap.
func queues(t *testing.T, ns *netns.NS, name string) (n int) {
	t.Helper()
	inode, err := ns.Inode()
	if err != nil {
		t.Fatal(err)
	}
	procfd.Of(os.Getpid(), func(f procfd.File) {
		if tun.LooksLikeQueue(f) && tun.InterfaceOf(f) == name && tun.InNetns(f, inode) {
			n++
		}
	})
	return n
}

func TestLiveOwnQueueOf(t *testing.T) {
	a, b := nstest.New(t), nstest.New(t)
	tap, err := tun.Create(a, "same", false)
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	inodeA, errA := a.Inode()
	inodeB, errB := b.Inode()
	unattached, errC := os.OpenFile(tun.Device, os.O_RDWR, 0)
	// A file with the name of the clone device.
	namesake, errD := os.Create(filepath.Join(t.TempDir(), "tun"))
	if err := errors.Join(errA, errB, errC, errD); err != nil {
		t.Fatal(err)
	}
	defer unattached.Close()
	defer namesake.Close()
	fd := int(tap.Queues()[0].Fd())
	for _, c := range []struct {
		what  string
		fd    int
		name  string
		inode uint64
		want  bool
	}{
		{"the tap", fd, "same", inodeA, true},
		{"in another netns", fd, "same", inodeB, false},
		{"another name", fd, "sam", inodeA, false},
		{"no name", int(unattached.Fd()), "", inodeA, false},
		{"another file", int(namesake.Fd()), "same", inodeA, false},
		{"no file", -1, "same", inodeA, false},
	} {
		if got := tun.OwnQueueOf(c.fd, c.name, c.inode); got != c.want {
			t.Errorf("%s: %v", c.what, got)
		}
	}
}
