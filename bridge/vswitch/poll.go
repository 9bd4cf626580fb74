package vswitch

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// polled is a socket from which one goroutine receives. The runtime's poller does not watch the
// socket itself: each frame that arrives during the handling of others would wake it, and so would
// each frame that the socket has sent (sock_def_write_space in net/core/sock.c). The poller watches
// an epoll(7) instance instead, in which the socket is armed for reading. The socket is disarmed
// while many frames arrive at a time.
type polled struct {
	file
	epoll file
	armed bool

	// The current read. The funcs are bound once: each use of a method value would allocate.
	turn   func(epoll uintptr) bool
	visit  func(fd uintptr)
	try    func(fd uintptr) (n int, err error)
	ep     int // the epoll instance, during a turn
	n      int
	err    error
	events [1]unix.EpollEvent
}

// crowd is the number of frames in one receive from which it pays to disarm the socket, with a
// system call, and to arm it again later, with another.
const crowd = 8

// duplicatePolled is duplicate for a socket from which frames are received.
func duplicatePolled(f *os.File, check func(fd int) error) (*polled, error) {
	own, err := duplicateAs(f, check, unpolled)
	if err != nil {
		return nil, err
	}
	p := &polled{file: own}
	p.turn, p.visit = p.takeTurn, p.visitSocket
	if err := p.watch(); err != nil {
		return nil, errors.Join(fmt.Errorf("watch the socket: %w", err), own.close())
	}
	return p, nil
}

// unpolled makes a non-blocking file that the runtime's poller does not watch.
func unpolled(fd int, name string) (file, error) {
	if err := unix.SetNonblock(fd, false); err != nil {
		return file{}, errors.Join(err, unix.Close(fd))
	}
	f, err := newFile(fd, name)
	if err != nil {
		return file{}, err
	}
	if err := f.control(func(fd int) error { return unix.SetNonblock(fd, true) }); err != nil {
		return file{}, errors.Join(err, f.close())
	}
	return f, nil
}

// watch makes the epoll instance and adds the socket, not armed.
func (p *polled) watch() error {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	err = p.control(func(socket int) error {
		return unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, socket, &p.events[0])
	})
	if err == nil {
		err = unix.SetNonblock(fd, true) // so that the runtime's poller watches it
	}
	if err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	p.epoll, err = newFile(fd, "epoll of "+p.os.Name())
	return err
}

// read calls try until it has received frames, and waits in between. It returns the error of try or
// of the deadline.
func (p *polled) read(try func(fd uintptr) (n int, err error)) (n int, err error) {
	p.try, p.err = try, nil
	if err := p.epoll.conn.Read(p.turn); err != nil {
		return 0, err
	}
	return p.n, p.err
}

// takeTurn reports whether the caller need not wait.
func (p *polled) takeTurn(epoll uintptr) bool {
	p.ep = int(epoll)
	if err := p.conn.Control(p.visit); err != nil {
		p.n, p.err = 0, err
	}
	return p.n > 0 || p.err != nil
}

func (p *polled) visitSocket(fd uintptr) {
	switch p.n, p.err = p.try(fd); {
	case p.err != nil:
	case p.n == 0 && !p.armed: // frames that have arrived since try count as an event too
		p.arm(fd, unix.EPOLLIN)
	case p.n >= crowd && p.armed:
		p.disarm(fd)
	}
}

// disarm has the epoll instance watch for nothing, and takes the socket off its list of ready ones,
// on which it has been since the last event. Arming a socket that is on that list wakes nobody
// (ep_modify in fs/eventpoll.c): a frame that had arrived before would wait for the next one.
func (p *polled) disarm(fd uintptr) {
	if p.arm(fd, 0); p.err != nil {
		return
	}
	for {
		if _, err := unix.EpollWait(p.ep, p.events[:], 0); err != unix.EINTR {
			return
		}
	}
}

// arm makes the epoll instance watch for events of the socket, or for none.
func (p *polled) arm(fd uintptr, events uint32) {
	p.events[0].Events = events
	if err := unix.EpollCtl(p.ep, unix.EPOLL_CTL_MOD, int(fd), &p.events[0]); err != nil {
		p.err = fmt.Errorf("wait for frames: %w", err)
	}
	p.armed = events != 0
}

// deadline makes reads after that time fail with os.ErrDeadlineExceeded.
func (p *polled) deadline(d time.Duration) { _ = p.epoll.os.SetReadDeadline(time.Now().Add(d)) }

// close makes a current read return an error that matches os.ErrClosed.
func (p *polled) close() error { return errors.Join(p.epoll.close(), p.file.close()) }
