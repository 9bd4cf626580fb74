package vswitch

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/internal/endpoint"
)

// A source is where the other ends of a port come from: connected AF_UNIX stream sockets, one after
// the other.
type source struct {
	stop   chan struct{}
	opened io.Closer                     // what next uses
	next   func() (*net.UnixConn, error) // waits for the next one
	once   bool                          // there is only one
	remove func()                        // removes the socket's file; may be nil
	ended  atomic.Bool                   // see Port.OtherEnded
	left   func()                        // removes the file of a socket on which nobody listens; may be nil

	handedOver atomic.Bool // the sockets' files stay: see Switch.HandOver
}

// openSource makes a source from a copy of f, which is one of these:
//
//   - a listening AF_UNIX stream socket, to which others connect. The source removes the socket's
//     file when it is closed.
//   - a directory, also one opened with O_PATH, in which others listen at name. The source
//     connects, again and again until one listens.
//   - a connected AF_UNIX stream socket: the only one.
//
// It makes a socket non-blocking, for the caller's fd too.
func openSource(f *os.File, name string) (*source, error) {
	s := &source{stop: make(chan struct{})}
	if st, err := f.Stat(); err != nil || st.IsDir() {
		return s, errors.Join(err, s.connectIn(f, name))
	}
	listens := false
	own, err := duplicate(f, func(fd int) (err error) {
		listens, err = endpoint.CheckStream(fd)
		return err
	})
	if err != nil {
		return nil, err
	}
	if listens {
		err = s.listen(own.os)
	} else {
		err = s.use(own.os)
	}
	return s, errors.Join(err, own.close())
}

func (s *source) listen(f *os.File) error {
	any, err := net.FileListener(f)
	if err != nil {
		return err
	}
	l := any.(*net.UnixListener)
	s.opened, s.next = l, l.AcceptUnix
	path := l.Addr().String()
	if was, err := os.Lstat(path); err == nil {
		s.remove = func() {
			if is, err := os.Lstat(path); err == nil && os.SameFile(is, was) {
				_ = os.Remove(path) // the next switch replaces a file that this one may not remove
			}
		}
	}
	return nil
}

func (s *source) use(f *os.File) error {
	any, err := net.FileConn(f)
	if err != nil {
		return err
	}
	c := any.(*net.UnixConn)
	s.opened, s.once = c, true
	s.next = func() (*net.UnixConn, error) { return c, nil }
	return nil
}

// connectIn makes a source that connects to a socket by its name in a directory.
func (s *source) connectIn(f *os.File, name string) error {
	if name == "" || name == "." || name == ".." || strings.Contains(name, "/") {
		return fmt.Errorf("%q is not the name of a socket in a directory", name)
	}
	own, err := duplicateAs(f, func(int) error { return nil }, newFile)
	if err != nil {
		return err
	}
	s.opened = own.os
	dial := func(fd int) (*net.UnixConn, error) {
		path := fmt.Sprintf("/proc/self/fd/%d/%s", fd, name)
		return net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	}
	s.left = func() {
		_ = own.control(func(fd int) error {
			c, err := dial(fd)
			if err == nil {
				return c.Close()
			}
			if errors.Is(err, unix.ECONNREFUSED) {
				err = unix.Unlinkat(fd, name, 0)
			}
			return err
		})
	}
	s.next = func() (*net.UnixConn, error) {
		for {
			var c *net.UnixConn
			err := own.control(func(fd int) (err error) {
				c, err = dial(fd)
				return err
			})
			if err == nil {
				return c, nil
			}
			if !s.pause(redial) {
				return nil, errClosed
			}
		}
	}
	return nil
}

// How long a switch waits for another end to listen, and between sessions. So those that hang up at
// once do not keep a processor busy.
const (
	redial    = 200 * time.Millisecond
	afterEnd  = 10 * time.Millisecond
	afterFail = time.Second
)

// between returns how long to wait after a session that has ended with err.
func between(err error) time.Duration {
	if err != nil {
		return afterFail
	}
	return afterEnd
}

// pause waits, and reports whether the source is still open.
func (s *source) pause(d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-s.stop:
		return false
	}
}

func (s *source) close() error {
	select {
	case <-s.stop:
		return nil
	default:
	}
	close(s.stop)
	if s.left != nil && s.ended.Load() && !s.handedOver.Load() {
		s.left()
	}
	err := s.opened.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil // the session has closed it
	}
	if s.remove != nil && !s.handedOver.Load() {
		s.remove()
	}
	return err
}
