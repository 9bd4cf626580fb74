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
// mtu is what the other end sends at most, in bytes, without Ethernet header and VLAN tags; longer frames are dropped. 0 means
// 65535. The kernel does not tell the reader of a datagram socket that the other end was closed, only whoever sends to it:
// then the port ends with ECONNREFUSED.
func OpenSocket(f *os.File, mtu int) (*Wire, error) {
	if mtu <= 0 {
		mtu = 65535
	}
	own, err := duplicate(f, checkSocket)
	if err != nil {
		return nil, fmt.Errorf("open socket: %w", err)
	}
	q := newSocketQueue(own, batchSize, min(mtu+etherLen+2*tagLen, maxFrame), vnetLen, false)
	q.ended = func(syscall.Errno) bool { return true }
	return &Wire{kind: "socket", queues: []queue{q}}, nil
}

func checkSocket(fd int) error {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return err
	}
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return err
	}
	if domain != unix.AF_UNIX || kind != unix.SOCK_DGRAM {
		return fmt.Errorf("domain %d, type %d: want an AF_UNIX datagram socket", domain, kind)
	}
	return raiseBuffers(fd, socketBuffer)
}

// SocketPair makes a wire as OpenSocket does, and its other end, which the caller owns: a file to hand to QEMU, with
// room for as many frames.
func SocketPair(mtu int) (*Wire, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	near, far := os.NewFile(uintptr(fds[0]), "socket"), os.NewFile(uintptr(fds[1]), "socket")
	defer near.Close()
	w, err := OpenSocket(near, mtu)
	if err == nil {
		if err = raiseBuffers(fds[1], socketBuffer); err == nil {
			return w, far, nil
		}
		err = errors.Join(err, w.Close())
	}
	return nil, nil, errors.Join(err, far.Close())
}
