package vhostuser

import (
	"encoding/binary"
	"fmt"
	"runtime/debug"

	"vmnet/bridge/vswitch/offload"
	"vmnet/internal/vhostuser/virtq"
)

// A Received is a frame from the guest. It begins with a vnet header of offload.HeaderLen bytes.
type Received struct {
	// Head is a copy of the frame, or of its first HeadLen bytes if there is Rest. It is nil for a
	// frame longer than offload.MaxFrame.
	Head []byte

	// Rest is the other bytes, More of them, in the guest's memory. The guest may change them at
	// any time. A goroutine reads them only by Copy or Whole, or passes them as the Rest of a frame
	// to Send; a system call finds out by itself if the memory is gone. All is valid until Done.
	Rest [][]byte
	More int
}

const (
	// HeadLen is the length of the Head of longer frames in bytes: the vnet header, and the headers
	// up to TCP's with all its options, also in a tunnel.
	HeadLen = 256

	// copied is the length of the longest frame that is copied as a whole. A second copy from the
	// cache costs less than more pieces do.
	copied = 1024

	// MaxBatch limits the bytes of a batch, so that it stays in a processor's cache.
	MaxBatch = 256 << 10

	// MaxPieces limits the pieces of all Rests of a batch.
	MaxPieces = 256

	// maxRest is the most pieces of a frame's Rest. A driver that offers more has a copy made.
	// Linux has at most 17 fragments of a page or more (MAX_SKB_FRAGS), and the start of the frame.
	maxRest = 20

	longest = offload.HeaderLen + offload.MaxFrame
)

// A batch is what a Pair has received last. Its memory is reused for the next one.
type batch struct {
	held   bool // the device's lock, for reading
	frames []Received
	heads  [offload.Burst * copied]byte
	headed int // bytes of heads
	rest   [MaxPieces][]byte
	used   int      // of rest
	chain  [][]byte // the pieces of one chain
	room   []byte   // frames that were copied; made for the first one
	filled int      // of room
}

// takeChains takes frames and marks their chains as used, for Done. It takes at least one chain of
// those that the driver has, and as many as fit into a batch. While the ring is disabled it drops
// them.
func (p *Pair) takeChains(r *vring, have int) (n int, err error) {
	header := headerOf(p.dev.features)
	p.used, p.headed, p.filled = 0, 0, 0
	left := MaxBatch
	for range min(have, len(p.frames), offload.Burst) {
		if id, buffer := r.ring.Single(0, false); r.enabled && len(buffer) >= header &&
			len(buffer) < min(longest, left-maxAlign) && p.used < MaxPieces {
			left -= p.takeBuffer(&p.frames[n], header, buffer)
			n++
			r.ring.Use(id, 0)
			continue
		}
		var c virtq.Chain
		c, p.chain, err = r.ring.Chain(0, false, p.chain[:0])
		if err != nil {
			return 0, err
		}
		size := max(0, int(c.Len)-header+offload.HeaderLen)
		switch {
		case !r.enabled:
		case size > longest:
			p.frames[n] = Received{}
			n++
		case aligned(size) > left || len(p.chain) > MaxPieces-p.used && p.used > 0:
			return n, nil
		default:
			left -= aligned(size)
			p.takeFrame(&p.frames[n], header, size)
			n++
		}
		r.ring.Use(c.Head, 0)
	}
	return n, nil
}

// takeBuffer is takeFrame for a frame that is one buffer, and returns the room that it takes.
func (p *Pair) takeBuffer(f *Received, header int, buffer []byte) (room int) {
	size := len(buffer) - header + offload.HeaderLen
	f.More = 0
	if f.Rest = nil; size > copied {
		f.More = size - HeadLen
		f.Rest = p.rest[p.used : p.used+1 : p.used+1]
		f.Rest[0] = buffer[len(buffer)-f.More:]
		p.used++
	}
	at := len(buffer) - f.More - header + offload.HeaderLen
	head := p.heads[p.headed : p.headed+at : p.headed+at]
	takeHeader(head, buffer)
	copy(head[offload.HeaderLen:], buffer[header:])
	f.Head = head
	p.headed += aligned(at)
	return aligned(size)
}

// takeHeader copies what a guest may set of a vnet header.
func takeHeader(head, from []byte) {
	const sendable = ^uint64(0xff) | offload.NeedsCsum
	binary.LittleEndian.PutUint64(head, binary.LittleEndian.Uint64(from)&sendable)
	binary.LittleEndian.PutUint16(head[8:], binary.LittleEndian.Uint16(from[8:]))
}

