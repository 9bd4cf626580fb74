// Package sniff copies the frames that pass a network interface, as tcpdump(1) does, by a packet
// socket (packet(7)).
package sniff

import (
	"encoding/binary"
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
)

// MaxFrame is the most of a frame that is copied, in bytes: a super-frame and its headers.
const MaxFrame = 1 << 17

// buffer is the size of the socket's buffer in bytes, in which frames wait for the Reader.
const buffer = 8 << 20

// Open returns a packet socket that receives the frames that pass the link of that index in ns from
// now on. It takes CAP_NET_RAW in the user namespace that owns ns. The caller owns the file.
func Open(ns *netns.NS, index int) (f *os.File, err error) {
	fd := -1
	err = ns.Do(func() (err error) {
		// Of no protocol, so that no frame of another link arrives before bind(2).
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return err
	})
	if err != nil {
		return nil, os.NewSyscallError("packet socket", err)
	}
	f = os.NewFile(uintptr(fd), "packet socket")
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1); err != nil {
		return nil, os.NewSyscallError("PACKET_AUXDATA", err)
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, buffer)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
		return nil, os.NewSyscallError("SO_TIMESTAMPNS", err)
	}
	all := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL}) // in network byte order
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: index}); err != nil {
		return nil, os.NewSyscallError("bind a packet socket", err)
	}
	return f, nil
}

// A Frame is a copy of one.
type Frame struct {
	Time   time.Time
	Sent   bool // by the host, through the link; else the link has received it
	Length int  // bytes of the whole frame
	Data   []byte
}

// A Reader reads the frames of a socket of Open.
type Reader struct {
	file    *os.File
	conn    syscall.RawConn
	data    []byte
	oob     []byte
	dropped uint64
}

// NewReader returns a Reader, which does not own the file.
func NewReader(f *os.File) (*Reader, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	return &Reader{file: f, conn: conn, data: make([]byte, vlanLen+MaxFrame), oob: make([]byte, 256)}, nil
}

// SetDeadline bounds the next calls of Next, which then fail with os.ErrDeadlineExceeded.
func (r *Reader) SetDeadline(t time.Time) error { return r.file.SetReadDeadline(t) }

const (
	macsLen = 12 // of both addresses
	vlanLen = 4  // of a VLAN tag
)

// Next waits for a frame. Its data is valid until the next call. The kernel takes a frame's outer
// VLAN tag away; Next puts it back.
func (r *Reader) Next() (Frame, error) {
	for {
		var n, oobn int
		var from unix.Sockaddr
		var err error
		waitErr := r.conn.Read(func(fd uintptr) bool {
			n, oobn, _, from, err = unix.Recvmsg(int(fd), r.data[vlanLen:], r.oob, unix.MSG_TRUNC)
			return err != unix.EAGAIN && err != unix.EINTR
		})
		switch {
		case waitErr != nil:
			return Frame{}, waitErr
		case err == unix.ENETDOWN: // the link went down, or has gone; frames may follow
			continue
		case err != nil:
			return Frame{}, os.NewSyscallError("receive a frame", err)
		case n < macsLen:
			continue
		}
		return r.frame(n, r.oob[:oobn], from)
	}
}

func (r *Reader) frame(n int, oob []byte, from unix.Sockaddr) (Frame, error) {
	f := Frame{Time: time.Now(), Length: n, Data: r.data[vlanLen:min(vlanLen+n, len(r.data))]}
	if sa, ok := from.(*unix.SockaddrLinklayer); ok {
		f.Sent = sa.Pkttype == unix.PACKET_OUTGOING
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return f, fmt.Errorf("control messages of a frame: %w", err)
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS && len(m.Data) >= 16:
			f.Time = time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
		case m.Header.Level == unix.SOL_PACKET && m.Header.Type == unix.PACKET_AUXDATA &&
			len(m.Data) >= int(unsafe.Sizeof(unix.TpacketAuxdata{})):
			r.restoreTag(&f, m.Data)
		}
	}
	return f, nil
}

// restoreTag puts the VLAN tag back that struct tpacket_auxdata has (packet(7)).
func (r *Reader) restoreTag(f *Frame, aux []byte) {
	status := binary.NativeEndian.Uint32(aux)
	tci, tpid := binary.NativeEndian.Uint16(aux[16:]), binary.NativeEndian.Uint16(aux[18:])
	if status&unix.TP_STATUS_VLAN_VALID == 0 {
		return
	}
	if status&unix.TP_STATUS_VLAN_TPID_VALID == 0 {
		tpid = unix.ETH_P_8021Q
	}
	copy(r.data, r.data[vlanLen:vlanLen+macsLen])
	binary.BigEndian.PutUint16(r.data[macsLen:], tpid)
	binary.BigEndian.PutUint16(r.data[macsLen+2:], tci)
	f.Length += vlanLen
	f.Data = r.data[:min(f.Length, len(r.data))]
}

// Gone reports whether the link has been deleted or has moved to another namespace: no frame
// follows.
func (r *Reader) Gone() (gone bool) {
	_ = r.conn.Control(func(fd uintptr) {
		sa, err := unix.Getsockname(int(fd))
		at, ok := sa.(*unix.SockaddrLinklayer)
		gone = err == nil && ok && at.Ifindex <= 0 // packet_notifier() in net/packet/af_packet.c
	})
	return gone
}

// Dropped returns how many frames had no room in the socket's buffer (PACKET_STATISTICS).
func (r *Reader) Dropped() uint64 {
	_ = r.conn.Control(func(fd uintptr) {
		if st, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
			r.dropped += uint64(st.Drops) // reading resets it
		}
	})
	return r.dropped
}
