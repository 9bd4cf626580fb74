package endpoint

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/sockopt"
)

// socketBuffer is a size in bytes with room for about 1800 full frames of 1500 bytes: 93 for each
// 208 KiB.
const socketBuffer = 4 << 20

// SocketFiles makes the two ends of an AF_UNIX datagram socketpair with room for bursts: near is
// for OpenSocket, in this process or another one, and far is for QEMU. The caller closes both.
func SocketFiles() (near, far *os.File, err error) { return pair(unix.SOCK_DGRAM, socketBuffer) }

// pair makes an AF_UNIX socketpair of that type, whose buffers have that size in bytes.
func pair(kind, buffer int) (near, far *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	near, far = os.NewFile(uintptr(fds[0]), "switch's end"), os.NewFile(uintptr(fds[1]), "guest's end")
	if err := errors.Join(sockopt.RaiseBuffers(fds[0], buffer), sockopt.RaiseBuffers(fds[1], buffer)); err != nil {
		return nil, nil, errors.Join(err, near.Close(), far.Close())
	}
	return near, far, nil
}

// streamBuffer is the size in bytes of the buffers of a stream socket. Nothing is lost when they
// are full, so they have no room for bursts.
const streamBuffer = 1 << 20

// StreamFiles is SocketFiles for a stream socketpair, for OpenStream and for QEMU.
func StreamFiles() (near, far *os.File, err error) { return pair(unix.SOCK_STREAM, streamBuffer) }

// CheckStreamBuffers returns an error unless an fd is a stream socket. It raises its buffers.
func CheckStreamBuffers(fd int) error {
	if _, err := CheckStream(fd); err != nil {
		return err
	}
	return sockopt.RaiseBuffers(fd, streamBuffer)
}

// CheckSocket returns an error unless an fd can be an end of SocketFiles. It raises the socket's
// buffers.
func CheckSocket(fd int) error {
	if err := sockopt.CheckKind(fd, unix.AF_UNIX, unix.SOCK_DGRAM, "an AF_UNIX datagram socket"); err != nil {
		return err
	}
	return sockopt.RaiseBuffers(fd, socketBuffer)
}
