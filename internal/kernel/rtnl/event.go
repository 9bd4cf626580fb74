package rtnl

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
)

// ErrLost is returned when the socket's buffer had no room for all events. The caller must read the
// current state again.
var ErrLost = errors.New("netlink events were lost")

// An Event reports that a link was made, changed or removed. Link is its state at that time.
type Event struct {
	*Link
	Gone bool
}

// Events receives the changes of the links in one netns (RTNLGRP_LINK in rtnetlink(7)). Close it.
type Events struct {
	file   *os.File
	conn   syscall.RawConn
	buffer []byte
	rest   []syscall.NetlinkMessage // of the last datagram
}

// eventBuffer is how many bytes of events may wait. An event has some 1500 to 2000 bytes. Without
// CAP_NET_ADMIN, net.core.rmem_max limits the buffer.
const eventBuffer = 4 << 20

// OpenEvents subscribes to the changes in ns that happen after it returns. The caller may close ns.
func OpenEvents(ns *netns.NS) (*Events, error) {
	var e *Events
	err := ns.Do(func() (err error) {
		e, err = openEvents()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("subscribe to netlink events: %w", err)
	}
	return e, nil
}

func openEvents() (*Events, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, eventBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, eventBuffer)
	}
	err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.RTNLGRP_LINK - 1)})
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	e := &Events{file: os.NewFile(uintptr(fd), "netlink events"), buffer: make([]byte, maxMessage)}
	if e.conn, err = e.file.SyscallConn(); err != nil {
		_ = e.file.Close()
		return nil, err
	}
	return e, nil
}

// Close ends the subscription. It makes a Next that waits return.
func (e *Events) Close() error { return e.file.Close() }

// Next waits for an event. Its error matches ErrLost with errors.Is if events were lost, and
// fs.ErrClosed after Close. Only one goroutine may call it at a time.
func (e *Events) Next() (Event, error) {
	for {
		for len(e.rest) > 0 {
			m := e.rest[0]
			e.rest = e.rest[1:]
			if event, ok := parseEvent(m); ok {
				return event, nil
			}
		}
		if err := e.receive(); err != nil {
			return Event{}, err
		}
	}
}

// Drain discards all waiting events, and forgets that some were lost.
func (e *Events) Drain() error {
	e.rest = nil
	for {
		_, _, err := e.try()
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR):
			return err
		}
	}
}

func (e *Events) receive() error {
	var n int
	var from unix.Sockaddr
	var err error
	waitErr := e.conn.Read(func(fd uintptr) bool {
		for {
			n, from, err = unix.Recvfrom(int(fd), e.buffer, unix.MSG_TRUNC)
			if !errors.Is(err, unix.EINTR) {
				return !errors.Is(err, unix.EAGAIN)
			}
		}
	})
	if waitErr != nil {
		return closed(waitErr)
	}
	return e.took(n, from, err)
}

// try is receive without waiting.
func (e *Events) try() (n int, from unix.Sockaddr, err error) {
	if waitErr := e.conn.Control(func(fd uintptr) {
		n, from, err = unix.Recvfrom(int(fd), e.buffer, unix.MSG_TRUNC)
	}); waitErr != nil {
		return 0, nil, closed(waitErr)
	}
	return n, from, err
}

// took keeps the messages of a datagram if the kernel sent it.
func (e *Events) took(n int, from unix.Sockaddr, err error) error {
	switch sender, ok := from.(*unix.SockaddrNetlink); {
	case errors.Is(err, unix.ENOBUFS), err == nil && n > len(e.buffer):
		return ErrLost
	case err != nil:
		return fmt.Errorf("netlink events: %w", err)
	case !ok || sender.Pid != nl.PidKernel:
		return nil
	}
	e.rest, err = syscall.ParseNetlinkMessage(e.buffer[:n])
	return err
}

// closed wraps the poller's error so that it matches fs.ErrClosed. The poller has no other error
// for a file without a deadline.
func closed(err error) error {
	return fmt.Errorf("netlink events: %w: %w", fs.ErrClosed, err)
}

// parseEvent decodes a message. It skips those of AF_BRIDGE, which repeat the change of a port:
// RTM_DELLINK of that family only means that the link is no longer a port.
func parseEvent(m syscall.NetlinkMessage) (Event, bool) {
	kind := m.Header.Type
	if kind != unix.RTM_NEWLINK && kind != unix.RTM_DELLINK || len(m.Data) == 0 || m.Data[0] == unix.AF_BRIDGE {
		return Event{}, false
	}
	l, err := parseLink(m.Data)
	if err != nil {
		return Event{}, false
	}
	return Event{Link: l, Gone: kind == unix.RTM_DELLINK}, true
}
