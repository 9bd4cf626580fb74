package netns_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/leaktest"
	"vmnet/internal/nstest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestLiveDoRunsInsideAndLeavesTheCallerWhereItWas(t *testing.T) {
	ns := nstest.New(t)
	before, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	var inside []net.Interface
	if err := ns.Do(func() (err error) { inside, err = net.Interfaces(); return err }); err != nil {
		t.Fatal(err)
	}
	if len(inside) != 1 || inside[0].Name != "lo" {
		t.Errorf("inside: %v, want only lo", inside)
	}
	if after, _ := os.Readlink("/proc/thread-self/ns/net"); after != before {
		t.Errorf("the caller moved from %s to %s", before, after)
	}
	a, err := ns.Inode()
	if err != nil {
		t.Fatal(err)
	}
	same, err := netns.Open(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer same.Close()
	if b, _ := same.Inode(); a != b {
		t.Errorf("opened again by path: inode %d, want %d", b, a)
	}
}

func TestOpenRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"no-such-netns", "..", ".", file, "/proc/self/ns/mnt"} {
		if ns, err := netns.Open(name); err == nil {
			ns.Close()
			t.Errorf("Open(%q) succeeded", name)
		}
	}
}

func TestLiveOwnerIsTheUserNamespace(t *testing.T) {
	ns := nstest.New(t)
	var want syscall.Stat_t
	if err := syscall.Stat("/proc/self/ns/user", &want); err != nil {
		t.Fatal(err)
	}
	if got, err := ns.Owner(); err != nil || got != want.Ino {
		t.Errorf("a netns of this process is owned by %d, %v: want %d", got, err, want.Ino)
	}
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = cmd.Process.Kill(), cmd.Wait() }()
	theirs, err := netns.Open(fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	if got, err := theirs.Owner(); err != nil || got == want.Ino {
		t.Errorf("one in a user namespace of its own is owned by %d, %v", got, err)
	}
}
