package vswitch

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// arrivals is the receive ring of a packet socket (packet(7), PACKET_RX_RING, version 2): the
// kernel writes small frames into its slots, on the sender's CPU, and they are read without a
// system call. A frame that is longer than a slot waits in the socket's queue, and its slot says so
// (PACKET_COPY_THRESH).
//
// Any process that has the socket can write to the ring. So frames are copied out of it before they
// are checked.
type arrivals struct {
	mu   sync.Mutex // close may be called during a receive
	ring []byte
	next int // the slot that the kernel fills next

	// full says that all slots may have been taken at some time since wasFull last forgot it. The
	// kernel drops frames then, and counts them, as it counts those that no vnet header describes
	// (tpacket_rcv in net/packet/af_packet.c).
	full bool
}

const (
	arrivalSlots = 1024
	arrivalSlot  = 2048     // has room for a full frame of Ethernet with several tags
	arrivalBlock = 64 << 10 // what the kernel allocates at a time
	arrivalCPUs  = 64       // slots that CPUs may be filling at once

	// Offsets in a slot, of struct tpacket2_hdr (include/uapi/linux/if_packet.h). The vnet header
	// and the frame come after it, and after a struct sockaddr_ll.
	slotStatus   = 0
	slotLen      = 4
	slotSnaplen  = 8
	slotMAC      = 12
	slotVLAN     = 24
	slotVLANType = 26
	slotHead     = 32 + unix.SizeofSockaddrLinklayer
)

// openArrivals makes the ring of a packet socket, also of one that another switch has handed over.
// Frames that the socket has received before are lost (packet_set_ring in net/packet/af_packet.c).
func openArrivals(fd int) (*arrivals, error) {
	none := unix.TpacketReq{} // removes a ring, which would keep its version
	_ = unix.SetsockoptTpacketReq(fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &none)
	for _, o := range []struct {
		name       string
		opt, value int
	}{{"PACKET_VERSION", unix.PACKET_VERSION, unix.TPACKET_V2}, {"PACKET_COPY_THRESH", unix.PACKET_COPY_THRESH, 1}} {
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, o.opt, o.value); err != nil {
			return nil, fmt.Errorf("%s: %w", o.name, err)
		}
	}
	const size = arrivalSlots * arrivalSlot
	req := unix.TpacketReq{
		Block_size: arrivalBlock, Block_nr: size / arrivalBlock, Frame_size: arrivalSlot, Frame_nr: arrivalSlots,
	}
	if err := unix.SetsockoptTpacketReq(fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &req); err != nil {
		return nil, fmt.Errorf("PACKET_RX_RING: %w", err)
	}
	ring, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the ring: %w", err)
	}
	return &arrivals{ring: ring}, nil
}

// close unmaps the ring. The socket lives at least as long as the mapping.
func (a *arrivals) close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	ring := a.ring
	if a.ring = nil; ring == nil {
		return nil
	}
	return unix.Munmap(ring)
}

// An arrival is what a slot says of its frame.
type arrival struct {
	slot    []byte
	queued  bool // the frame waits in the socket's queue
	cut     bool // the slot has only the beginning of the frame
	tagged  bool
	tag     [tagLen]byte
	mac     int // offset of the frame
	snaplen int // bytes of the frame in the slot
}

// at returns the frame i slots after the next one. ok is false if the kernel has not filled that
// slot.
func (a *arrivals) at(i int) (f arrival, ok bool) {
	at := (a.next + i) % arrivalSlots * arrivalSlot
	f.slot = a.ring[at : at+arrivalSlot : at+arrivalSlot]
	status := statusOf(f.slot).Load()
	if status&unix.TP_STATUS_USER == 0 {
		return f, false
	}
	word := func(at int) int { return int(binary.NativeEndian.Uint32(f.slot[at:])) }
	f.snaplen, f.mac = word(slotSnaplen), int(binary.NativeEndian.Uint16(f.slot[slotMAC:]))
	f.queued = status&unix.TP_STATUS_COPY != 0
	f.cut = f.snaplen < word(slotLen) || f.mac < slotHead+vnetLen || f.snaplen > arrivalSlot-f.mac
	f.tag, f.tagged = tagIn(status, binary.NativeEndian.Uint16(f.slot[slotVLAN:]),
		binary.NativeEndian.Uint16(f.slot[slotVLANType:]))
	return f, true
}

