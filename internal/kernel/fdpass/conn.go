package fdpass

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// SendOver is Send over a connection of package net, whose deadlines apply. Unlike Send, it does
// not make the files blocking.
func SendOver(c *net.UnixConn, payload []byte, files ...*os.File) error {
	if len(payload) == 0 || len(files) > MaxFiles {
		return fmt.Errorf("send %d bytes with %d files: want at least 1 byte and at most %d files",
			len(payload), len(files), MaxFiles)
	}
	return withFDs(files, nil, func(fds []int) error {
		var rights []byte
		if len(fds) > 0 {
			rights = unix.UnixRights(fds...)
		}
		_, _, err := c.WriteMsgUnix(payload, rights, nil)
		return err
	})
}

// withFDs calls do with the fds of the files, which cannot be closed during the call.
func withFDs(files []*os.File, fds []int, do func(fds []int) error) error {
	if len(files) == 0 {
		return do(fds)
	}
	return Control(files[0], func(fd int) error { return withFDs(files[1:], append(fds, fd), do) })
}

// Control calls do with the fd of a file or a connection, which cannot be closed during the call,
// and returns its error. Unlike File.Fd, it does not make the file blocking.
func Control(c syscall.Conn, do func(fd int) error) error {
	conn, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := conn.Control(func(fd uintptr) { inner = do(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// DuplicateFD returns a copy of a file's fd, which the caller owns. Unlike File.Fd, it does not
// make the file blocking. The copy is at least 3, above the standard files.
func DuplicateFD(f *os.File) (fd int, err error) {
	err = Control(f, func(from int) (err error) {
		fd, err = unix.FcntlInt(uintptr(from), unix.F_DUPFD_CLOEXEC, 3)
		return err
	})
	return fd, err
}

// Duplicate returns a copy of a file as DuplicateFD does, with the same name. The caller closes it.
func Duplicate(f *os.File) (*os.File, error) {
	fd, err := DuplicateFD(f)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// ReceiveOver is Receive over a connection of package net, whose deadlines apply, for at most that
// many files. The payload is a part of b.
func ReceiveOver(c *net.UnixConn, b []byte, maxFiles int) (payload []byte, files []*os.File, err error) {
	oob := make([]byte, unix.CmsgSpace(4*maxFiles))
	n, oobn, flags, _, readErr := c.ReadMsgUnix(b, oob)
	files, err = FilesIn(oob[:oobn])
	switch {
	case readErr != nil: // an empty message, which may have files, reads as io.EOF
		err = readErr
	case err == nil && (flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 || len(files) > maxFiles):
		err = fmt.Errorf("a message of more than %d bytes or %d files, or no room for files here (ulimit -n)",
			len(b), maxFiles)
	}
	if err != nil {
		CloseAll(files)
		return nil, nil, err
	}
	return b[:n], files, nil
}

// PeerOf returns the credentials of the process that connected, or that listened (SO_PEERCRED in
// unix(7)).
func PeerOf(c *net.UnixConn) (cred unix.Ucred, err error) {
	got, err := sockopt(c, func(fd int) (*unix.Ucred, error) {
		return unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err != nil {
		return unix.Ucred{}, fmt.Errorf("SO_PEERCRED: %w", err)
	}
	return *got, nil
}

// PeerGroups returns the supplementary groups of the process that PeerOf names (SO_PEERGROUPS,
// Linux 4.13).
func PeerGroups(c *net.UnixConn) (groups []int, err error) {
	room, size := make([]uint32, 64), uint32(0)
	for {
		size = uint32(4 * len(room))
		err = Control(c, func(fd int) error {
			_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
				uintptr(unsafe.Pointer(&room[0])), uintptr(unsafe.Pointer(&size)), 0)
			if errno != 0 {
				return errno
			}
			return nil
		})
		if !errors.Is(err, unix.ERANGE) || size <= uint32(4*len(room)) {
			break
		}
		room = make([]uint32, size/4) // there are as many
	}
	if err != nil {
		return nil, fmt.Errorf("SO_PEERGROUPS: %w", err)
	}
	for _, g := range room[:size/4] {
		groups = append(groups, int(g))
	}
	return groups, nil
}

// PeerIs returns an error, which matches fs.ErrPermission with errors.Is, unless process pid is the
// one that PeerOf names. path is that of the socket.
func PeerIs(c *net.UnixConn, pid int, path string) error {
	peer, err := PeerOf(c)
	if err == nil && int(peer.Pid) != pid {
		err = fmt.Errorf("%w: process %d of user %d listens on %s instead of the guest's VMM, process %d",
			fs.ErrPermission, peer.Pid, peer.Uid, path, pid)
	}
	return err
}

// PeerPidfd returns a pidfd of the process that PeerOf names (SO_PEERPIDFD), which the caller owns.
// It returns nil before Linux 6.5, or if the process has ended.
func PeerPidfd(c *net.UnixConn) *os.File {
	fd, err := sockopt(c, func(fd int) (int, error) {
		return unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	})
	if err != nil || fd < 0 {
		return nil
	}
	return os.NewFile(uintptr(fd), "pidfd of a peer")
}

func sockopt[T any](c *net.UnixConn, get func(fd int) (T, error)) (value T, err error) {
	err = Control(c, func(fd int) (err error) {
		value, err = get(fd)
		return err
	})
	return value, err
}
