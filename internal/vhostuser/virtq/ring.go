// Package virtq is the device's side of a split virtqueue (virtio 1.2, 2.7) in a machine's memory.
//
// The driver is the machine's, and may write to the ring at any time. So each word of it is read
// once, and checked after it was read. The words that order the accesses are read and written with
// package sync/atomic: the race detector does not watch memory outside of Go's heap.
//
// A virtio 1 ring is little-endian on every machine.
package virtq

import (
	"errors"
	"fmt"
	"math/bits"
	"sync/atomic"
	"unsafe"

	"vmnet/internal/vhostuser/guestmem"
)

// MaxSize is the most descriptors of a ring.
const MaxSize = 32768

// maxChain is the most descriptors of a chain, and of an indirect table, as in QEMU
// (VIRTQUEUE_MAX_SIZE). A driver may chain more than the ring has if they are indirect.
const maxChain = 1024

// Bits of a descriptor's flags, and of the flags of both rings.
const (
	descNext     = 1
	descWrite    = 2
	descIndirect = 4
	noInterrupt  = 1 // VIRTQ_AVAIL_F_NO_INTERRUPT
	noNotify     = 1 // VIRTQ_USED_F_NO_NOTIFY

	descLen = 16
)

// errBroken is why a ring is unusable: its driver has to reset it.
var errBroken = errors.New("the ring is malformed")

// A Layout says where a ring is. The addresses are those of the frontend's process.
type Layout struct {
	Size              uint32 // in descriptors, a power of two
	Desc, Avail, Used uint64

	// Logged says that writes to the used ring are logged if the memory has a log, as writes at
	// the physical address Log.
	Logged bool
	Log    uint64
}

// A Ring is a ring that the device uses. Only one goroutine may use it at a time.
type Ring struct {
	mem               *guestmem.Memory
	size              uint16
	desc, avail, used unsafe.Pointer
	log               *guestmem.Log // of writes to the used ring; nil for none
	logAt             uint64

	// EventIndex says that VIRTIO_F_EVENT_IDX was negotiated.
	EventIndex bool

	next  uint16 // index of the next available entry
	seen  uint16 // avail.idx, as it was last read
	done  uint16 // used.idx, possibly not published yet
	shown uint16 // used.idx, as it was last published
	told  uint16 // used.idx when Interrupts was last called
	flags uint16 // used.flags
}

// New makes a ring that goes on at used.idx: a device that uses chains in order has handled exactly
// those before it.
func New(mem *guestmem.Memory, l Layout) (*Ring, error) {
	r := &Ring{}
	if err := r.Place(mem, l); err != nil {
		return nil, err
	}
	r.done = load16(unsafe.Add(r.used, 2))
	r.shown, r.told, r.next, r.seen = r.done, r.done, r.done, r.done
	r.flags = noNotify
	return r, nil
}

// Place makes the ring use another memory or another place, and keeps its indexes. An error leaves
// it as it was.
func (r *Ring) Place(mem *guestmem.Memory, l Layout) error {
	if l.Size == 0 || l.Size > MaxSize || bits.OnesCount32(l.Size) != 1 {
		return fmt.Errorf("ring of %d descriptors: want a power of two up to %d", l.Size, MaxSize)
	}
	n := uint64(l.Size)
	desc, err := mem.AtUser(l.Desc, descLen*n, descLen)
	if err != nil {
		return fmt.Errorf("descriptors: %w", err)
	}
	avail, err := mem.AtUser(l.Avail, 6+2*n, 2)
	if err != nil {
		return fmt.Errorf("available ring: %w", err)
	}
	used, err := mem.AtUser(l.Used, 6+8*n, 4)
	if err != nil {
		return fmt.Errorf("used ring: %w", err)
	}
	log := mem.Log()
	if !l.Logged {
		log = nil
	}
	if log != nil && !log.Covers(l.Log, 6+8*n) {
		return fmt.Errorf("used ring: the log does not cover address %#x", l.Log)
	}
	r.mem, r.size, r.desc, r.avail, r.used = mem, uint16(l.Size), desc, avail, used
	r.log, r.logAt = log, l.Log
	return nil
}

// Next returns the index of the next available entry.
func (r *Ring) Next() uint16 { return r.next }

