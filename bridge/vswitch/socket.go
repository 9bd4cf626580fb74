package vswitch

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// socketBuffer holds 93 full frames of 1500 bytes for each 208 KiB, so about 1800.
const socketBuffer = 4 << 20

// OpenSocket makes a wire of one end of an AF_UNIX datagram socketpair, one frame in each datagram, without a vnet
// header: what QEMU's netdev "dgram" speaks, and needs no privilege. It copies the fd; the caller keeps, and may close, its
// own, which is made non-blocking.
//
// mtu is what the other end sends at most, in bytes, without Ethernet header and VLAN tags; longer
// frames are dropped. 0 means 65535. Where the other end is closed, the port ends with
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

// checkKind tells whether an fd is the socket that is wanted.
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

// SocketPair makes a wire as OpenSocket does, and its other end, which the caller owns: a file to hand to QEMU, with
// room for as many frames.
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

// SocketFiles makes the two ends of an AF_UNIX datagram socketpair with room for bursts: one for OpenSocket, of this process
// or another one, and one to hand to QEMU. The caller closes both.
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
