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
func SocketFiles() (near, far *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	near, far = os.NewFile(uintptr(fds[0]), "switch's end"), os.NewFile(uintptr(fds[1]), "guest's end")
	if err := errors.Join(sockopt.RaiseBuffers(fds[0], socketBuffer),
		sockopt.RaiseBuffers(fds[1], socketBuffer)); err != nil {
		return nil, nil, errors.Join(err, near.Close(), far.Close())
	}
	return near, far, nil
}

// CheckSocket returns an error unless an fd can be an end of SocketFiles. It raises the socket's
// buffers.
func CheckSocket(fd int) error {
	if err := sockopt.CheckKind(fd, unix.AF_UNIX, unix.SOCK_DGRAM, "an AF_UNIX datagram socket"); err != nil {
		return err
	}
	return sockopt.RaiseBuffers(fd, socketBuffer)
}
