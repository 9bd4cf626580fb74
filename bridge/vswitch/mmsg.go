package vswitch

import (
	"encoding/binary"
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch/offload"
)

// mmsgQueue receives and sends in batches, with recvmmsg(2) and sendmmsg(2). It is the queue of a
// socket wire, and a part of a packet wire's queue (packetQueue).
type mmsgQueue struct {
	*polled
	mmsgConfig
	msgs []mmsghdr
	iovs []unix.Iovec
	aux  [][auxLen]byte // control messages of frames, if lacks is lacksTag

	slots []byte // buffers for one frame each
	slot  int    // size of a slot in bytes
	room  int    // bytes before the data that the kernel writes, for what take adds

	ended func(errno syscall.Errno) bool // reports whether an error ends the queue

	// The current receive.
	fill   func(fd uintptr) (int, error) // the method fillFrames, bound once
	frames []frame
	grow   bool // enlarge the slots before the next receive
}

// mmsgConfig says what an mmsgQueue receives. Lengths are in bytes, as the kernel writes a frame.
type mmsgConfig struct {
	batch int // at most that many frames at a time
	size  int // longest frame
	big   int // longest frame after one did not fit, bigFrames at a time; 0 means size
	lacks lacking
}

// lacking is the part of a frame that is not in the data which the kernel writes. take adds it.
type lacking uint8

const (
	// lacksHeader is for a socket wire: a datagram is an Ethernet frame with all its tags. take
	// adds a vnet header of zeros.
	lacksHeader lacking = iota

	// lacksTag is for a packet wire: the data begins with a vnet header, and the kernel has moved
	// the outermost tag, if any, into a control message. take puts it back.
	lacksTag
)

// auxLen is the room for one control message, struct tpacket_auxdata (packet(7)).
const auxLen = unix.SizeofCmsghdr + 24

// newMmsgQueue takes ownership of f.
func newMmsgQueue(f *polled, cfg mmsgConfig) *mmsgQueue {
	q := &mmsgQueue{polled: f, mmsgConfig: cfg, room: vnetLen}
	q.fill = q.fillFrames
	if cfg.lacks == lacksTag {
		q.room, q.aux = tagLen, make([][auxLen]byte, cfg.batch)
	}
	q.makeSlots(cfg.batch, cfg.size)
	return q
}

// makeSlots allocates slots for that many frames, of at most size bytes each.
func (q *mmsgQueue) makeSlots(frames, size int) {
	q.msgs, q.iovs = make([]mmsghdr, frames), make([]unix.Iovec, frames)
	q.slot = (q.room + size + 63) &^ 63
	q.slots = make([]byte, q.slot*frames)
	for i := range q.msgs {
		at := q.slots[i*q.slot+q.room:]
		q.iovs[i].Base = &at[0]
		q.iovs[i].SetLen(size)
		q.msgs[i].hdr.Iov = &q.iovs[i]
		q.msgs[i].hdr.SetIovlen(1)
	}
}

func (q *mmsgQueue) receive(frames []frame) (int, error) {
	q.frames = frames
	if q.grow {
		q.makeSlots(bigFrames, q.big)
		q.grow, q.big = false, 0
	}
	return q.read(q.fill)
}

// fillFrames returns 0 if there is nothing to receive. An error that does not end the queue stands
// for one lost frame.
func (q *mmsgQueue) fillFrames(fd uintptr) (n int, err error) {
	switch n, errno := q.recv(fd, 0, min(len(q.frames), len(q.msgs))); errno {
	case unix.EAGAIN:
		return 0, nil
	case 0:
		for i := range n {
			q.frames[i] = q.take(i)
		}
		return n, nil
	default:
		q.frames[0], err = q.lost(errno)
		return 1, err
	}
}

