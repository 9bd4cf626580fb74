package vswitch

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"vmnet/internal/endpoint"
)

// OpenSocket makes a wire from one end of an AF_UNIX datagram socketpair. Each datagram is one
// frame without a vnet header, as in QEMU's netdev "dgram". It needs no privilege. It copies the
// fd; the caller keeps its own and may close it. It makes the socket non-blocking, for the caller's
// fd too.
//
// mtu is the longest frame that the other end sends, in bytes, without Ethernet header and VLAN
// tags; 0 means 65535. A frame of that length may have two tags: the port receives up to mtu+22
// bytes, at most offload.MaxFrame. Longer frames are dropped as Giant. When the other end is
// closed, the port ends with ECONNREFUSED: at the next frame that is sent to it, or within a second
// or two (peer.go).
func OpenSocket(f *os.File, mtu int) (*Wire, error) {
	if mtu <= 0 {
		mtu = 65535
	}
	own, err := duplicatePolled(f, endpoint.CheckSocket)
	if err != nil {
		return nil, fmt.Errorf("open socket: %w", err)
	}
	q := newMmsgQueue(own, mmsgConfig{
		batch: batchSize, size: min(mtu+etherLen+2*tagLen, maxFrame), lacks: lacksHeader,
	})
	q.ended = func(syscall.Errno) bool { return true }
	return &Wire{kind: "socket", most: mtu, pieces: true, queues: []queue{q}}, nil
}

// SocketPair makes a wire as OpenSocket does, and returns its other end, which is for QEMU and has
// the same buffer size. The caller owns that file.
func SocketPair(mtu int) (*Wire, *os.File, error) {
	near, far, err := endpoint.SocketFiles()
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
