package vswitch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// The other end of a datagram socketpair that is closed tells nobody: who sends to it learns of it,
// who reads does not. So the switch's clock asks the kernel for each such socket's peer
// (sock_diag(7), unix_diag_req of include/uapi/linux/unix_diag.h). Of a socket that was made in
// another network namespace than this process is in, the kernel says nothing.

const (
	sockDiagByFamily = 20  // SOCK_DIAG_BY_FAMILY of include/uapi/linux/sock_diag.h
	udiagShowPeer    = 0x4 // UDIAG_SHOW_PEER
	unixDiagPeer     = 2   // UNIX_DIAG_PEER
	sizeofUnixDiag   = 16  // struct unix_diag_msg
)

// errPeerClosed is what a port ends with then, as where it was sent to.
var errPeerClosed = fmt.Errorf("the other end of its socket was closed: %w", unix.ECONNREFUSED)

// peers asks about sockets. It is for one goroutine.
type peers struct {
	fd     int // of the netlink socket; -1 where there is none
	answer [4096]byte
}

// newPeers opens the netlink socket. Where that cannot be had, no peer is ever closed.
func newPeers() *peers {
	p := &peers{fd: -1}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return p
	}
	p.fd = fd
	timeout := unix.NsecToTimeval(int64(claimWait))
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout)
	return p
}

func (p *peers) close() {
	if p.fd >= 0 {
		_ = unix.Close(p.fd)
	}
}

// closed reports whether the kernel says that a socket's peer was closed.
func (p *peers) closed(f file) bool {
	var st unix.Stat_t
	err := f.control(func(fd int) error { return unix.Fstat(fd, &st) })
	if err != nil || p.fd < 0 {
		return false
	}
	peer, err := p.peerOf(uint32(st.Ino))
	return err == nil && peer == 0
}

// peerOf is the inode of a unix socket's peer; 0 where that was closed.
func (p *peers) peerOf(inode uint32) (peer uint32, err error) {
	const length = unix.SizeofNlMsghdr + 24
	b := binary.NativeEndian.AppendUint32(nil, length)
	b = binary.NativeEndian.AppendUint16(b, sockDiagByFamily)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST)
	b = append(b, make([]byte, 8)...)                   // sequence, port
	b = append(b, unix.AF_UNIX, 0, 0, 0)                // struct unix_diag_req: family, protocol, pad
	b = binary.NativeEndian.AppendUint32(b, ^uint32(0)) // of any state
	b = binary.NativeEndian.AppendUint32(b, inode)
	b = binary.NativeEndian.AppendUint32(b, udiagShowPeer)
	b = binary.NativeEndian.AppendUint64(b, ^uint64(0)) // of any cookie
	if err := unix.Sendto(p.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, err
	}
	n, _, err := unix.Recvfrom(p.fd, p.answer[:], 0)
	if err != nil {
		return 0, err
	}
	messages, err := syscall.ParseNetlinkMessage(p.answer[:n])
	if err != nil || len(messages) != 1 || messages[0].Header.Type != sockDiagByFamily || len(messages[0].Data) < sizeofUnixDiag {
		return 0, errors.Join(errors.New("sock_diag: no answer about that socket"), err)
	}
	return peerIn(messages[0].Data[sizeofUnixDiag:]), nil
}

// peerIn finds UNIX_DIAG_PEER among attributes; a socket without a peer has none.
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
