package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// An event is an eventfd of a frontend, by which one side wakes the other. The frontend has the
// same open file, so that it may fill the counter, and may make the file block again.
type event struct {
	fd   int
	file *os.File        // of a kick, which the runtime's poller watches
	conn syscall.RawConn // of file

	writing atomic.Int32 // goroutines that write
	mu      sync.Mutex   // held while the file is closed or drained
	closed  bool
}

// takeEvent takes ownership of fd, which is an eventfd or -1. It returns nil for -1.
func takeEvent(fd int) (*event, error) {
	if fd < 0 {
		return nil, nil
	}
	link := "/proc/self/fd/" + strconv.Itoa(fd)
	target, err := os.Readlink(link)
	if err == nil && target != "anon_inode:[eventfd]" {
		err = fmt.Errorf("file %s: want an eventfd", target)
	}
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return &event{fd: fd}, nil
}

// watch makes the runtime's poller watch the event. The poller reports each write, also to a
// counter that nobody reads (EPOLLET in epoll_ctl(2)), so nobody does.
func (e *event) watch() (err error) {
	e.file = os.NewFile(uintptr(e.fd), "kick")
	e.conn, err = e.file.SyscallConn()
	return err
}

func (e *event) close() error {
	if e == nil {
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil
	}
	e.closed = true
	if e.file != nil {
		return e.file.Close()
	}
	return unix.Close(e.fd)
}

func (e *event) isClosed() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.closed
}

// signal wakes the frontend's side. It does not wait unless the frontend is hostile: see unblock.
func (e *event) signal() {
	e.writing.Add(1)
	_, _ = unix.Write(e.fd, one) // a counter that is full has woken it already
	e.writing.Add(-1)
}

var one = binary.NativeEndian.AppendUint64(nil, 1)

// unblock ends writes that wait, by emptying the counter, and reports whether there are any: a
// write waits only while the counter is full. It does not wait itself, whatever the frontend has
// made of the file.
func (e *event) unblock() bool {
	if e.writing.Load() == 0 {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.closed {
		p, n, err := []unix.PollFd{{Fd: int32(e.fd), Events: unix.POLLOUT}}, 0, error(unix.EINTR)
		for errors.Is(err, unix.EINTR) {
			n, err = unix.Poll(p, 0)
		}
		if err != nil || n != 0 {
			return false
		}
		var counter [8]byte
		_, _ = unix.Preadv2(e.fd, [][]byte{counter[:]}, -1, unix.RWF_NOWAIT)
	}
	return true
}
