package control

import (
	"fmt"
	"os"

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