// Available returns how many chains the driver offers.
func (r *Ring) Available() (int, error) {
	r.seen = load16(unsafe.Add(r.avail, 2))
	n := r.seen - r.next
	if n > r.size {
		return 0, fmt.Errorf("%w: avail.idx is %d after %d in a ring of %d", errBroken, r.seen, r.next, r.size)
	}
	return int(n), nil
}

// Has reports whether the driver offers at least n chains. It reads the driver's index only if the
// last value does not suffice.
func (r *Ring) Has(n int) (bool, error) {
	if int(r.seen-r.next) >= n {
		return true, nil
	}
	have, err := r.Available()
	return have >= n, err
}

// offered reads the entry of the available ring that is n entries after the next one.
func (r *Ring) offered(n int) uint16 {
	return load16(unsafe.Add(r.avail, 4+2*uintptr((r.next+uint16(n))&(r.size-1))))
}

// A Chain is a chain of descriptors that the driver offers.
type Chain struct {
	Head uint16 // the first descriptor, which identifies it
	Len  uint32 // bytes in all pieces
}

// Chain reads the chain that is n entries after the next one, which Available must have reported.
// It appends the pieces of memory to pieces, which must all be for the device to write, or all for
// it to read. An error means that the ring is malformed.
func (r *Ring) Chain(n int, writable bool, pieces [][]byte) (Chain, [][]byte, error) {
	c := Chain{Head: r.offered(n)}
	table, count, at := r.desc, uint32(r.size), uint32(c.Head)
	for left := maxChain; ; left-- {
		if at >= count || left == 0 {
			return c, pieces, fmt.Errorf("%w: descriptor %d of %d after %d others", errBroken, at, count,
				maxChain-left)
		}
		d := readDescriptor(table, at)
		if d.flags&descIndirect != 0 {
			if table != r.desc || d.flags&descNext != 0 {
				return c, pieces, fmt.Errorf("%w: an indirect table that is not the end of a chain", errBroken)
			}
			var err error
			if table, err = r.indirect(d); err != nil {
				return c, pieces, err
			}
			count, at = d.len/descLen, 0
			continue
		}
		if (d.flags&descWrite != 0) != writable || d.len == 0 || c.Len+d.len < c.Len {
			return c, pieces, fmt.Errorf("%w: a descriptor of %d bytes with flags %#x", errBroken, d.len, d.flags)
		}
		c.Len += d.len
		for d.len > 0 {
			p := r.mem.At(d.addr, d.len)
			if p == nil {
				return c, pieces, fmt.Errorf("%w: a descriptor of address %#x, which is not memory", errBroken, d.addr)
			}
			pieces = append(pieces, p)
			d.addr, d.len = d.addr+uint64(len(p)), d.len-uint32(len(p))
		}
		if d.flags&descNext == 0 {
			return c, pieces, nil
		}
		at = uint32(d.next)
	}
}

// Single returns the chain that is n entries after the next one, which Available must have
// reported, if it is one buffer in one piece, which the device may write, or may read: the common
// case, for which it costs less than Chain. Otherwise it returns nil, and nothing is known of the
// chain.
func (r *Ring) Single(n int, writable bool) (head uint16, buffer []byte) {
	head = r.offered(n)
	if head >= r.size {
		return 0, nil
	}
	d := readDescriptor(r.desc, uint32(head))
	want := uint16(0)
	if writable {
		want = descWrite
	}
	if d.flags&(descNext|descWrite|descIndirect) != want {
		return 0, nil
	}
	if buffer = r.mem.At(d.addr, d.len); len(buffer) != int(d.len) {
		return 0, nil
	}
	return head, buffer
}

// descriptor is struct virtq_desc.
type descriptor struct {
	addr        uint64
	len         uint32
	flags, next uint16
}

// readDescriptor reads an entry of a table, each word once.
func readDescriptor(table unsafe.Pointer, at uint32) descriptor {
	words := (*[2]uint64)(unsafe.Add(table, descLen*uintptr(at)))
	addr, rest := little64(atomic.LoadUint64(&words[0])), little64(atomic.LoadUint64(&words[1]))
	return descriptor{addr, uint32(rest), uint16(rest >> 32), uint16(rest >> 48)}
}

