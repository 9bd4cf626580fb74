package control

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge"
)

// A holder is the process that a port goes with.
type holder struct {
	pidfd *os.File
	conn  syscall.RawConn
}

// openHolder copies a pidfd (pidfd_open(2)), which must be that of pid, and waits for in the runtime's poller: it is
// readable when the process has ended. A process that has ended already is an error.
func openHolder(f *os.File, pid int) (*holder, error) {
	h, err := copyPidfd(f)
	if err != nil {
		return nil, fmt.Errorf("holder %d: %w", pid, err)
	}
	if err := h.check(pid); err != nil {
		return nil, fmt.Errorf("holder %d: %w", pid, errors.Join(err, h.close()))
	}
	return h, nil
}

func copyPidfd(f *os.File) (*holder, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd, dupErr := -1, error(nil)
	err = conn.Control(func(old uintptr) { fd, dupErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 3) })
	if err = errors.Join(err, dupErr); err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	h := &holder{pidfd: os.NewFile(uintptr(fd), "pidfd")}
	if h.conn, err = h.pidfd.SyscallConn(); err == nil {
		err = h.pidfd.SetReadDeadline(time.Time{}) // only a file that can be waited for has one
	}
	if err != nil {
		return nil, fmt.Errorf("%w port: the file that should be its pidfd: %w", bridge.ErrInvalid, errors.Join(err, h.close()))
	}
	return h, nil
}

func (h *holder) check(pid int) error {
	found, err := h.pid()
	switch {
	case err != nil:
		return fmt.Errorf("%w port: %w", bridge.ErrInvalid, err)
	case found == -1:
		return errEnded
	case found != pid && found != anyProcess:
		return fmt.Errorf("%w port: the file is process %d's", bridge.ErrInvalid, found)
	}
	ended := false
	if err := h.conn.Control(func(fd uintptr) { ended = readable(fd) }); err != nil {
		return err
	}
	if ended {
		return errEnded
	}
	return nil
}

var errEnded = errors.New("the process has ended")

// pid is whose pidfd it is, by the line Pid of /proc/self/fdinfo, which no other file has (pidfd_open(2)).
func (h *holder) pid() (int, error) {
	var info []byte
	var readErr error
	err := h.conn.Control(func(fd uintptr) { info, readErr = os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd)) })
	if errors.Is(readErr, fs.ErrPermission) {
		return h.unnamed()
	}
	if err = errors.Join(err, readErr); err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(info)) {
		if text, ok := strings.CutPrefix(line, "Pid:"); ok {
			return strconv.Atoi(strings.TrimSpace(text))
		}
	}
	return 0, errors.New("the file that should be its pidfd is none")
}

// unnamed is for a switch that runs as another user than it was started by: a kernel before 5.14 does not let it read its own
// fdinfo. Whether the process is there is all that it can tell then, and whether the file is a pidfd.
func (h *holder) unnamed() (int, error) {
	var sigErr error
	err := h.conn.Control(func(fd uintptr) { sigErr = unix.PidfdSendSignal(int(fd), 0, nil, 0) })
	switch {
	case err != nil:
		return 0, err
	case errors.Is(sigErr, unix.ESRCH):
		return -1, nil
	case sigErr == nil, errors.Is(sigErr, unix.EPERM):
		return anyProcess, nil
	}
	return 0, fmt.Errorf("the file that should be its pidfd is none: %w", sigErr)
}

// anyProcess is a process of which only that it is there is known.
const anyProcess = -2

// wait waits until the process has ended, and tells so, or until close.
func (h *holder) wait() (ended bool) {
	_ = h.conn.Read(func(fd uintptr) bool {
		ended = readable(fd)
		return ended
	})
	return ended
}

func readable(fd uintptr) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0
}

func (h *holder) close() error { return h.pidfd.Close() }
