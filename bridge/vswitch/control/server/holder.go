package server

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

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch/control"
	"vmnet/internal/kernel/fdpass"
)

// A holder is the process on which a port's life depends, and with a lifeline also the processes
// that have inherited its write end.
type holder struct {
	pidfd, lifeline *waited // lifeline is nil if the port has none
}

// waited is a copy of a file that the runtime's poller watches.
type waited struct {
	file *os.File
	conn syscall.RawConn
}

// openHolder copies the files for a port's holder: a pidfd (pidfd_open(2)), which must be that of
// p.Holder, and the lifeline if the port has one. It fails if the process has ended.
func openHolder(p *control.Port, files []*os.File) (*holder, error) {
	h := &holder{}
	var err error
	if h.pidfd, err = copyWaited(files[0], "pidfd"); err == nil {
		err = h.check(p.Holder)
	}
	if err == nil && p.Lifeline != 0 {
		h.lifeline, err = copyLifeline(files[1], p.Lifeline)
	}
	if err != nil {
		return nil, fmt.Errorf("holder %d: %w", p.Holder, errors.Join(err, h.close()))
	}
	return h, nil
}

// copyLifeline copies the read end of a pipe, which must have that inode.
func copyLifeline(f *os.File, inode uint64) (*waited, error) {
	w, err := copyWaited(f, "lifeline")
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	var statErr error
	err = w.conn.Control(func(fd uintptr) { statErr = unix.Fstat(int(fd), &st) })
	if err = errors.Join(err, statErr); err == nil && (st.Mode&unix.S_IFMT != unix.S_IFIFO || st.Ino != inode) {
		err = fmt.Errorf("%w port: the file for its lifeline is not pipe %d", brport.ErrInvalid, inode)
	}
	if err != nil {
		return nil, errors.Join(err, w.file.Close())
	}
	return w, nil
}

func copyWaited(f *os.File, name string) (*waited, error) {
	fd, err := fdpass.DuplicateFD(f)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	w := &waited{file: os.NewFile(uintptr(fd), name)}
	if w.conn, err = w.file.SyscallConn(); err == nil {
		err = w.file.SetReadDeadline(time.Time{}) // fails unless the poller can watch the file
	}
	if err != nil {
		return nil, fmt.Errorf("%w port: the file for its %s: %w", brport.ErrInvalid, name,
			errors.Join(err, w.file.Close()))
	}
	return w, nil
}

func (h *holder) check(pid int) error {
	found, err := h.pid()
	switch {
	case err != nil:
		return fmt.Errorf("%w port: %w", brport.ErrInvalid, err)
	case found == -1:
		return errEnded
	case found != pid && found != anyProcess:
		return fmt.Errorf("%w port: the pidfd is for process %d", brport.ErrInvalid, found)
	}
	ended := false
	if err := h.pidfd.conn.Control(func(fd uintptr) { ended = readable(fd) }); err != nil {
		return err
	}
	if ended {
		return errEnded
	}
	return nil
}

var errEnded = errors.New("the process has ended")

// pid returns the process of the pidfd, from the line Pid in /proc/self/fdinfo, which only pidfds
// have (pidfd_open(2)).
func (h *holder) pid() (int, error) {
	var info []byte
	var readErr error
	err := h.pidfd.conn.Control(func(fd uintptr) {
		info, readErr = os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	})
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
	return 0, errors.New("the file for its pidfd is not a pidfd")
}

// unnamed replaces pid for a switch that has changed its user: before Linux 5.14, it cannot read
// its own fdinfo. It can only determine whether the file is a pidfd and whether the process exists.
func (h *holder) unnamed() (int, error) {
	var sigErr error
	err := h.pidfd.conn.Control(func(fd uintptr) { sigErr = unix.PidfdSendSignal(int(fd), 0, nil, 0) })
	switch {
	case err != nil:
		return 0, err
	case errors.Is(sigErr, unix.ESRCH):
		return -1, nil
	case sigErr == nil, errors.Is(sigErr, unix.EPERM):
		return anyProcess, nil
	}
	return 0, fmt.Errorf("the file for its pidfd is not a pidfd: %w", sigErr)
}

// anyProcess stands for an existing process whose PID is unknown.
const anyProcess = -2

// wait waits until the process has ended and no process has the lifeline's write end, or until
// close, and reports whether the former happened. A pidfd becomes readable when its process ends. A
// pipe reports POLLHUP when its last writer is gone, so that a guest cannot affect it by writing to
// its lifeline.
func (h *holder) wait() (ended bool) {
	return h.pidfd.wait(readable) && (h.lifeline == nil || h.lifeline.wait(hungUp))
}

func (w *waited) wait(over func(fd uintptr) bool) (ended bool) {
	_ = w.conn.Read(func(fd uintptr) bool {
		ended = over(fd)
		return ended
	})
	return ended
}

func readable(fd uintptr) bool { return polled(fd)&unix.POLLIN != 0 }

func hungUp(fd uintptr) bool { return polled(fd)&unix.POLLHUP != 0 }

// polled returns the events that poll(2) reports for fd now, or 0. A pending signal, such as the
// one by which Go's runtime preempts, interrupts even a poll(2) that does not wait.
func polled(fd uintptr) int16 {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	err := error(unix.EINTR)
	for errors.Is(err, unix.EINTR) {
		_, err = unix.Poll(p, 0)
	}
	if err != nil {
		return 0
	}
	return p[0].Revents
}

func (h *holder) close() error {
	var errs []error
	for _, w := range []*waited{h.pidfd, h.lifeline} {
		if w != nil {
			errs = append(errs, w.file.Close())
		}
	}
	return errors.Join(errs...)
}
