package endpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"vmnet/internal/filelock"
	"vmnet/internal/kernel/sockopt"
)

// waiting is the queue of a listening socket: further processes than the one that is
// served wait there.
const waiting = 16

// maxSocketPath is the longest path of a socket in bytes (unix(7)).
const maxSocketPath = 107

// ListenStream makes a socket at path to which others connect. Only this user may
// connect, until somebody changes the mode or the owner of its file. It replaces the file of a
// socket on which no process listens. The caller closes the socket, and removes its file with
// RemoveSocket.
func ListenStream(path string) (f *os.File, err error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("socket path of %d bytes: want at most %d", len(path), maxSocketPath)
	}
	err = ReplaceSocket(path, func() (err error) {
		f, err = listenStream(path)
		return err
	})
	return f, err
}

func listenStream(path string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), path)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return nil, errors.Join(fmt.Errorf("bind to %s: %w", path, err), f.Close())
	}
	if err = os.Chmod(path, 0o600); err == nil { // before anybody can connect
		err = unix.Listen(fd, waiting)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", path, err), f.Close(), os.Remove(path))
	}
	return f, nil
}

// ReplaceSocket removes the file of a socket on which no process listens, if there is one, and
// calls listen, which makes a socket there. A lock beside it keeps concurrent calls apart: until it
// listens, the new socket looks like one that is left over.
func ReplaceSocket(path string, listen func() error) error {
	unlock, err := filelock.Brief(path + ".lock")
	if err != nil {
		return err
	}
	defer func() { _ = unlock() }() // a lock that stays is used again
	if err := removeUnused(path); err != nil {
		return err
	}
	return listen()
}

// RemoveSocket removes the file of a socket on which no process listens. It is no error if there is
// no file.
func RemoveSocket(path string) error { return ReplaceSocket(path, func() error { return nil }) }

// removeUnused is RemoveSocket for a caller that has locked the path.
func removeUnused(path string) error {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case st.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s exists and is not a socket (remove it, or name another path)", path)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
	_ = unix.Close(fd)
	switch {
	case err == nil, errors.Is(err, unix.EAGAIN): // its queue of connections is full
		return fmt.Errorf("another process listens on %s (end it, or name another path)", path)
	case errors.Is(err, unix.ECONNREFUSED):
		return os.Remove(path)
	}
	return fmt.Errorf("connect to %s, which exists: %w (remove it, or name another path)", path, err)
}

// StreamDirectory opens the directory in which another process listens, for a switch that connects
// to it. The process need not listen yet. The caller closes the file.
func StreamDirectory(path string) (*os.File, error) {
	return os.OpenFile(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// CheckStream returns an error unless an fd is a stream socket, and reports whether it listens.
func CheckStream(fd int) (listens bool, err error) {
	if err := sockopt.CheckKind(fd, unix.AF_UNIX, unix.SOCK_STREAM, "an AF_UNIX stream socket"); err != nil {
		return false, err
	}
	v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	return v != 0, err
}
