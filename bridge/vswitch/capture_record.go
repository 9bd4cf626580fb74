package vswitch

import (
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch/capture"
	"vmnet/bridge/vswitch/offload"
	"vmnet/internal/vhostuser"
)

// A record is a frame to be captured: its vnet header and the frame, in pieces.
type record struct {
	at            time.Time
	queue         int
	why           Reason
	vnet          int // length in bytes of the vnet header at the start of head
	head, payload []byte
	rest          [][]byte // in a guest's memory
}

// A recordWriter writes one goroutine's records, a list at a time. It does not allocate.
type recordWriter struct {
	n       int // records in the list
	written int // the part of them that was written
	heads   [batchSize]capture.Head
	iovs    [batchSize][4]unix.Iovec // head, reason, two pieces of the frame
	msgs    [batchSize]mmsghdr
	write   func(fd uintptr) // the method writeAll, bound once

	from   *vhostuser.Pair // whose rests these are
	room   []byte          // copies of records with a rest; made for the first one
	filled int
}

// recordWriter returns the sender's capture writer, which it makes on first use.
func (s *sender) recordWriter() *recordWriter {
	if s.records == nil {
		w := &recordWriter{from: s.guests.From}
		w.write = w.writeAll
		for i := range w.msgs {
			w.msgs[i].hdr.Iov = &w.iovs[i][0]
			w.msgs[i].hdr.SetIovlen(len(w.iovs[i]))
		}
		s.records = w
	}
	return s.records
}

// add appends a record to the list.
func (w *recordWriter) add(v *view, r record) {
	reason := ""
	if r.why != Delivered {
		reason = r.why.String()
	}
	reason = reason[:min(len(reason), capture.MaxReason)]
	h := &w.heads[w.n]
	whole := offload.Frame{Head: r.head, Payload: r.payload, Rest: r.rest}
	h.SetFrame(r.at, v.index, r.queue, whole.Len()-r.vnet, len(reason), r.vnet)
	head := r.head[:min(len(r.head), r.vnet+v.snaplen)]
	left := r.vnet + v.snaplen - len(head)
	payload := r.payload[:min(len(r.payload), left)]
	if r.rest != nil && left > len(payload) {
		payload = w.copyRest(payload, r.rest, left)
	}

	iov := &w.iovs[w.n]
	iov[0].Base, iov[1].Base = &h[0], unsafe.StringData(reason)
	iov[2].Base, iov[3].Base = unsafe.SliceData(head), unsafe.SliceData(payload)
	iov[0].SetLen(len(h))
	iov[1].SetLen(len(reason))
	iov[2].SetLen(len(head))
	iov[3].SetLen(len(payload))
	w.n++
}

// copyRest returns a copy of the payload and the rest, of at most that many bytes. The room
// suffices for a batch. If the guest's memory is gone, there is no rest.
func (w *recordWriter) copyRest(payload []byte, rest [][]byte, most int) []byte {
	if w.room == nil {
		w.room = make([]byte, vhostuser.MaxBatch)
	}
	to := w.room[w.filled:]
	to = to[:min(len(to), most)]
	n := copy(to, payload)
	for _, piece := range rest {
		piece = piece[:min(len(piece), len(to)-n)]
		if !w.from.Copy(to[n:], piece) {
			break
		}
		n += len(piece)
	}
	w.filled += n
	return to[:n]
}

// send numbers the list's records and writes them to the reader. Those for which there is no room
// are lost.
func (w *recordWriter) send(v *view, d capture.Direction) {
	if w.n == 0 {
		return
	}
	n := &v.counts[d]
	first := n.seen.Add(uint64(w.n)) - uint64(w.n)
	for i := range w.n {
		w.heads[i].SetNumber(d, first+uint64(i))
	}
	w.written = 0
	_ = v.file.conn.Control(w.write) // an error means that the reader is gone
	n.lost.Add(uint64(w.n - w.written))
	w.n, w.filled = 0, 0
}

// writeAll writes the list. If a message is too long for the reader's buffers, only that one is
// lost. After any other error, all that follow are lost too.
func (w *recordWriter) writeAll(fd uintptr) {
	for i := 0; i < w.n; {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&w.msgs[i])), uintptr(w.n-i),
			unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		switch errno {
		case 0:
			i += int(n)
			w.written += int(n)
		case unix.EINTR:
		case unix.EMSGSIZE:
			i++
		default:
			i = w.n
		}
	}
	runtime.KeepAlive(w)
}

// totalsTime limits how long the end of a capture waits for a reader that does not read.
const totalsTime = time.Second

// writeTotals writes the records of totals.
func (c *captureSession) writeTotals() {
	if c.file.os.SetWriteDeadline(time.Now().Add(totalsTime)) != nil {
		return
	}
	for _, v := range c.views {
		for d := range v.counts {
			var h capture.Head
			h.SetTotals(v.index, capture.Direction(d), v.counts[d].seen.Load(), v.counts[d].lost.Load())
			if _, err := c.file.os.Write(h[:]); err != nil {
				return
			}
		}
	}
}