// recv receives up to n frames into the messages from first on.
func (q *mmsgQueue) recv(fd uintptr, first, n int) (got int, errno syscall.Errno) {
	if q.lacks == lacksTag {
		for i := first; i < first+n; i++ { // the kernel has set the length to what it wrote
			q.msgs[i].hdr.Control = &q.aux[i][0]
			q.msgs[i].hdr.SetControllen(auxLen)
		}
	}
	for {
		got, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&q.msgs[first])), uintptr(n),
			unix.MSG_DONTWAIT, 0, 0)
		if errno != unix.EINTR {
			return int(got), errno
		}
	}
}

// lost returns the lost frame for which an error stands, or the error if it ends the queue. A
// packet socket returns EINVAL for a super-frame for which the vnet header has no type, such as one
// of SCTP, or of UDP before Linux 6.2 (virtio_net_hdr_from_skb in include/linux/virtio_net.h).
func (q *mmsgQueue) lost(errno syscall.Errno) (frame, error) {
	switch {
	case q.ended(errno):
		return frame{}, fmt.Errorf("receive: %w", errno)
	case errno == unix.EINVAL:
		return frame{lost: Indescribable}, nil
	}
	return frame{lost: Unreadable}, nil
}

// take returns the frame in message i, with what its data lacks.
func (q *mmsgQueue) take(i int) frame {
	if q.msgs[i].hdr.Flags&unix.MSG_TRUNC != 0 {
		q.grow = q.big > 0
		return frame{lost: Giant}
	}
	start := i * q.slot
	data := q.slots[start : start+q.room+int(q.msgs[i].len) : start+q.slot]
	if q.lacks == lacksHeader {
		clear(data[:q.room])
		return frame{data: data}
	}
	tag, ok := tagOf(&q.msgs[i].hdr, &q.aux[i])
	if !ok || len(data) < q.room+vnetLen+macsLen {
		return frame{data: data[q.room:]}
	}
	return frame{data: putBack(data, tag)}
}

// tagOf returns the tag that the kernel has removed from a frame (TP_STATUS_VLAN_VALID in
// include/uapi/linux/if_packet.h): the outermost one, of 802.1Q or 802.1ad (skb_vlan_untag in
// __netif_receive_skb_core, net/core/dev.c).
func tagOf(hdr *unix.Msghdr, aux *[auxLen]byte) (tag [tagLen]byte, ok bool) {
	const auxSize = int(unsafe.Sizeof(unix.TpacketAuxdata{}))
	c := (*unix.Cmsghdr)(unsafe.Pointer(aux))
	if int(hdr.Controllen) < unix.SizeofCmsghdr+auxSize || c.Level != unix.SOL_PACKET || c.Type != unix.PACKET_AUXDATA {
		return tag, false
	}
	a := (*unix.TpacketAuxdata)(unsafe.Pointer(&aux[unix.SizeofCmsghdr]))
	return tagIn(a.Status, a.Vlan_tci, a.Vlan_tpid)
}

// tagIn makes the tag from the fields that the kernel has moved it to.
func tagIn(status uint32, tci, kind uint16) (tag [tagLen]byte, ok bool) {
	if status&unix.TP_STATUS_VLAN_VALID == 0 {
		return tag, false
	}
	if status&unix.TP_STATUS_VLAN_TPID_VALID == 0 {
		kind = etherTypeVLAN
	}
	binary.BigEndian.PutUint16(tag[:], kind)
	binary.BigEndian.PutUint16(tag[2:], tci)
	return tag, true
}

// putBack moves the vnet header and the addresses into the room of tagLen bytes before them, and
// inserts the tag after them. It adapts the offsets in the header, which do not count the tag
// (virtio_net_hdr_from_skb in include/linux/virtio_net.h).
func putBack(data []byte, tag [tagLen]byte) []byte {
	copy(data, data[tagLen:tagLen+vnetLen+macsLen])
	copy(data[vnetLen+macsLen:], tag[:])
	h, _ := offload.Parse(data)
	h.Shifted(tagLen).Put(data)
	return data
}

func (q *mmsgQueue) send(s *sender) { s.use(q.conn, s.burst) }