// indirect returns the table of an indirect descriptor.
func (r *Ring) indirect(d descriptor) (unsafe.Pointer, error) {
	if d.len == 0 || d.len%descLen != 0 || d.len > maxChain*descLen {
		return nil, fmt.Errorf("%w: an indirect table of %d bytes", errBroken, d.len)
	}
	b := r.mem.At(d.addr, d.len)
	if len(b) < int(d.len) || uintptr(unsafe.Pointer(unsafe.SliceData(b)))%8 != 0 {
		return nil, fmt.Errorf("%w: an indirect table at %#x, not in one region or not aligned", errBroken, d.addr)
	}
	return unsafe.Pointer(unsafe.SliceData(b)), nil
}

// Use returns the next chain to the driver, with the number of bytes that were written to it.
// Publish makes it known.
func (r *Ring) Use(head uint16, written uint32) {
	*(*uint64)(unsafe.Add(r.used, 4+8*uintptr(r.done&(r.size-1)))) = little64(uint64(head) | uint64(written)<<32)
	r.done++
	r.next++
}

// Unpublished reports whether chains were used since Publish was last called.
func (r *Ring) Unpublished() bool { return r.done != r.shown }

// Publish makes the used chains known to the driver. Interrupts says whether it wants an interrupt.
func (r *Ring) Publish() {
	if r.log != nil {
		r.logUsed()
	}
	r.shown = r.done
	r.store()
}

// logUsed logs the entries of the chains that were used since Publish was last called. There are at
// most as many as the ring has.
func (r *Ring) logUsed() {
	for i := r.shown; i != r.done; i++ {
		r.log.Mark(r.logAt+4+8*uint64(i&(r.size-1)), 8)
	}
}

// logWrite logs a write of n bytes at an offset of the used ring.
func (r *Ring) logWrite(off, n uint64) {
	if r.log != nil {
		r.log.Mark(r.logAt+off, n)
	}
}

// store writes the flags and the index of the used ring, which are one word.
func (r *Ring) store() {
	atomic.StoreUint32((*uint32)(r.used), little32(uint32(r.flags)|uint32(r.shown)<<16))
	r.logWrite(0, 4)
}

// Interrupts reports whether the driver wants an interrupt for what was published since the last
// call (virtio 1.2, 2.7.7.2 and 2.7.10).
func (r *Ring) Interrupts() bool {
	was := r.told
	r.told = r.done
	switch {
	case was == r.done:
		return false
	case r.EventIndex:
		event := load16(unsafe.Add(r.avail, 4+2*uintptr(r.size)))
		return r.done-event-1 < r.done-was
	}
	return load16(r.avail)&noInterrupt == 0
}

// WantKicks asks the driver to report further available chains, or not to. After it has asked for
// reports, the caller must look once more: chains made available before are not reported.
func (r *Ring) WantKicks(want bool) {
	switch {
	case r.EventIndex && want:
		store16(unsafe.Add(r.used, 4+8*uintptr(r.size)), r.next)
		r.logWrite(4+8*uint64(r.size), 2)
	case r.EventIndex: // the driver reports no more until avail.idx passes the event again
	case want:
		r.setFlags(0)
	default:
		r.setFlags(noNotify)
	}
}

// setFlags stores nothing new: the driver reads the same word, and a store takes it from its cache.
func (r *Ring) setFlags(flags uint16) {
	if r.flags != flags {
		r.flags = flags
		r.store()
	}
}

// load16 reads an aligned 16-bit word, as a part of the aligned 32-bit word that it is in.
func load16(p unsafe.Pointer) uint16 {
	low := uintptr(p) & 2
	return uint16(little32(atomic.LoadUint32((*uint32)(unsafe.Add(p, -int(low))))) >> (8 * low))
}

// store16 writes an aligned 16-bit word, and keeps what the driver writes beside it.
func store16(p unsafe.Pointer, v uint16) {
	low := uintptr(p) & 2
	word, shift := (*uint32)(unsafe.Add(p, -int(low))), 8*low
	for {
		old := atomic.LoadUint32(word)
		if atomic.CompareAndSwapUint32(word, old, little32(little32(old)&^(0xffff<<shift)|uint32(v)<<shift)) {
			return
		}
	}
}
