package vswitch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/sockopt"
)

// When one end of a datagram socketpair is closed, a sender at the other end gets an error, but a
// reader does not. The switch's clock therefore asks the kernel for each such socket's peer
// (sock_diag(7), unix_diag_req in include/uapi/linux/unix_diag.h). The kernel does not report on
// sockets that were made in a network namespace other than this process's.

const (
	sockDiagByFamily = 20  // SOCK_DIAG_BY_FAMILY of include/uapi/linux/sock_diag.h
	udiagShowPeer    = 0x4 // UDIAG_SHOW_PEER
	unixDiagPeer     = 2   // UNIX_DIAG_PEER
	sizeofUnixDiag   = 16  // struct unix_diag_msg
)

// errPeerClosed ends a port whose peer was closed. A send to the peer would end it with the same
// errno.
var errPeerClosed = fmt.Errorf("the other end of its socket was closed: %w", unix.ECONNREFUSED)

// peers asks the kernel for the peers of sockets. Only one goroutine may use it.
type peers struct {
	fd     int // netlink socket, or -1
	answer [4096]byte
}

// peerWait limits the wait for a reply of sock_diag.
const peerWait = 5 * time.Second

// newPeers opens the netlink socket. If that fails, closed always returns false.
func newPeers() *peers {
	p := &peers{fd: -1}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return p
	}
	p.fd = fd
	_ = sockopt.SetReceiveTimeout(fd, peerWait)
	return p
}

func (p *peers) close() {
	if p.fd >= 0 {
		_ = unix.Close(p.fd)
	}
}

// closed reports whether a socket's peer was closed, as far as the kernel reports it.
func (p *peers) closed(f file) bool {
	var st unix.Stat_t
	err := f.control(func(fd int) error { return unix.Fstat(fd, &st) })
	if err != nil || p.fd < 0 {
		return false
	}
	peer, err := p.peerOf(uint32(st.Ino))
	return err == nil && peer == 0
}

// peerOf returns the inode of a unix socket's peer, or 0 if the peer was closed.
func (p *peers) peerOf(inode uint32) (peer uint32, err error) {
	const length = unix.SizeofNlMsghdr + 24
	b := binary.NativeEndian.AppendUint32(nil, length)
	b = binary.NativeEndian.AppendUint16(b, sockDiagByFamily)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST)
	b = append(b, make([]byte, 8)...)                   // sequence, port
	b = append(b, unix.AF_UNIX, 0, 0, 0)                // struct unix_diag_req: family, protocol, pad
	b = binary.NativeEndian.AppendUint32(b, ^uint32(0)) // any state
	b = binary.NativeEndian.AppendUint32(b, inode)
	b = binary.NativeEndian.AppendUint32(b, udiagShowPeer)
	b = binary.NativeEndian.AppendUint64(b, ^uint64(0)) // any cookie
	if err := unix.Sendto(p.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, err
	}
	n, _, err := unix.Recvfrom(p.fd, p.answer[:], 0)
	if err != nil {
		return 0, err
	}
	messages, err := syscall.ParseNetlinkMessage(p.answer[:n])
	if err != nil || len(messages) != 1 || messages[0].Header.Type != sockDiagByFamily ||
		len(messages[0].Data) < sizeofUnixDiag {
		return 0, errors.Join(errors.New("sock_diag: no reply about that socket"), err)
	}
	return peerIn(messages[0].Data[sizeofUnixDiag:]), nil
}

// peerIn returns the attribute UNIX_DIAG_PEER, or 0: a socket without a peer does not have it.
func peerIn(b []byte) uint32 {
	for len(b) >= unix.SizeofRtAttr {
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofRtAttr || n > len(b) {
			return 0
		}
		if binary.NativeEndian.Uint16(b[2:]) == unixDiagPeer && n >= unix.SizeofRtAttr+4 {
			return binary.NativeEndian.Uint32(b[unix.SizeofRtAttr:])
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	return 0
}
