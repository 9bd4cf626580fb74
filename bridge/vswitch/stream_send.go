package vswitch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch/offload"
	"vmnet/internal/vhostuser"
)

// maxBacklog is how many bytes may wait for a stream's other end, besides what its socket has. A
// burst of the size of a TCP window fits, so that one connection loses nothing to a slow guest.
const maxBacklog = 4 << 20

// A streamSender sends frames to one connection. A frame that was begun is always completed before
// the next one, so the other end never loses the framing. What the socket does not take waits in
// the backlog, which a goroutine writes.
type streamSender struct {
	file

	mu       sync.Mutex
	backlog  []byte
	at       int  // what was written of it
	writing  bool // a goroutine writes the backlog
	closed   bool
	kept     bool // the backlog is kept when it is closed: see Switch.HandOver
	writer   sync.WaitGroup
	writable *awaiting
	journal  *journal // may be nil: see Wire.Keep

	// The current send.
	s       *sender
	push    func(fd uintptr) // the method pushFrames, bound once
	prefix  [batchSize][prefixLen]byte
	vectors [3*batchSize + vhostuser.MaxPieces]unix.Iovec
	hdr     unix.Msghdr
}

// newStreamSender does not own f.
func newStreamSender(f file) (*streamSender, error) {
	w, err := newAwaiting(f)
	if err != nil {
		return nil, fmt.Errorf("watch the stream: %w", err)
	}
	t := &streamSender{file: f, writable: w}
	t.push = t.pushFrames
	return t, nil
}

// send never waits for the other end.
func (t *streamSender) send(s *sender) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.s = s
	s.use(t.conn, t.push)
	t.s = nil
}

// pushFrames sends what the socket takes, and queues the others.
func (t *streamSender) pushFrames(fd uintptr) {
	first := 0
	if len(t.backlog) == 0 {
		var errno syscall.Errno
		t.journal.write()
		first, errno = t.sendNow(fd)
		if len(t.backlog) == 0 {
			t.journal.written()
		}
		if errno != 0 {
			why := reasonOf(errno)
			switch {
			case why == Gone:
				why = Down // the receiver finds it gone too
			case errno == unix.EFAULT && t.s.guests.From != nil:
				t.s.guests.From.Faulted(errno)
				why = Unreadable
			}
			t.s.drop(first, t.s.n, why)
			return
		}
	}
	if first < t.s.n {
		t.journal.write() // until the backlog is empty
	}
	for i := first; i < t.s.n; i++ {
		f := &t.s.list[i]
		if len(t.backlog)-t.at+prefixLen+f.Len() > maxBacklog {
			t.s.drop(i, i+1, Full)
			continue
		}
		t.queue(f, 0)
		t.s.note(i, 0)
	}
	if len(t.backlog) > 0 && !t.writing && !t.closed {
		t.writing = true
		t.writer.Go(t.write)
	}
}

// sendNow sends the list in one call. It returns how many frames are sent, or begun and queued.
func (t *streamSender) sendNow(fd uintptr) (done int, errno syscall.Errno) {
	n := 0
	for i := range t.s.n {
		f := &t.s.list[i]
		binary.BigEndian.PutUint32(t.prefix[i][:], uint32(f.Len()))
		for _, part := range [][]byte{t.prefix[i][:], f.Head, f.Payload} {
			n = t.vector(n, part)
		}
		for _, part := range f.Rest {
			n = t.vector(n, part)
		}
	}
	t.hdr.Iov = &t.vectors[0]
	t.hdr.SetIovlen(n)
	sent, errno := sendmsg(fd, &t.hdr)
	runtime.KeepAlive(t)
	if errno == unix.EAGAIN {
		errno = 0
	}
	for done < t.s.n && sent > 0 && errno == 0 {
		f := &t.s.list[done]
		whole := prefixLen + f.Len()
		if sent < whole {
			t.queue(f, sent)
		}
		sent -= min(sent, whole)
		t.s.note(done, 0)
		done++
	}
	return done, errno
}

// vector makes a piece the nth one of the message, and returns the number of the next one.
func (t *streamSender) vector(n int, piece []byte) int {
	if len(piece) == 0 {
		return n
	}
	t.vectors[n].Base = &piece[0]
	t.vectors[n].SetLen(len(piece))
	return n + 1
}

