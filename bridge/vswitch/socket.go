package vswitch

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// socketBuffer is a size in bytes with room for about 1800 full frames of 1500 bytes: 93 for each
// 208 KiB.
const socketBuffer = 4 << 20

// OpenSocket makes a wire from one end of an AF_UNIX datagram socketpair. Each datagram is one
// frame without a vnet header, as in QEMU's netdev "dgram". It needs no privilege. It copies the
// fd; the caller keeps its own and may close it. It makes the socket non-blocking, for the caller's
// fd too.
//
// mtu is the longest frame that the other end sends, in bytes, without Ethernet header and VLAN
// tags. Longer frames are dropped. 0 means 65535. When the other end is closed, the port ends with
// ECONNREFUSED: at the next frame that is sent to it, or within a second or two (peer.go).
func OpenSocket(f *os.File, mtu int) (*Wire, error) {
	if mtu <= 0 {
		mtu = 65535
	}
	own, err := duplicatePolled(f, checkSocket)
	if err != nil {
		return nil, fmt.Errorf("open socket: %w", err)
	}
	q := newSocketQueue(own, batchSize, min(mtu+etherLen+2*tagLen, maxFrame), vnetLen, false)
	q.ended = func(syscall.Errno) bool { return true }
	return &Wire{kind: "socket", queues: []queue{q}}, nil
}

func checkSocket(fd int) error {
	if err := checkKind(fd, unix.AF_UNIX, unix.SOCK_DGRAM, "an AF_UNIX datagram socket"); err != nil {
		return err
	}
	return raiseBuffers(fd, socketBuffer)
}

// checkKind returns an error unless an fd is a socket of that domain and type. want describes it.
func checkKind(fd, domain, kind int, want string) error {
	d, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return fmt.Errorf("%w (want %s)", err, want)
	}
	k, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err == nil && (d != domain || k != kind) {
		err = fmt.Errorf("domain %d, type %d: want %s", d, k, want)
	}
	return err
}

// SocketPair makes a wire as OpenSocket does, and returns its other end, which is for QEMU and has
// the same buffer size. The caller owns that file.
func SocketPair(mtu int) (*Wire, *os.File, error) {
	near, far, err := SocketFiles()
	if err != nil {
		return nil, nil, err
	}
	defer near.Close()
	w, err := OpenSocket(near, mtu)
	if err != nil {
		return nil, nil, errors.Join(err, far.Close())
	}
	return w, far, nil
}

// SocketFiles makes the two ends of an AF_UNIX datagram socketpair with room for bursts: near is
// for OpenSocket, in this process or another one, and far is for QEMU. The caller closes both.
func SocketFiles() (near, far *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	near, far = os.NewFile(uintptr(fds[0]), "switch's end"), os.NewFile(uintptr(fds[1]), "guest's end")
	if err := errors.Join(raiseBuffers(fds[0], socketBuffer), raiseBuffers(fds[1], socketBuffer)); err != nil {
		return nil, nil, errors.Join(err, near.Close(), far.Close())
	}
	return near, far, nil
}
