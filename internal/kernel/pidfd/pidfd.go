// Package pidfd holds processes by pidfds (pidfd_open(2)). After a process has ended, its PID may
// name another one, but a pidfd never does.
package pidfd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Handle is a process that is held by a pidfd. While [Handle.Alive] reports true, PID has named
// that process, and no other, since Open. Close it.
type Handle struct {
	PID int
	f   *os.File
}

// Open holds the process with that PID. If there is none, the error matches fs.ErrNotExist with
// errors.Is.
func Open(pid int) (*Handle, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	switch {
	case errors.Is(err, unix.ESRCH), errors.Is(err, unix.EINVAL):
		// EINVAL: the id of a thread, or no valid PID
		return nil, fmt.Errorf("process %d: %w", pid, fs.ErrNotExist)
	case err != nil:
		return nil, fmt.Errorf("pidfd of process %d: %w", pid, err)
	}
	return &Handle{pid, os.NewFile(uintptr(fd), fmt.Sprintf("pidfd of %d", pid))}, nil
}

// Alive reports whether the process has not ended. A pidfd becomes readable when it does.
func (h *Handle) Alive() bool {
	alive := false
	err := h.control(func(fd int) {
		err := error(unix.EINTR)
		// A pending signal, such as the one that Go's runtime sends to preempt, interrupts even a
		// poll(2) that does not wait, which then reports nothing about the fd.
		for n := 0; errors.Is(err, unix.EINTR); alive = n == 0 && err == nil {
			n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		}
	})
	return err == nil && alive
}

// Check returns an error that matches fs.ErrNotExist with errors.Is if the process has ended.
func (h *Handle) Check() error {
	if h.Alive() {
		return nil
	}
	return fmt.Errorf("process %d has ended: %w", h.PID, fs.ErrNotExist)
}

// Close closes the pidfd. A nil Handle may be closed.
func (h *Handle) Close() error {
	if h == nil {
		return nil
	}
	return h.f.Close()
}

// Is reports whether f is a pidfd of the same process. The caller keeps ownership of f.
func (h *Handle) Is(f *os.File) bool {
	conn, err := f.SyscallConn()
	if err != nil {
		return false
	}
	same := false
	err = conn.Control(func(fd uintptr) { same = pidOf(int(fd)) == strconv.Itoa(h.PID) })
	return err == nil && same && h.Alive() // while a process is alive, its PID names no other
}

// pidOf returns the PID of a pidfd's process: "-1" if it has ended, "0" if it is not in our PID
// namespace, "" if fd is not a pidfd (pidfd_open(2), "Pid:" in /proc/self/fdinfo).
func pidOf(fd int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if pid, ok := strings.CutPrefix(line, "Pid:"); ok {
			return strings.TrimSpace(pid)
		}
	}
	return ""
}

func (h *Handle) control(f func(fd int)) error {
	conn, err := h.f.SyscallConn()
	if err != nil {
		return err
	}
	return conn.Control(func(fd uintptr) { f(int(fd)) })
}
