package macvlan_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/procfd"
)

// TestLiveAKeptNodeOpensNoLaterDevice keeps a device's node and the node's directory open, as a
// process that received a queue may, until another device has the same number.
func TestLiveAKeptNodeOpensNoLaterDevice(t *testing.T) {
	w := newWire(t)
	first := w.create(w.config())
	if err := first.OpenQueue(); err != nil {
		t.Fatal(err)
	}
	number := rdev(t, int(first.Queues()[0].Fd()))
	node, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", first.Queues()[0].Fd()), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(node)
	folder := nodeDirectory(t, number)
	defer unix.Close(folder)
	if err := errors.Join(first.Delete(), first.Close()); err != nil {
		t.Fatal(err)
	}

	for try := 0; ; try++ {
		later := w.create(w.config())
		if err := later.OpenQueue(); err != nil {
			t.Fatal(err)
		}
		if rdev(t, int(later.Queues()[0].Fd())) == number {
			break
		}
		if err := later.Close(); err != nil {
			t.Fatal(err)
		}
		if try == 100 {
			t.Fatal("the number was not used again")
		}
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", node), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if !errors.Is(err, unix.EACCES) {
		t.Errorf("by the node: %v, want EACCES", err)
		_ = unix.Close(fd)
	}
	fd, err = unix.Openat(folder, "tap", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if !errors.Is(err, unix.EACCES) {
		t.Errorf("by its directory: %v, want EACCES", err)
		_ = unix.Close(fd)
	}
}

func rdev(t *testing.T, fd int) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	return st.Rdev
}

// nodeDirectory returns a copy of the fd of the directory that has the node.
func nodeDirectory(t *testing.T, number uint64) int {
	t.Helper()
	folder := -1
	procfd.Of(os.Getpid(), func(f procfd.File) {
		var st unix.Stat_t
		if folder < 0 && f.Target == "/" && unix.Fstatat(f.FD, "tap", &st, 0) == nil && st.Rdev == number {
			folder, _ = unix.FcntlInt(uintptr(f.FD), unix.F_DUPFD_CLOEXEC, 3)
		}
	})
	if folder < 0 {
		t.Fatal("the node's directory is not open")
	}
	return folder
}

const oldEnv = "VMNET_TEST_OLD"

// TestLiveOldKernelGivesUsersNoQueue runs as on a kernel without mount_setattr(2), before Linux
// 5.12.
func TestLiveOldKernelGivesUsersNoQueue(t *testing.T) {
	w := newWire(t)
	ns, err := os.Open(w.ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	for uid, want := range map[string]string{"0": "opened", "65534": "needs root or Linux 5.12"} {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
		cmd.Env = append(os.Environ(), oldEnv+"="+uid)
		cmd.ExtraFiles = []*os.File{ns}
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), want) {
			t.Errorf("uid %s: %v: %s: want %q", uid, err, out, want)
		}
	}
}

// old is the main function of that process. Its fd 3 is the wire's netns.
func old() int {
	if err := onOldKernel(); err != nil {
		fmt.Println(err)
		return 0
	}
	fmt.Println("opened")
	return 0
}

func onOldKernel() error {
	if err := withoutMountSetattr(); err != nil {
		return err
	}
	if os.Getenv(oldEnv) != "0" {
		// As in a program that is setuid root.
		if err := syscall.Setresuid(65534, 0, 0); err != nil {
			return err
		}
	}
	d, err := createOnWire()
	if err != nil {
		return err
	}
	return errors.Join(d.OpenQueue(), d.Delete(), d.Close())
}

// withoutMountSetattr makes the system call fail with ENOSYS in all threads (seccomp(2)).
func withoutMountSetattr() error {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}, // nr, the first field of struct seccomp_data
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_MOUNT_SETATTR, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC,
		uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	return nil
}
