package vswitch

import (
	"encoding/binary"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch/offload"
)

// A capture's records, each one message of a SOCK_SEQPACKET pair, little endian:
//
//	bytes  0     kind
//	       1     direction
//	       2- 3  the port's place in CaptureConfig.Ports
//	       4- 5  queue
//	       6     length of the reason
//	       7     length of the vnet header, 0 or 10 to 24
//	       8-15  nanoseconds since 1970
//	      16-23  the frame's number among those of its port and direction
//	      24-27  length of the Ethernet frame, of which the record may have less
//	      28     the reason, if it was dropped; then the vnet header; then the frame
//
// At the end there is a record of totals for each port and direction, which has at 8 how many frames there were and at 16
// how many of these were lost.
const (
	recordHead   = 28
	recordFrame  = 1
	recordTotals = 2
	maxReason    = 255
	maxRecord    = recordHead + maxReason + offload.MaxVnetHdr + maxFrame
)

// Direction says which way through a port a frame went.
type Direction uint8

const (
	In  Direction = iota // into the switch
	Out                  // out of it
)

// String is "in" or "out".
func (d Direction) String() string {
	if d == In {
		return "in"
	}
	return "out"
}

// A record is a frame to tell of: its vnet header and the frame, in two pieces.
type record struct {
	at            time.Time
	queue         int
	why           Reason
	vnet          int // bytes of vnet header that head begins with
	head, payload []byte
}

// A teller writes one goroutine's records, a list at a time. It does not allocate.
type teller struct {
	n     int // of the list
	told  int // of these
	heads [batchSize][recordHead]byte
	iovs  [batchSize][4]unix.Iovec // head, reason, two pieces of the frame
	msgs  [batchSize]mmsghdr
	write func(fd uintptr) // made once
}

// teller makes the sender's on its first use.
func (s *sender) teller() *teller {
	if s.tell == nil {
		t := &teller{}
		t.write = t.writeAll
		for i := range t.msgs {
			t.msgs[i].hdr.Iov = &t.iovs[i][0]
			t.msgs[i].hdr.SetIovlen(len(t.iovs[i]))
		}
		s.tell = t
	}
	return s.tell
}

// add appends a record to the list.
func (t *teller) add(v *view, r record) {
	h := t.heads[t.n][:]
	h[0] = recordFrame
	binary.LittleEndian.PutUint16(h[2:], uint16(v.index))
	binary.LittleEndian.PutUint16(h[4:], uint16(r.queue))
	h[7] = byte(r.vnet)
	binary.LittleEndian.PutUint64(h[8:], uint64(r.at.UnixNano()))
	binary.LittleEndian.PutUint32(h[24:], uint32(len(r.head)+len(r.payload)-r.vnet))

	reason := ""
	if r.why != Delivered {
		reason = r.why.String()
	}
	h[6] = byte(min(len(reason), maxReason))
	head := r.head[:min(len(r.head), r.vnet+v.snaplen)]
	payload := r.payload[:min(len(r.payload), r.vnet+v.snaplen-len(head))]

	iov := &t.iovs[t.n]
	iov[0].Base, iov[1].Base = &h[0], unsafe.StringData(reason)
	iov[2].Base, iov[3].Base = unsafe.SliceData(head), unsafe.SliceData(payload)
	iov[0].SetLen(len(h))
	iov[1].SetLen(int(h[6]))
	iov[2].SetLen(len(head))
	iov[3].SetLen(len(payload))
	t.n++
}

// send numbers the list's records and gives them to the reader. What it has no room for is lost.
func (t *teller) send(v *view, d Direction) {
	if t.n == 0 {
		return
	}
	n := &v.counts[d]
	first := n.seen.Add(uint64(t.n)) - uint64(t.n)
	for i := range t.n {
		t.heads[i][1] = byte(d)
		binary.LittleEndian.PutUint64(t.heads[i][16:], first+uint64(i))
	}
	t.told = 0
	_ = v.file.conn.Control(t.write) // an error is a reader that is gone
	n.lost.Add(uint64(t.n - t.told))
	t.n = 0
}

// writeAll writes the list. A message that is too long for the reader's buffers is lost alone; with any other error, so are
// all behind it.
func (t *teller) writeAll(fd uintptr) {
	for i := 0; i < t.n; {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&t.msgs[i])), uintptr(t.n-i), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		switch errno {
		case 0:
			i += int(n)
			t.told += int(n)
		case unix.EINTR:
		case unix.EMSGSIZE:
			i++
		default:
			i = t.n
		}
	}
	runtime.KeepAlive(t)
}

// totalsTime is how long the end of a capture waits for a reader that does not read.
const totalsTime = time.Second

// tellTotals writes the last records.
func (c *capture) tellTotals() {
	if c.file.os.SetWriteDeadline(time.Now().Add(totalsTime)) != nil {
		return
	}
	for _, v := range c.views {
		for d := range v.counts {
			var h [recordHead]byte
			h[0], h[1] = recordTotals, byte(d)
			binary.LittleEndian.PutUint16(h[2:], uint16(v.index))
			binary.LittleEndian.PutUint64(h[8:], v.counts[d].seen.Load())
			binary.LittleEndian.PutUint64(h[16:], v.counts[d].lost.Load())
			if _, err := c.file.os.Write(h[:]); err != nil {
				return
			}
		}
	}
}
