package guestmem

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"unsafe"
)

// logPage is the number of bytes of the machine's memory for each bit of a log (VHOST_LOG_PAGE).
const logPage = 4096

// A Log is a bitmap, shared with the frontend, of the machine's pages that were written: a frontend
// that migrates the machine sends these pages again. Bit n%8 of byte n/8 is page n.
type Log struct{ area *Area }

// MapLog maps the log of that many bytes at an offset of the file, which it does not keep open. The
// file must be one that Map accepts.
func MapLog(size, offset uint64, fd int) (*Log, error) {
	if offset%8 != 0 {
		return nil, fmt.Errorf("log at offset %d: want a multiple of 8", offset)
	}
	a, err := Map(Region{Size: size, Offset: offset}, fd)
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	return &Log{a}, nil
}

// Unmap unmaps the log, which must not be in use. It may be nil.
func (l *Log) Unmap() {
	if l != nil {
		_ = l.area.Unmap() // of a mapping that exists
	}
}

// Covers reports whether the log has bits for n bytes at a physical address.
func (l *Log) Covers(addr, n uint64) bool {
	return addr+n >= addr && (addr+n+logPage-1)/logPage <= 8*l.area.Size && addr+n+logPage-1 >= addr
}

// Mark sets the bits of n bytes at a physical address, which were written before. It ignores what
// the log does not cover.
func (l *Log) Mark(addr, n uint64) {
	if n == 0 || !l.Covers(addr, n) {
		return
	}
	for page := addr / logPage; page <= (addr+n-1)/logPage; page++ {
		var bit [4]byte
		bit[page/8%4] = 1 << (page % 8)
		word := (*uint32)(unsafe.Add(l.area.base, page/32*4))
		atomic.OrUint32(word, binary.NativeEndian.Uint32(bit[:])) // the frontend clears bits meanwhile
	}
}

// Logged returns the memory with a log of what is written to it, or without one if l is nil. If the
// log does not cover all of the memory, that is an error.
func (m *Memory) Logged(l *Log) (*Memory, error) {
	next := &Memory{areas: m.areas, log: l}
	return next, next.CheckLog()
}

// Log returns the memory's log, or nil.
func (m *Memory) Log() *Log { return m.log }

// CheckLog returns an error if the memory has a log that does not cover it.
func (m *Memory) CheckLog() error {
	for _, a := range m.areas {
		if m.log != nil && !m.log.Covers(a.Guest, a.Size) {
			return fmt.Errorf("a log of %d bytes does not cover %d bytes of memory at %#x",
				m.log.area.Size, a.Size, a.Guest)
		}
	}
	return nil
}

// Wrote logs that a piece of the memory, from At, was written, if there is a log. The writer of a
// frame calls it afterwards.
func (m *Memory) Wrote(piece []byte) {
	if m.log != nil {
		m.mark(piece)
	}
}

// mark marks a piece of the memory as written.
func (m *Memory) mark(piece []byte) {
	at := uintptr(unsafe.Pointer(unsafe.SliceData(piece)))
	for _, a := range m.areas {
		if off := uint64(at - uintptr(a.base)); off < a.Size {
			m.log.Mark(a.Guest+off, uint64(len(piece)))
			return
		}
	}
}
