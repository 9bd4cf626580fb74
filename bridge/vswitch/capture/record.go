package capture

import (
	"encoding/binary"
	"time"

	"vmnet/bridge/vswitch/offload"
)

// A Head is the first part of a record. A record is one message on the SOCK_SEQPACKET socketpair of
// Pipe, in little endian:
//
//	bytes  0     kind
//	       1     direction
//	       2- 3  the port's index in Config.Ports
//	       4- 5  queue
//	       6     length of the reason
//	       7     length of the vnet header, 0 or 10 to 24
//	       8-15  nanoseconds since 1970
//	      16-23  sequence number of the frame within its port and direction
//	      24-27  length of the Ethernet frame, of which the record may have less
//	      28     the reason, if it was dropped; then the vnet header; then the frame
//
// At the end there is a record of totals for each port and direction. It has the number of frames
// at byte 8 and the number of lost frames at byte 16.
type Head [headLen]byte

const (
	headLen    = 28
	kindFrame  = 1
	kindTotals = 2
	maxRecord  = headLen + MaxReason + offload.MaxVnetHdr + offload.MaxFrame
)

// MaxReason is the longest reason of a record in bytes.
const MaxReason = 255

// SetFrame makes h the head of a frame's record. port is the port's index in Config.Ports, length
// the whole Ethernet frame's. reason and vnet are the lengths of what follows the head; a reason
// has at most MaxReason bytes.
func (h *Head) SetFrame(at time.Time, port, queue, length, reason, vnet int) {
	h[0] = kindFrame
	binary.LittleEndian.PutUint16(h[2:], uint16(port))
	binary.LittleEndian.PutUint16(h[4:], uint16(queue))
	h[6], h[7] = byte(reason), byte(vnet)
	binary.LittleEndian.PutUint64(h[8:], uint64(at.UnixNano()))
	binary.LittleEndian.PutUint32(h[24:], uint32(length))
}

// SetNumber sets a frame's direction, and its number within its port and that direction.
func (h *Head) SetNumber(d Direction, number uint64) {
	h[1] = byte(d)
	binary.LittleEndian.PutUint64(h[16:], number)
}

// SetTotals makes h a whole record, of the totals of one port and direction.
func (h *Head) SetTotals(port int, d Direction, seen, lost uint64) {
	h[0], h[1] = kindTotals, byte(d)
	binary.LittleEndian.PutUint16(h[2:], uint16(port))
	binary.LittleEndian.PutUint64(h[8:], seen)
	binary.LittleEndian.PutUint64(h[16:], lost)
}
