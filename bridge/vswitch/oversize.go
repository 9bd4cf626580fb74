package vswitch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch/offload"
	"vmnet/internal/endpoint"
)

// An oversize is a second path (see secondary). It sends frames that are too long for a packet
// socket, whose limit is the device's MTU plus an Ethernet header and one 802.1Q tag (packet_snd in
// net/packet/af_packet.c). A kernel bridge does not count the outermost tag, so that it also sends
// full frames with two tags, or with one 802.1ad tag. A transmit ring with vnet headers has no such
// limit (tpacket_snd there). It is slower, so only these frames use it.
//
// The socket has no ring until the first such frame, and receives nothing.
type oversize struct {
	file

	mu    sync.Mutex // such frames are rare
	ring  []byte
	slots int
	slot  int   // size of a slot in bytes
	next  int   // the slot to be filled next
	err   error // why there is no ring
}

const (
	oversizeSlots = 64
	// The length of what precedes the vnet header in a slot: struct tpacket2_hdr, aligned
	// (TPACKET2_HDRLEN in include/uapi/linux/if_packet.h, minus a sockaddr_ll).
	tpacketHead = 32
	tpacketLen  = 4 // offsetof(struct tpacket2_hdr, tp_len)
)

// openOversize makes an oversize from a copy of the file, which must be bound to the device with
// that index.
func openOversize(f *os.File, index int) (*oversize, error) {
	own, err := duplicateAs(f, func(fd int) error { return endpoint.CheckOversize(fd, index) }, unpolled)
	if err != nil {
		return nil, fmt.Errorf("socket for frames with several tags: %w", err)
	}
	return &oversize{file: own}, nil
}

func (o *oversize) close() error {
	err := o.file.close() // concurrent sends end first, later ones fail
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ring != nil {
		err = errors.Join(err, unix.Munmap(o.ring))
	}
	o.ring, o.err = nil, os.ErrClosed
	return err
}

// send sends a frame with its vnet header to the device and returns the result as an errno.
func (o *oversize) send(f *offload.Frame) syscall.Errno {
	o.mu.Lock()
	defer o.mu.Unlock()
	errno := syscall.Errno(unix.EBADF)
	_ = o.conn.Control(func(fd uintptr) { errno = o.sendBy(int(fd), f) })
	return errno
}

func (o *oversize) sendBy(fd int, f *offload.Frame) syscall.Errno {
	n := len(f.Head) + len(f.Payload)
	if o.ring == nil && o.err == nil {
		o.err = o.makeRing(fd, n)
	}
	if o.err != nil || n > o.slot-tpacketHead {
		return unix.EMSGSIZE
	}
	slot := o.ring[o.next*o.slot : (o.next+1)*o.slot]
	status := (*atomic.Uint32)(unsafe.Pointer(&slot[0]))
	if status.Load() != unix.TP_STATUS_AVAILABLE { // the kernel is still sending it
		return unix.ENOBUFS
	}
	copy(slot[tpacketHead+copy(slot[tpacketHead:], f.Head):], f.Payload)
	binary.NativeEndian.PutUint32(slot[tpacketLen:], uint32(n))
	status.Store(unix.TP_STATUS_SEND_REQUEST)
	_, _, errno := unix.Syscall6(unix.SYS_SENDTO, uintptr(fd), 0, 0, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	if errno != 0 { // the kernel has not sent it, and will look at the same slot next time
		status.Store(unix.TP_STATUS_AVAILABLE)
		return errno
	}
	o.next = (o.next + 1) % o.slots
	return errno
}

// makeRing makes a ring whose slots hold a frame of n bytes; a slot is at least a page. Longer
// frames, which a larger MTU may allow later, are dropped as too big.
func (o *oversize) makeRing(fd, n int) error {
	o.slot = max(4096, 1<<bits.Len(uint(tpacketHead+n)))
	o.slots = oversizeSlots
	none := unix.TpacketReq{} // removes the ring of a switch that has handed the socket over
	_ = unix.SetsockoptTpacketReq(fd, unix.SOL_PACKET, unix.PACKET_TX_RING, &none)
	req := unix.TpacketReq{
		Block_size: uint32(o.slot), Block_nr: uint32(o.slots), Frame_size: uint32(o.slot), Frame_nr: uint32(o.slots),
	}
	if err := unix.SetsockoptTpacketReq(fd, unix.SOL_PACKET, unix.PACKET_TX_RING, &req); err != nil {
		return fmt.Errorf("PACKET_TX_RING: %w", err)
	}
	ring, err := unix.Mmap(fd, 0, o.slot*o.slots, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map the ring: %w", err)
	}
	o.ring = ring
	return nil
}