func statusOf(slot []byte) *atomic.Uint32 { return (*atomic.Uint32)(unsafe.Pointer(&slot[slotStatus])) }

// look notes whether all slots may have been taken before the last n were given back. CPUs that
// receive at once take slots in turn and mark each when it is full, so the last mark may be missing
// while the kernel already drops frames: look checks a slot somewhat before the last one.
func (a *arrivals) look(n int) {
	if _, taken := a.at(arrivalSlots - 1 - n - arrivalCPUs); taken {
		a.full = true
	}
}

// wasFull reports whether all slots may have been taken at some time since wasFull last forgot it.
func (a *arrivals) wasFull(forget bool) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ring != nil {
		a.look(0)
	}
	full := a.full
	a.full = full && !forget
	return full
}

// free gives the next n slots back to the kernel. It looks afterwards, since the kernel may find no
// slot up to that moment.
func (a *arrivals) free(n int) {
	defer a.look(n)
	for range n {
		statusOf(a.ring[a.next*arrivalSlot:]).Store(unix.TP_STATUS_KERNEL)
		a.next = (a.next + 1) % arrivalSlots
	}
}

// copyTo copies the vnet header and the frame to buf, after tagLen bytes of room, puts the tag back
// and returns the whole.
func (f *arrival) copyTo(buf []byte) []byte {
	n := tagLen + copy(buf[tagLen:], f.slot[f.mac-vnetLen:f.mac+f.snaplen])
	if !f.tagged || n < tagLen+vnetLen+macsLen {
		return buf[tagLen:n]
	}
	return putBack(buf[:n], f.tag)
}

// useRing makes the queue receive by a ring, where the kernel gives it one.
func (q *packetQueue) useRing() {
	_ = q.control(func(fd int) (err error) {
		q.ring, err = openArrivals(fd)
		return err
	})
	if q.ring != nil {
		q.fill, q.small = q.fillSlots, make([]byte, batchSize*arrivalSlot)
	}
}

// fillSlots is fillFrames for a socket with a ring.
func (q *packetQueue) fillSlots(fd uintptr) (n int, err error) {
	a := q.ring
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ring == nil {
		return 0, os.ErrClosed
	}
	var queued [packetFrames]int // indices of those frames
	waiting := 0
	for n < min(len(q.frames), batchSize) && waiting < len(q.msgs) {
		f, ok := a.at(n)
		if !ok {
			break
		}
		switch {
		case f.queued:
			q.frames[n] = frame{lost: Unreadable} // until it is received
			queued[waiting] = n
			waiting++
		case f.cut:
			q.frames[n] = frame{lost: Overrun}
		default:
			q.frames[n] = frame{data: f.copyTo(q.small[n*arrivalSlot : (n+1)*arrivalSlot])}
		}
		n++
	}
	a.free(n)
	if n == 0 {
		return q.pending(fd)
	}
	return n, q.fillQueued(fd, queued[:waiting])
}

// fillQueued receives the frames with those indices, which wait in the socket's queue.
func (q *packetQueue) fillQueued(fd uintptr, indices []int) error {
	again := true
	for got := 0; got < len(indices); {
		n, errno := q.recv(fd, got, len(indices)-got)
		switch {
		case errno == 0:
			for i := got; i < got+n; i++ {
				q.frames[indices[i]] = q.take(i)
			}
			got += n
		case errno == unix.EAGAIN || !again:
			return nil
		default: // an error of the socket, which comes before the frames
			again = false
			if _, err := q.lost(errno); err != nil {
				return err
			}
		}
	}
	return nil
}

// pending returns the error of the socket, if it has one, as fillFrames does. The system call is a
// raw one, like those that receive (see read).
func (q *packetQueue) pending(fd uintptr) (n int, err error) {
	var value int32
	size := uint32(unsafe.Sizeof(value))
	_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_ERROR,
		uintptr(unsafe.Pointer(&value)), uintptr(unsafe.Pointer(&size)), 0)
	if errno == 0 {
		errno = syscall.Errno(value)
	}
	if errno == 0 {
		return 0, nil
	}
	q.frames[0], err = q.lost(errno)
	return 1, err
}
