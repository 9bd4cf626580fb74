// Package sdnotify talks to the service manager that has started this process, as sd_notify(3)
// does: it reports states, and has the manager keep files for the process that comes after this one
// (the file descriptor store of systemd).
package sdnotify

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/fdpass"
)

// socketEnv has the path of the manager's socket; a leading @ is an abstract name, for systemd and
// package net.
const socketEnv = "NOTIFY_SOCKET"

// timeout bounds each wait for a manager that does not read.
const timeout = time.Second

// ErrNone is returned by Dial if no service manager has started this process.
var ErrNone = errors.New("no service manager has started this process ($" + socketEnv + " is not set)")

// Notify reports a state, such as READY=1. Without a service manager it does nothing.
func Notify(state string) error {
	m, err := Dial()
	switch {
	case errors.Is(err, ErrNone):
		return nil
	case err != nil:
		return fmt.Errorf("notify systemd of %s: %w", state, err)
	}
	defer m.Close()
	return m.send(state)
}

// A Manager is a connection to the service manager. Goroutines may share it.
type Manager struct{ conn *net.UnixConn }

// Dial connects to the service manager. The connection works in a sandbox that permits no others.
func Dial() (*Manager, error) {
	path := os.Getenv(socketEnv)
	if path == "" {
		return nil, ErrNone
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	return &Manager{c}, nil
}

// Close closes the connection. What is stored stays.
func (m *Manager) Close() error { return m.conn.Close() }

func (m *Manager) send(state string, files ...*os.File) error {
	err := m.conn.SetWriteDeadline(time.Now().Add(timeout))
	if err == nil {
		err = m.write(state, files)
	}
	if err != nil {
		return fmt.Errorf("notify systemd of %s: %w", strings.ReplaceAll(state, "\n", ", "), err)
	}
	return nil
}

// write sends a datagram, with one file at most. Package net sends files over a connected datagram
// socket to no one.
func (m *Manager) write(state string, files []*os.File) error {
	var rights []byte
	send := func(fd int) (err error) {
		return unix.Sendmsg(fd, []byte(state), rights, nil, unix.MSG_NOSIGNAL)
	}
	for _, f := range files {
		own, err := fdpass.DuplicateFD(f)
		if err != nil {
			return err
		}
		defer unix.Close(own)
		rights = unix.UnixRights(own)
	}
	conn, err := m.conn.SyscallConn()
	if err != nil {
		return err
	}
	waitErr := conn.Write(func(fd uintptr) bool {
		for err = unix.EINTR; errors.Is(err, unix.EINTR); {
			err = send(int(fd))
		}
		return !errors.Is(err, unix.EAGAIN)
	})
	return errors.Join(waitErr, err)
}

// Store has the manager keep a copy of a file, under a name of printable ASCII without colons,
// until it is asked to forget it or the service has ended for good. The manager keeps only as many
// as FileDescriptorStoreMax= permits, and no second copy of an open file that it has; it tells
// nobody.
func (m *Manager) Store(name string, f *os.File) error {
	// FDPOLL=0: systemd would drop a file that has an error or a hang-up.
	return m.send("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, f)
}

// Forget asks the manager to close what it keeps under these names, and waits until it has handled
// that, for a second at most. Later versions of systemd than 252 close the files in processes of
// their own, which may take longer.
func (m *Manager) Forget(names ...string) error {
	for _, name := range names {
		if err := m.send("FDSTOREREMOVE=1\nFDNAME=" + name); err != nil {
			return err
		}
	}
	return m.barrier()
}

// roomEnv has the limit of the store: systemd 254 sets it, and so does vmnet-switch@.service.
const roomEnv = "FDSTORE"

// StoreRoom returns how many files the manager keeps at most, or 0 if that is not known.
func StoreRoom() int {
	n, err := strconv.Atoi(os.Getenv(roomEnv))
	if err != nil || n < 0 {
		return 0
	}
	return n
}

// barrier waits until the manager has handled what was sent: it then closes the pipe that comes
// with BARRIER=1 (sd_notify_barrier(3)).
func (m *Manager) barrier() error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	err = m.send("BARRIER=1", w)
	_ = w.Close()
	if err == nil {
		err = r.SetReadDeadline(time.Now().Add(timeout))
	}
	if err != nil {
		return err
	}
	if _, err = r.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("systemd does not answer within %v", timeout)
	}
	return nil
}
