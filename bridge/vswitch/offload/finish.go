package offload

import "encoding/binary"

// Burst is the most frames that a Finisher returns at a time, which fit into one batch of
// sendmmsg(2).
const Burst = 64

// slot is the size in bytes of the buffer for a segment's vnet header and headers.
const slot = MaxVnetHdr + MaxHead

// A Frame is a finished frame in two pieces, one iovec each. Head has the target's vnet header and
// the rewritten headers, Payload is a part of the original frame. Either may be empty.
// Copying the pieces together would cost about as much as the second iovec (BenchmarkLiveScatter).
//
// A frame that was not finished may also have Rest, which follows Payload and is in the memory of a
// guest. Nothing in it was checked, and it may change or be gone at any time.
type Frame struct {
	Head, Payload []byte
	Rest          [][]byte
}

// Len returns the length of all pieces in bytes.
func (f *Frame) Len() int {
	n := len(f.Head) + len(f.Payload)
	for _, piece := range f.Rest {
		n += len(piece)
	}
	return n
}

// A Finisher converts a frame that a target does not take into frames that it takes. Only one
// goroutine may use it at a time. It has about 40 KiB of buffers and does not allocate:
//
//	if why := f.Start(h, frame, limits); why != offload.OK {
//		// count the drop
//	}
//	for frames := f.Next(); len(frames) > 0; frames = f.Next() {
//		// send them
//	}
//
// It never writes to the original frame, which may go to other targets too.
type Finisher struct {
	frame []byte
	lay   layout
	// payload bytes of each frame that is cut off: one segment, or several for a target that cuts
	// frames itself
	size    int
	gso     int // payload bytes of a segment
	gsoType uint8
	next    int  // offset of the payload that is not cut yet
	whole   bool // there is one frame, and nothing to cut
	partial bool // the target fills in checksums

	// State of the next segment.
	number uint16 // number of segments before it
	seq    uint32
	flags  byte   // TCP flags
	pseudo uint64 // the pseudo header's sum without the length
	noCsum bool   // UDP without a checksum
	vnet   int    // length of the target's vnet header

	template [slot]byte // the vnet header and headers of a segment
	frames   [Burst]Frame
	scratch  [Burst * slot]byte
}

// Start begins to convert a frame with its vnet header for a target with these limits. It first
// checks the frame (Check). Unless it returns OK, the frame was refused, and Next returns nothing.
// The frame must not change until Next has returned the last part.
func (f *Finisher) Start(h Header, frame []byte, l Limits) Reason {
	f.frame, f.next, f.whole = frame, len(frame), false
	f.partial = l.CSum && l.VnetHdr >= HeaderLen
	f.vnet = l.VnetHdr
	if h.Flags&NeedsCsum != 0 {
		if why := checkCsum(h, len(frame)); why != OK {
			return why
		}
	}
	if h.GSOType == GSONone && l.Recut && !l.admits(frame, len(frame)) {
		h = shortened(h, frame, l)
	}
	if h.GSOType == GSONone {
		return f.startWhole(h, l)
	}
	p, why := parse(h, frame)
	if why != OK {
		return why
	}
	if l.Recut && !l.admits(frame, min(len(frame), p.segment(h))) {
		h.GSOSize = p.fitting(h, frame, l)
	}
	if len(frame)-p.head <= int(h.GSOSize) {
		return f.startWhole(h, l)
	}
	if !l.admits(frame, p.segment(h)) {
		return TooBig
	}
	f.lay, f.gso, f.size, f.next = p, int(h.GSOSize), int(h.GSOSize), p.head
	f.gsoType = h.GSOType
	f.startCut(h)
	if l.takesCut(h.GSOType, &f.lay) && !f.noCsum { // a receiver may rely on both (see Fits)
		f.size = max(1, (maxIP-(f.lay.head-f.lay.outer()))/f.gso) * f.gso
	}
	return OK
}

// Next returns up to Burst more frames, or none after the last. They are valid until the next call
// of Next or Start.
func (f *Finisher) Next() []Frame {
	if f.whole {
		f.whole = false
		return f.frames[:1]
	}
	n := 0
	for n < Burst && f.next < len(f.frame) {
		f.frames[n] = f.segment(f.scratch[n*slot : (n+1)*slot])
		n++
	}
	return f.frames[:n]
}

// startWhole prepares a frame that needs no segmentation. Its checksum may have to be filled in.
func (f *Finisher) startWhole(h Header, l Limits) Reason {
	if !l.admits(f.frame, len(f.frame)) {
		return TooBig
	}
	clear(f.scratch[:f.vnet])
	end := 0 // end of the bytes that are rewritten
	if h.Flags&NeedsCsum != 0 {
		if f.partial && !h.sctp() {
			Header{Flags: NeedsCsum, CsumStart: h.CsumStart, CsumOffset: h.CsumOffset}.Put(f.scratch[:])
		} else {
			end = int(h.CsumStart) + int(h.CsumOffset) + h.csumLen()
			if f.vnet+end > len(f.scratch) {
				return Headers
			}
			f.fill(h, f.scratch[f.vnet:f.vnet+end])
		}
	}
	f.frames[0] = Frame{Head: f.scratch[:f.vnet+end], Payload: f.frame[end:]}
	f.whole = true
	return OK
}

// fill copies the start of the frame into head, whose last bytes are the checksum, and fills the
// checksum in.
func (f *Finisher) fill(h Header, head []byte) {
	copy(head, f.frame)
	field := head[int(h.CsumStart)+int(h.CsumOffset):]
	if h.sctp() {
		clear(field)
		binary.LittleEndian.PutUint32(field, sctpChecksum(head[h.CsumStart:], f.frame[len(head):]))
		return
	}
	putSum(field, mangled(checksum(add(f.frame[h.CsumStart:], 0))))
}
