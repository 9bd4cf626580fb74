// Package fdpass sends open files over unix sockets (SCM_RIGHTS, unix(7)).
package fdpass

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// MaxFiles is how many files one message can carry (SCM_MAX_FD in include/net/scm.h).
const MaxFiles = 253

// A Socket is one end of a connected unix socket. Its methods block.
type Socket struct{ f *os.File }

// Pair makes two connected sockets that preserve message boundaries (SOCK_SEQPACKET). The second
// one is for another process, which opens it with Inherited.
func Pair() (*Socket, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return &Socket{os.NewFile(uintptr(fds[0]), "helper")}, os.NewFile(uintptr(fds[1]), "client"), nil
}

// Inherited takes ownership of a socket that this process inherited as that fd. It fails if the fd
// is not a unix socket. Children of this process do not inherit it.
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

// File returns the socket's file. The Socket keeps ownership.
func (s *Socket) File() *os.File { return s.f }

// Send sends one message, of at least one byte, with copies of the files, of which the caller keeps
// ownership. If the peer has closed its end, the error matches EPIPE with errors.Is, and there is
// no signal.
func (s *Socket) Send(payload []byte, files ...*os.File) error {
	if len(payload) == 0 || len(files) > MaxFiles {
		return fmt.Errorf("send %d bytes with %d files: want at least 1 byte and at most %d files",
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

// Receive waits for one message of at most limit bytes and for its files, which the caller owns. It
// returns io.EOF when the peer has closed its end. If the message was truncated, Receive closes its
// files and returns an error.
func (s *Socket) Receive(limit int) ([]byte, []*os.File, error) {
	payload, oob := make([]byte, limit), make([]byte, unix.CmsgSpace(4*MaxFiles))
	var n, oobn, flags int
	for {
		var err error
		n, oobn, flags, _, err = unix.Recvmsg(int(s.f.Fd()), payload, oob, unix.MSG_CMSG_CLOEXEC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.ECONNRESET) { // it closed its end before it read what we sent
			err = io.EOF
		}
		if err != nil {
			return nil, nil, fmt.Errorf("recvmsg: %w", err)
		}
		break
	}
	files, err := FilesIn(oob[:oobn])
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

// FilesIn returns the files in control messages. With an error, it returns those before it.
func FilesIn(oob []byte) (files []*os.File, err error) {
	fds, err := FDsIn(oob)
	for _, fd := range fds {
		files = append(files, os.NewFile(uintptr(fd), "received"))
	}
	return files, err
}

// FDsIn is FilesIn for a caller that needs the numbers.
func FDsIn(oob []byte) (fds []int, err error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("control message: %w", err)
	}
	for i := range messages {
		if messages[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		some, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return fds, fmt.Errorf("control message: %w", err)
		}
		fds = append(fds, some...)
	}
	return fds, nil
}

// CloseAll closes files and ignores errors, since nothing was written to the files.
func CloseAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// Inherit keeps a file open across execve(2), under its number.
func Inherit(f *os.File) error {
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETFD, 0); err != nil {
		return fmt.Errorf("leave %s open: %w", f.Name(), err)
	}
	return nil
}
