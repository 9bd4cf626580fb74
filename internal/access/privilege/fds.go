package privilege

import (
	"fmt"
	"math"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// openStandard opens /dev/null for those of fds 0 to 2 that the caller has closed. Otherwise the
// next file opened would get that number, and printed text would end up in it. Go's runtime does
// the same before main since 1.21, in all programs and not only in setuid ones, but its
// documentation does not promise it.
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

// Inherited returns an error unless the caller handed over the fd whose number it gave. By chance
// the number could belong to a file of this process, and the caller could make this process write
// into it. An inherited fd is never close-on-exec, and everything that Go opens is. So call
// Inherited before an fd is prepared for a program to execute.
func Inherited(fd int) error {
	if fd < 0 || fd > math.MaxInt32 { // the kernel would take its lower half
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

// CloseInherited closes all fds above 2 that the caller has handed over (see Inherited), except
// keep: for commands that execute nothing. Fds of Go's runtime (epoll, the cgroup's CPU limit) and
// of this package stay open: if such a number were closed and used again, its owner would continue
// to read from it.
//
// It does so without a list from /proc, which would take longer than everything else here. A new fd
// gets the lowest free number. So as long as this process never has more than ownFDs fds of its
// own, these are among the first ownFDs numbers that the caller has left free, and all higher fds
// are the caller's.
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

// ownFDs is more than are ever open before the caller's are closed: two or three of Go's runtime
// and one or two of this package.
const ownFDs = 16

func closeRange(first, last int) error {
	if first > last {
		return nil
	}
	if err := unix.CloseRange(uint(first), uint(last), 0); err != nil {
		return fmt.Errorf("close fds %d to %d (close_range(2), Linux 5.9): %w", first, last, err)
	}
	return nil
}
