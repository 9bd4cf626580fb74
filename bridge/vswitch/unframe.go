package vswitch

import (
	"encoding/binary"
	"fmt"
)

// prefixLen is the length in bytes of a frame's length, which precedes it in a stream.
const prefixLen = 4

// maxSkip is the longest frame that is skipped as too long. A guest's driver can have QEMU send
// long ones: they cost it the frame alone. A larger number is not the length of a frame.
const maxSkip = 16 << 20

const (
	// streamRoom is the size of one read(2) in bytes: it has room for the longest frame after the
	// part of another one.
	streamRoom = 4 * (prefixLen + maxFrame)

	// streamCopies is the room for copies, a batch of full frames of Ethernet with their headers,
	// and maxCopy is the longest frame that is copied.
	streamCopies = batchSize * 1600
	maxCopy      = 4096
)

// unframer finds the frames in what is read from a stream. The first frame of a batch stays where
// it was read, with a vnet header in the room before it. The header of another one would be written
// over the end of the frame before it, so it is copied, unless it is long: then it waits for the
// next batch.
type unframer struct {
	room       []byte
	start, end int // what was read and not taken yet
	skip       int // bytes that are still to come of a frame that is skipped
	copies     []byte
}

// newUnframer makes an unframer at the start of a stream.
func newUnframer() *unframer {
	return &unframer{
		room:  make([]byte, vnetLen+streamRoom),
		start: vnetLen, end: vnetLen,
		copies: make([]byte, streamCopies),
	}
}

// space returns where to read to. It ends the last batch.
func (u *unframer) space() []byte {
	if u.start == u.end || len(u.room)-u.end < prefixLen+maxFrame {
		u.end = vnetLen + copy(u.room[vnetLen:], u.room[u.start:u.end])
		u.start = vnetLen
	}
	return u.room[u.end:]
}

// take returns a batch of the frames that are complete, and ends the last one. An error ends the
// stream, after the frames that came before it.
func (u *unframer) take(frames []frame) (n int, err error) {
	first, copies := true, u.copies
	for n < len(frames) && u.skipped() && u.end-u.start >= prefixLen {
		size := binary.BigEndian.Uint32(u.room[u.start:])
		switch {
		case size > maxSkip && n > 0:
			return n, nil // the next call returns the error
		case size > maxSkip:
			return 0, fmt.Errorf("a frame of %d bytes: want at most %d (does the other end send frames as QEMU's "+
				"netdev stream?)", size, maxFrame)
		case size > maxFrame:
			u.start, u.skip = u.start+prefixLen, int(size)
			frames[n] = frame{lost: Giant}
			n++
			continue
		}
		at := u.start + prefixLen
		end := at + int(size)
		switch {
		case end > u.end:
			return n, nil
		case first:
			first = false
			clear(u.room[at-vnetLen : at])
			frames[n] = frame{data: u.room[at-vnetLen : end : end]}
		case size > maxCopy || vnetLen+int(size) > len(copies):
			return n, nil
		default:
			clear(copies[:vnetLen])
			copy(copies[vnetLen:], u.room[at:end])
			frames[n] = frame{data: copies[: vnetLen+size : vnetLen+size]}
			copies = copies[vnetLen+size:]
		}
		u.start = end
		n++
	}
	return n, nil
}

// skipped reports whether no bytes of a skipped frame are to come. It takes those that are there.
func (u *unframer) skipped() bool {
	n := min(u.skip, u.end-u.start)
	u.start, u.skip = u.start+n, u.skip-n
	return u.skip == 0
}
