// Package fdroom checks that a program can open files before it needs them: Go's runtime panics if
// it cannot open those of its poller.
package fdroom

import (
	"errors"
	"fmt"
	"syscall"
)

// Least is the minimum number of files that a program needs at a time, including those of Go's
// runtime.
const Least = 32

// Check returns an error if the process cannot open Least more files (RLIMIT_NOFILE of
// getrlimit(2)), or none at all (file-max of proc(5)). Call it before anything else. It closes
// every fd that it makes.
//
// It runs at each start of the bridge helper. All fds but the first are therefore duplicates, and
// are made by system calls that Go's scheduler need not know about, since they never block.
func Check() error {
	const without = 0 // the system call has no third parameter
	var made [Least]uintptr
	n := 0
	defer func() {
		for _, fd := range made[:n] {
			_, _, _ = syscall.RawSyscall(syscall.SYS_CLOSE, fd, without, without)
		}
	}()
	first, err := syscall.Open("/", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err == nil {
		made[0], n = uintptr(first), 1
	}
	for err == nil && n < Least {
		fd, _, errno := syscall.RawSyscall(syscall.SYS_FCNTL, made[0], syscall.F_DUPFD_CLOEXEC, 0)
		if errno != 0 {
			err = errno
			break
		}
		made[n] = fd
		n++
	}
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
		return fmt.Errorf(
			"fewer than %d files can be opened; the limit is %s (raise it: ulimit -n 1024, or LimitNOFILE= in the unit)",
			Least, limitText())
	}
	return nil // other errors are about the file system
}

// Limit returns how many files this process may have open at once (RLIMIT_NOFILE of getrlimit(2)).
func Limit() (uint64, error) {
	var l syscall.Rlimit
	err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l)
	return l.Cur, err
}

func limitText() string {
	l, err := Limit()
	if err != nil {
		return "unknown"
	}
	return fmt.Sprint(l)
}
