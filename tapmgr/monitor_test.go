package tapmgr

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
	"testing"

	"vmnet/internal/kernel/pidfd"
	"vmnet/internal/vmm/qemu"
	"vmnet/qmp"
	"vmnet/tapmgr/nic"
)

// TestCheckPeer: a listener is the guest only by its number, its user and, where the kernel has it,
// its pidfd.
func TestCheckPeer(t *testing.T) {
	self, other := pidfdOf(t, os.Getpid()), pidfdOf(t, os.Getppid())
	guests := qemu.Process{PID: os.Getpid(), UID: 54321}
	for name, tc := range map[string]struct {
		peer  qmp.Peer
		pidfd *os.File
		want  error
	}{
		"itself":                             {qmp.Peer{PID: os.Getpid(), UID: 54321}, self, nil},
		"itself, before Linux 6.5":           {qmp.Peer{PID: os.Getpid(), UID: 54321}, nil, nil},
		"itself, before it gave up root":     {qmp.Peer{PID: os.Getpid()}, self, nil},
		"another process":                    {qmp.Peer{PID: os.Getppid(), UID: 54321}, other, fs.ErrPermission},
		"one that had its number":            {qmp.Peer{PID: os.Getpid(), UID: 54321}, other, fs.ErrPermission},
		"itself, on a socket of its starter": {qmp.Peer{PID: os.Getpid(), UID: 54322}, self, fs.ErrPermission},
	} {
		hold, err := pidfd.Open(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		err = checkPeer(nic.Target{VM: "P2"}, &guest{guests, hold}, tc.peer, tc.pidfd)
		if !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
		_ = hold.Close()
	}
}

// pidfdOf is a pidfd as a file of the test's own.
func pidfdOf(t *testing.T, pid int) *os.File {
	t.Helper()
	p, err := os.FindProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	fd, errDup := -1, error(nil)
	err = p.WithHandle(func(handle uintptr) { fd, errDup = syscall.Dup(int(handle)) })
	if err = errors.Join(err, errDup); err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	t.Cleanup(func() { _ = f.Close() })
	return f
}
