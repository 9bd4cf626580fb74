package control

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/fdpass"
)

// OpenHolder opens a pidfd (pidfd_open(2)) for a port's holder, as AddPort takes it. It needs no
// privilege, even for another user's process. The caller closes the file. If there is no such
// process, the error matches unix.ESRCH with errors.Is.
func OpenHolder(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("pidfd of process %d: %w", pid, err)
	}
	return os.NewFile(uintptr(fd), fmt.Sprintf("pidfd of %d", pid)), nil
}

// NewLifeline makes a pipe for a port's lifeline: a guest's process inherits the write end, and
// AddPort takes the read end. The caller closes both.
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

// hasEnded reports whether the process of a pidfd ends within endTime.
func hasEnded(pidfd *os.File) bool {
	late := time.Now().Add(endTime)
	for time.Now().Before(late) {
		ended := false
		err := fdpass.Control(pidfd, func(fd int) error {
			p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			n, err := unix.Poll(p, int(endTime/time.Millisecond))
			ended = n > 0
			return err
		})
		if ended || err != nil && !errors.Is(err, unix.EINTR) {
			return ended
		}
	}
	return false
}

// endTime is how long a switch that has hung up may take to end.
const endTime = 5 * time.Second
