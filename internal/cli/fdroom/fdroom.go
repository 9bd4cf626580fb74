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
// getrlimit(2), file-max of proc(5)). Call it before anything else. It closes every file that it
// opens.
func Check() error {
	var opened []int
	defer func() {
		for _, fd := range opened {
			_ = syscall.Close(fd)
		}
	}()
	for range Least {
		fd, err := syscall.Open("/", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
		if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
			return refusal(limitText())
		}
		if err == nil { // other errors are about the file system
			opened = append(opened, fd)
		}
	}
	return nil
}

// CheckLimit is Check for a program that closes all inherited files before it opens any: it looks
// at the limit only, and so costs a single system call.
func CheckLimit() error {
	if l, err := Limit(); err == nil && l < Least {
		return refusal(fmt.Sprint(l))
	}
	return nil
}

func refusal(limit string) error {
	return fmt.Errorf(
		"fewer than %d files can be opened; the limit is %s (raise it: ulimit -n 1024, or LimitNOFILE= in the unit)",
		Least, limit)
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
