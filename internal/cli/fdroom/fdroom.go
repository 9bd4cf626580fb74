// Package fdroom makes sure that a program can open files before it relies on it: Go's runtime panics where there is no room for
// its poller's.
package fdroom

import (
	"errors"
	"fmt"
	"syscall"
)

// Least is how many files a program of ours opens at once at least, those of Go's runtime among them.
const Least = 32

// Check is an error where fewer than Least more files can be opened (RLIMIT_NOFILE of getrlimit(2), file-max of proc(5)). It is
// called before anything else, and opens nothing for good.
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
			return fmt.Errorf("fewer than %d files can be opened: raise the limit, which is %s (ulimit -n 1024, or LimitNOFILE= of the unit)", Least, limitText())
		}
		if err == nil { // another error is about the file system
			opened = append(opened, fd)
		}
	}
	return nil
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
		return "not known"
	}
	return fmt.Sprint(l)
}