// aligned returns the bytes that a copy of a frame takes in the room.
func aligned(size int) int { return (size + maxAlign) &^ maxAlign }

const maxAlign = 63

// takeFrame takes the chain's frame, of size bytes, and copies it or its start. It shortens the
// vnet header to offload.HeaderLen bytes and clears the flags that only a device may set (virtio
// 1.2, 5.1.6.2.1).
func (p *Pair) takeFrame(f *Received, header, size int) {
	head := p.heads[p.headed : p.headed+copied]
	if size > copied {
		head = head[:HeadLen]
	}
	at, pieces := p.takeHead(head, header)
	p.headed += aligned(at)
	f.Head, f.Rest, f.More = head[:at:at], nil, 0
	if size <= at {
		return
	}
	f.More = size - at
	if f.Rest = pieces; len(pieces) > maxRest {
		p.copyWhole(f)
		return
	}
	f.Rest = p.rest[p.used : p.used+len(pieces) : p.used+len(pieces)]
	p.used += copy(f.Rest, pieces)
}

// takeHead copies the start of the chain's frame to head, and returns its length and the pieces
// that are left. A driver that has the header in a descriptor of its own, or all in one, costs
// least.
func (p *Pair) takeHead(head []byte, header int) (at int, pieces [][]byte) {
	pieces = p.chain
	if first := pieces[0]; len(first) >= header {
		takeHeader(head, first)
		if pieces[0] = first[header:]; len(first) == header {
			pieces = pieces[1:]
		}
		if len(pieces) == 0 {
			return offload.HeaderLen, nil
		}
		n := copy(head[offload.HeaderLen:], pieces[0])
		at = offload.HeaderLen + n
		if pieces[0] = pieces[0][n:]; len(pieces[0]) > 0 {
			return at, pieces
		}
		return p.takeMore(head, at, 0, pieces[1:])
	}
	at, pieces = p.takeMore(head, 0, header-offload.HeaderLen, pieces)
	if at > 0 {
		head[0] &= offload.NeedsCsum
	}
	return at, pieces
}

// takeMore is takeHead from an offset on. skip is what is in the guest's header only.
func (p *Pair) takeMore(head []byte, at, skip int, pieces [][]byte) (int, [][]byte) {
	for len(pieces) > 0 && at < len(head) {
		n := 0
		switch piece := pieces[0]; {
		case at < offload.HeaderLen:
			n = copy(head[at:offload.HeaderLen], piece)
			at += n
		case skip > 0:
			n = min(skip, len(piece))
			skip -= n
		default:
			n = copy(head[at:], piece)
			at += n
		}
		if pieces[0] = pieces[0][n:]; len(pieces[0]) == 0 {
			pieces = pieces[1:]
		}
	}
	return at, pieces
}

// copyWhole copies the frame to the room, which has room for all frames of the batch.
func (p *Pair) copyWhole(f *Received) {
	if p.room == nil {
		p.room = make([]byte, MaxBatch)
	}
	n := len(f.Head) + f.More
	to := p.room[p.filled : p.filled+n : p.filled+n]
	copyTo(to[copy(to, f.Head):], f.Rest)
	p.filled += aligned(n)
	f.Head, f.Rest, f.More = to, nil, 0
}

func copyTo(to []byte, from [][]byte) {
	for _, piece := range from {
		to = to[copy(to, piece):]
	}
}

// Whole makes Head the whole frame. It reports whether the frame could be read; if not, its guest's
// memory is gone, and the session ends.
func (p *Pair) Whole(f *Received) (ok bool) {
	if f.More == 0 {
		return true
	}
	defer p.faulted(&ok)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	p.copyWhole(f)
	return true
}

// Copy copies pieces of the batch's frames one after the other, and reports whether they could be
// read, as Whole does.
func (p *Pair) Copy(to []byte, from ...[]byte) (ok bool) {
	defer p.faulted(&ok)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	copyTo(to, from)
	return true
}

// faulted is deferred around an access to the guest's memory.
func (p *Pair) faulted(ok *bool) {
	if f := recover(); f != nil {
		p.dev.fail(p.dev.mem.Fault(f))
		*ok = false
	}
}

// Faulted ends the session: a system call could not read a piece of the batch's frames.
func (p *Pair) Faulted(err error) { p.dev.fail(fmt.Errorf("its memory is gone: %w", err)) }
