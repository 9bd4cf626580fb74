package control

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// OpenHolder opens the pidfd of a port's holder (pidfd_open(2)), which AddPort passes on; any user's process will do. The caller
// closes it. That there is no such process is an error that Is unix.ESRCH.
func OpenHolder(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("pidfd of process %d: %w", pid, err)
	}
	return os.NewFile(uintptr(fd), fmt.Sprintf("pidfd of %d", pid)), nil
}

// NewLifeline makes a pipe whose writing end a process inherits from another one, and whose reading end AddPort passes on. The
// caller closes both.
func NewLifeline() (inode uint64, read, write *os.File, err error) {
	if read, write, err = os.Pipe(); err != nil {
		return 0, nil, nil, fmt.Errorf("pipe: %w", err)
	}
	info, err := read.Stat()
	if err != nil {
		return 0, nil, nil, errors.Join(err, read.Close(), write.Close())
	}
	return info.Sys().(*syscall.Stat_t).Ino, read, write, nil
}
