package privilege

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// openStandard opens those of fds 0 to 2 on /dev/null that the caller has closed: the
// next file opened would get that number, and what is printed would end up in
// it. Go's runtime does the same before main, in all programs since 1.21 and not
// only in setuid ones; its documentation does not promise it.
func openStandard() error {
	for fd := range 3 {
		_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err == nil {
			continue
		}
		got, err := unix.Open(os.DevNull, unix.O_RDWR, 0)
		if err != nil {
			return fmt.Errorf("open %s as fd %d, which was closed: %w", os.DevNull, fd, err)
		}
		if got != fd {
			return fmt.Errorf("open %s as fd %d, which was closed: it became fd %d", os.DevNull, fd, got)
		}
	}
	return nil
}

// Inherited makes sure that an fd whose number the caller gave is one that the caller
// has handed over, and not one of ours that has the number by chance, into which
// a caller could so make us write. An inherited fd is never close-on-exec, and
// everything that Go opens is; so it is to be asked before an fd is prepared
// for a program to execute.
func Inherited(fd int) error {
	if fd < 0 || fd > math.MaxInt32 { // of which the kernel would take the lower half
		return fmt.Errorf("fd %d: not a number of an open file", fd)
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC != 0 {
		return fmt.Errorf("fd %d: the caller has not handed it over", fd)
	}
	return nil
}

// CloseInherited closes all fds above 2 that the caller has handed over (see
// Inherited), except keep: for the forms that execute nothing. Those of the Go
// runtime (epoll, the cgroup's CPU limit) stay: were such a number closed and
// used again, the runtime would go on reading it. That rules out close_range(2).
func CloseInherited(keep ...int) error {
	entries, err := os.ReadDir("/proc/self/fd") // own threads always may, also after setuid
	if err != nil {
		return fmt.Errorf("list own fds: %w", err)
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd < 3 || slices.Contains(keep, fd) || Inherited(fd) != nil {
			continue
		}
		if err := unix.Close(fd); err != nil {
			return fmt.Errorf("close fd %d: %w", fd, err)
		}
	}
	return nil
}
