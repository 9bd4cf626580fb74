package privilege

import (
	"fmt"
	"math"
	"os"
	"slices"

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
	if !handedOver(fd) {
		return fmt.Errorf("fd %d: the caller has not handed it over", fd)
	}
	return nil
}

func handedOver(fd int) bool {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	return err == nil && flags&unix.FD_CLOEXEC == 0
}

// CloseInherited closes all fds above 2 that the caller has handed over (see
// Inherited), except keep: for the forms that execute nothing. What Go's runtime (epoll, the
// cgroup's CPU limit) and we have open stays: were such a number closed and used
// again, who has opened it would go on reading it.
//
// Nobody has to list them in /proc for that, which takes longer than all else here. A new fd gets the
// lowest number that is free, so as long as we never had more than ownFDs open, ours are among
// the first ownFDs numbers that the caller has left free; behind these, all are the caller's.
func CloseInherited(keep ...int) error {
	fd := 3
	for free := 0; free < ownFDs; fd++ {
		if !handedOver(fd) {
			free++
			continue
		}
		if slices.Contains(keep, fd) {
			continue
		}
		if err := unix.Close(fd); err != nil {
			return fmt.Errorf("close fd %d: %w", fd, err)
		}
	}
	for _, k := range append(slices.Sorted(slices.Values(keep)), math.MaxInt32) {
		if k < fd {
			continue
		}
		if err := closeRange(fd, k-1); err != nil {
			return err
		}
		fd = k + 1
	}
	return nil
}

// ownFDs is more than are ever open before the caller's are closed: two or three of Go's, one or two of ours.
const ownFDs = 32

func closeRange(first, last int) error {
	if first > last {
		return nil
	}
	if err := unix.CloseRange(uint(first), uint(last), 0); err != nil {
		return fmt.Errorf("close fds %d to %d (close_range(2), of Linux 5.9): %w", first, last, err)
	}
	return nil
}