// queue appends a frame to the backlog, without its first bytes, which are sent. What cannot be
// read of it, since the memory of its guest is gone, is replaced by zeros: the frame has to be
// completed.
func (t *streamSender) queue(f *offload.Frame, sent int) {
	if t.at > len(t.backlog)/2 {
		t.backlog, t.at = t.backlog[:copy(t.backlog, t.backlog[t.at:])], 0
	}
	var prefix [prefixLen]byte
	binary.BigEndian.PutUint32(prefix[:], uint32(f.Len()))
	for _, part := range [][]byte{prefix[:], f.Head, f.Payload} {
		skip := min(sent, len(part))
		t.backlog, sent = append(t.backlog, part[skip:]...), sent-skip
	}
	for _, part := range f.Rest {
		skip := min(sent, len(part))
		part, sent = part[skip:], sent-skip
		at := len(t.backlog)
		t.backlog = slices.Grow(t.backlog, len(part))[:at+len(part)]
		if !t.s.guests.From.Copy(t.backlog[at:], part) {
			clear(t.backlog[at:])
		}
	}
}

// write writes the backlog until it is empty or the connection ends.
func (t *streamSender) write() {
	for t.writable.wait() == nil {
		t.mu.Lock()
		err := t.control(t.writeSome)
		if err == nil && t.at < len(t.backlog) && !t.closed {
			t.mu.Unlock()
			continue
		}
		t.writing = false
		if t.closed && t.kept {
			t.mu.Unlock()
			return
		}
		if err == nil && t.at == len(t.backlog) {
			t.journal.written()
		}
		t.backlog, t.at = t.backlog[:0], 0
		if cap(t.backlog) > keptBacklog {
			t.backlog = nil
		}
		t.mu.Unlock()
		return
	}
}

const (
	keptBacklog = 256 << 10 // an empty backlog keeps at most so much memory
	backlogTurn = 256 << 10 // bytes that are written while senders wait
)

func (t *streamSender) writeSome(fd int) error {
	n, errno := write1(uintptr(fd), t.backlog[t.at:min(len(t.backlog), t.at+backlogTurn)])
	switch errno {
	case 0:
		t.at += n
	case unix.EAGAIN, unix.EINTR:
	default:
		return errno
	}
	return nil
}

// close ends the goroutine. The owner of the file closes it.
func (t *streamSender) close() error {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	err := t.writable.close()
	t.writer.Wait()
	return err
}

// sendmsg and write1 are raw system calls, as those of tap.go.

func sendmsg(fd uintptr, hdr *unix.Msghdr) (int, syscall.Errno) {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(hdr)),
			unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		switch errno {
		case 0:
			return int(n), 0
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// write1 does not raise SIGPIPE.
func write1(fd uintptr, b []byte) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)),
		unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

// awaiting waits until a socket takes data. The runtime's poller watches an epoll instance in which
// the socket is armed only while somebody waits (see polled).
type awaiting struct {
	file   // the epoll instance
	socket file
	events [1]unix.EpollEvent
}

func newAwaiting(socket file) (*awaiting, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	err = unix.SetNonblock(fd, true)
	if err == nil {
		err = socket.control(func(s int) error {
			return unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, s, &unix.EpollEvent{Events: unix.EPOLLONESHOT})
		})
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	f, err := newFile(fd, "epoll for sending")
	return &awaiting{file: f, socket: socket}, err
}

// wait returns an error after close. Only one goroutine may call it.
func (a *awaiting) wait() error {
	err := a.control(func(epoll int) error {
		return a.socket.control(func(s int) error {
			a.events[0].Events = unix.EPOLLOUT | unix.EPOLLONESHOT
			return unix.EpollCtl(epoll, unix.EPOLL_CTL_MOD, s, &a.events[0])
		})
	})
	if err != nil {
		return err
	}
	return a.conn.Read(func(epoll uintptr) bool {
		n, err := unix.EpollWait(int(epoll), a.events[:], 0) // takes it off the list of ready ones (see disarm)
		return n > 0 || err != nil && err != unix.EINTR
	})
}
