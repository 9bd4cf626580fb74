// Package fdpass sends open files over unix sockets (SCM_RIGHTS, unix(7)).
package fdpass

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// MaxFiles is how many files fit into one message (SCM_MAX_FD of include/net/scm.h).
const MaxFiles = 253

// A Socket is one end of a connected unix socket that sends and receives blocking.
type Socket struct{ f *os.File }

// Pair makes two connected sockets that keep messages apart (SOCK_SEQPACKET). The second
// one is for another process, which finds it as whatever fd its starter says.
func Pair() (*Socket, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return &Socket{os.NewFile(uintptr(fds[0]), "helper")}, os.NewFile(uintptr(fds[1]), "client"), nil
}

// Inherited takes over a socket that this process was started with. It is an error
// if the fd is none. Nobody that we start inherits it.
func Inherited(fd int) (*Socket, error) {
	family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	switch {
	case err != nil:
		return nil, fmt.Errorf("fd %d: %w (want a unix socket, open in this process)", fd, err)
	case family != unix.AF_UNIX:
		return nil, fmt.Errorf("fd %d: a socket of address family %d, not a unix socket", fd, family)
	}
	unix.CloseOnExec(fd)
	return &Socket{os.NewFile(uintptr(fd), "socket")}, nil
}

// Close closes this end.
func (s *Socket) Close() error { return s.f.Close() }

// File is the socket's, and stays its own.
func (s *Socket) File() *os.File { return s.f }

// Send sends one message with copies of the files, which stay the caller's. A message needs
// at least one byte. A peer that has gone is an error that Is EPIPE, never a signal.
func (s *Socket) Send(payload []byte, files ...*os.File) error {
	if len(payload) == 0 || len(files) > MaxFiles {
		return fmt.Errorf("send %d bytes with %d files: at least 1 byte, at most %d files",
			len(payload), len(files), MaxFiles)
	}
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	for {
		n, err := unix.SendmsgN(int(s.f.Fd()), payload, rights, nil, unix.MSG_NOSIGNAL)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("sendmsg: %w", err)
		case n < len(payload):
			return fmt.Errorf("sendmsg: %d of %d bytes: %w", n, len(payload), io.ErrShortWrite)
		}
		return nil
	}
}

// Receive waits for one message of at most limit bytes and the files with it, which the caller
// owns. It returns io.EOF when the peer has closed its end. A message that was cut is an error, and
// its files are closed.
func (s *Socket) Receive(limit int) ([]byte, []*os.File, error) {
	payload, oob := make([]byte, limit), make([]byte, unix.CmsgSpace(4*MaxFiles))
	var n, oobn, flags int
	for {
		var err error
		n, oobn, flags, _, err = unix.Recvmsg(int(s.f.Fd()), payload, oob, unix.MSG_CMSG_CLOEXEC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.ECONNRESET) { // it left without reading what we have sent
			err = io.EOF
		}
		if err != nil {
			return nil, nil, fmt.Errorf("recvmsg: %w", err)
		}
		break
	}
	files, err := filesIn(oob[:oobn])
	if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = fmt.Errorf("recvmsg: a message of more than %d bytes or %d files", limit, MaxFiles)
	}
	if err != nil {
		CloseAll(files)
		return nil, nil, err
	}
	if n == 0 {
		CloseAll(files)
		return nil, nil, io.EOF
	}
	return payload[:n], files, nil
}

// filesIn takes the files out of control messages; it returns those it has found also with an
// error.
func filesIn(oob []byte) (files []*os.File, err error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("control message: %w", err)
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return files, fmt.Errorf("control message: %w", err)
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

// CloseAll closes files, whose errors tell nothing: nothing was written to them.
func CloseAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// Inherit leaves a file open over execve(2), under the number that it has.
func Inherit(f *os.File) error {
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETFD, 0); err != nil {
		return fmt.Errorf("leave %s open: %w", f.Name(), err)
	}
	return nil
}
