package vswitch

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// polled is a socket that one goroutine receives from. The runtime's poller does not watch the socket
// itself: each frame that arrives while others are handled would wake it, and each that the socket has
// sent (sock_def_write_space in net/core/sock.c). It watches an epoll(7) instance instead, in which
// the socket is armed for reading. While frames arrive in crowds it is not.
type polled struct {
	file
	epoll file
	armed bool

	// Of the read under way. The funcs are made once: a method value would be allocated each time.
	turn   func(epoll uintptr) bool
	visit  func(fd uintptr)
	try    func(fd uintptr) (n int, err error)
	ep     int // the epoll instance, while a turn lasts
	n      int
	err    error
	events [1]unix.EpollEvent
}

// crowd is how many frames of one receive are worth a system call to disarm the socket, and one to arm it.
const crowd = 8

// duplicatePolled is duplicate for a socket to receive from.
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

// unpolled makes a file that does not block, and that the runtime's poller does not watch.
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

// watch makes the epoll instance. The socket is in it, and not armed.
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

// read calls try until that has received frames, and waits in between. An error is try's, or that of
// the deadline.
func (p *polled) read(try func(fd uintptr) (n int, err error)) (n int, err error) {
	p.try, p.err = try, nil
	if err := p.epoll.conn.Read(p.turn); err != nil {
		return 0, err
	}
	return p.n, p.err
}

// takeTurn returns false to wait.
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
	case p.n == 0 && !p.armed: // what has arrived since then is an event, too
		p.arm(fd, unix.EPOLLIN)
	case p.n >= crowd && p.armed:
		p.arm(fd, 0)
	}
}

// arm has the epoll instance watch for events of the socket, or for none.
func (p *polled) arm(fd uintptr, events uint32) {
	p.events[0].Events = events
	if err := unix.EpollCtl(p.ep, unix.EPOLL_CTL_MOD, int(fd), &p.events[0]); err != nil {
		p.err = fmt.Errorf("wait for frames: %w", err)
	}
	p.armed = events != 0
}

// deadline ends a read with os.ErrDeadlineExceeded.
func (p *polled) deadline(d time.Duration) { _ = p.epoll.os.SetReadDeadline(time.Now().Add(d)) }

// close has a read under way return an error that Is os.ErrClosed.
func (p *polled) close() error { return errors.Join(p.epoll.close(), p.file.close()) }
