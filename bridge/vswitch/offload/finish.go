package offload

import "encoding/binary"

// Burst is how many frames a Finisher gives at a time: what a batch of sendmmsg(2) takes.
const Burst = 64

// slot is the room for one segment's vnet header and headers.
const slot = MaxVnetHdr + MaxHead

// A Frame is a finished frame in two pieces, one iovec each: Head is the target's vnet header
// and headers that were rewritten, Payload a part of the original frame. Either may be empty.
// To put the pieces together by a copy costs about as much as the second iovec (BenchmarkLiveScatter).
type Frame struct {
	Head, Payload []byte
}

// A Finisher makes of a frame that a target does not take those that it does. One goroutine
// uses it at a time; it holds about 40 KiB, and allocates nothing:
//
//	if why := f.Start(h, frame, limits); why != offload.OK {
//		// count the drop
//	}
//	for frames := f.Next(); len(frames) > 0; frames = f.Next() {
//		// send them
//	}
//
// It never writes to the original frame, which other targets may be given, too.
type Finisher struct {
	frame   []byte
	lay     layout
	size    int // payload bytes of what is cut off at a time: one segment, or many for a target that cuts itself
	gso     int // payload bytes of a segment
	gsoType uint8
	next    int  // where the payload that is not cut yet begins
	whole   bool // one frame is ready, and nothing is to be cut
	partial bool // the target fills in checksums

	// What the next segment has.
	number uint16 // of segments before it
	seq    uint32
	flags  byte   // of TCP
	pseudo uint64 // the pseudo header's sum without the length
	noCsum bool   // UDP without a checksum
	vnet   int    // length of the target's vnet header

	template [slot]byte // the vnet header and headers of a segment
	frames   [Burst]Frame
	scratch  [Burst * slot]byte
}

// Start takes a frame with its vnet header for a target with such limits. It
// checks them first (Check); what is not OK was refused, and Next has nothing. The frame must stay
// as it is until Next has given the last of what becomes of it.
func (f *Finisher) Start(h Header, frame []byte, l Limits) Reason {
	f.frame, f.next, f.whole = frame, len(frame), false
	f.partial = l.CSum && l.VnetHdr >= HeaderLen
	f.vnet = l.VnetHdr
	if h.Flags&NeedsCsum != 0 {
		if why := checkCsum(h, frame); why != OK {
			return why
		}
	}
	if h.GSOType == GSONone {
		return f.startWhole(h, l)
	}
	p, why := parse(h, frame)
	if why != OK {
		return why
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

// Next gives up to Burst more of the frames, none when all were given. They are valid
// until the next call of Next or Start.
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

// startWhole prepares a frame that is one already: its checksum may be missing.
func (f *Finisher) startWhole(h Header, l Limits) Reason {
	if !l.admits(f.frame, len(f.frame)) {
		return TooBig
	}
	clear(f.scratch[:f.vnet])
	end := 0 // of the bytes that are rewritten
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
	f.frames[0] = Frame{f.scratch[:f.vnet+end], f.frame[end:]}
	f.whole = true
	return OK
}

// fill copies the frame into head, which ends with the checksum, and completes it there.
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
