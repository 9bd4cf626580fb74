package ratelimit

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge/portrate"
)

// The program is a token bucket for bits and one for packets, each as the generic cell rate
// algorithm (ITU-T I.371): its state is the time at which the bucket would be full again. Frames
// that pass move that time into the future by what they cost. A frame is dropped if that time is
// further away than a burst takes. There is no lock, which Linux 5.10 has not without types of the
// map: two processors may both pass a frame at the end of a burst, and both are charged. Limits are
// constants of the program, so that its tag, which any user may read, says what they are.

// Offsets in the state, a map of one value.
const (
	bitState    = 0
	packetState = 8
	stateSize   = 16
)

// Offsets in struct __sk_buff.
const (
	frameLength = 0
	segmentSize = 176 // gso_size, of a super-frame
)

// What the kernel makes of the program's answer (tc-bpf(8)): the next filter, or none.
const (
	actUnspec = -1
	actShot   = 2
)

// fraction is the number of binary places of a cost in nanoseconds.
const fraction = 20

// Registers.
const (
	r0, r1, r2, r3, r4, r5 = 0, 1, 2, 3, 4, 5

	ctx    = 6
	now    = 7 // nanoseconds
	state  = 8
	length = 9  // bytes on the wire
	frames = r2 // segments of a super-frame, or 1
)

// Instruction codes (BPF_* in include/uapi/linux/bpf.h and bpf_common.h).
const (
	alu64, jmp = 0x07, 0x05
	reg        = 0x08 // the source is a register
	add, sub   = 0x00, 0x10
	mul, div   = 0x20, 0x30
	rsh, mov   = 0x70, 0xb0
	always     = 0x00
	jeq, jgt   = 0x10, 0x20
	jge, jne   = 0x30, 0x50
	call, exit = 0x80, 0x90
	loadImm64  = 0x18
	load32     = 0x61
	load64     = 0x79
	store64    = 0x7b
	xadd64     = 0xdb
	getTime    = 5 // bpf_ktime_get_ns
)

// assembler resolves jumps, which all go forward.
type assembler struct {
	text    program
	pending map[string][]int // instructions that jump to a label
}

func (a *assembler) op(code, dst, src uint8, offset int16, imm int32) {
	a.text = append(a.text, instruction{code, dst, src, offset, imm})
}

func (a *assembler) imm64(dst uint8, n uint64) {
	a.op(loadImm64, dst, 0, 0, int32(n))
	a.op(0, 0, 0, 0, int32(n>>32))
}

func (a *assembler) jump(code, dst, src uint8, imm int32, label string) {
	a.pending[label] = append(a.pending[label], len(a.text))
	a.op(jmp|code, dst, src, 0, imm)
}

func (a *assembler) label(name string) {
	for _, at := range a.pending[name] {
		a.text[at].offset = int16(len(a.text) - at - 1)
	}
	delete(a.pending, name)
}

// programOf returns the program of a bucket that limits something.
func programOf(b portrate.Bucket) program {
	a := &assembler{pending: map[string][]int{}}
	a.op(alu64|mov|reg, ctx, r1, 0, 0)
	a.op(jmp|call, 0, 0, 0, getTime)
	a.op(alu64|mov|reg, now, r0, 0, 0)
	a.op(loadImm64, state, unix.BPF_PSEUDO_MAP_VALUE, 0, 0)
	a.op(0, 0, 0, 0, 0)
	a.measure()
	if b.Bits != 0 {
		a.look(bitState, b.BitDepth(), "bits")
	}
	if b.Packets != 0 {
		a.look(packetState, b.PacketDepth(), "packets")
	}
	if b.Bits != 0 {
		a.charge(bitState, length, 8*uint64(time.Second), b.Bits)
	}
	if b.Packets != 0 {
		a.charge(packetState, frames, uint64(time.Second), b.Packets)
	}
	a.op(alu64|mov, r0, 0, 0, actUnspec)
	a.op(jmp|exit, 0, 0, 0, 0)
	a.label("drop")
	a.op(alu64|mov, r0, 0, 0, actShot)
	a.op(jmp|exit, 0, 0, 0, 0)
	return a.text
}

// measure sets length and frames, as portrate.Wire does, or goes to drop.
func (a *assembler) measure() {
	a.op(load32, length, ctx, frameLength, 0)
	a.op(alu64|mov, frames, 0, 0, 1)
	a.op(load32, r3, ctx, segmentSize, 0)
	a.jump(jeq, r3, 0, 0, "measured")
	// frames = max(1, (length + r3 - portrate.MostHeaders - 1) / r3)
	a.jump(jgt|reg, r3, length, 0, "measured")
	a.op(alu64|mov|reg, r4, length, 0, 0)
	a.op(alu64|add|reg, r4, r3, 0, 0)
	a.op(alu64|sub, r4, 0, 0, portrate.MostHeaders+1)
	a.op(alu64|div|reg, r4, r3, 0, 0)
	a.jump(jeq, r4, 0, 0, "measured")
	a.jump(jgt, r4, 0, 1<<16, "measured") // a length below portrate.MostHeaders
	a.jump(jgt, r4, 0, portrate.MaxSegments, "drop")
	a.op(alu64|mov|reg, frames, r4, 0, 0)
	a.op(alu64|sub, r4, 0, 0, 1)
	a.op(alu64|mov, r5, 0, 0, portrate.SegmentHeaders)
	a.jump(jge, r3, 0, portrate.TinySegment, "sized")
	a.op(alu64|mov, r5, 0, 0, portrate.TinyHeaders)
	a.label("sized")
	a.op(alu64|mul|reg, r4, r5, 0, 0)
	a.op(alu64|add|reg, length, r4, 0, 0)
	a.label("measured")
}

// look goes to drop if a bucket is empty. A bucket that is full does not become fuller by time.
func (a *assembler) look(at int16, depth time.Duration, name string) {
	a.op(load64, r1, state, at, 0)
	a.jump(jge|reg, r1, now, 0, name)
	a.op(store64, state, now, at, 0)
	a.op(alu64|mov|reg, r1, now, 0, 0)
	a.label(name)
	a.op(alu64|sub|reg, r1, now, 0, 0)
	a.imm64(r4, uint64(depth))
	a.jump(jgt|reg, r1, r4, 0, "drop")
}

// charge adds a number of units to a bucket, of which that many nanoseconds have per.
func (a *assembler) charge(at int16, units uint8, nanoseconds, per uint64) {
	// At most 2^16 segments of at most tinyHeaders more bytes, at portrate.MinBits: 63 bits.
	a.imm64(r4, uint64(float64(nanoseconds)*(1<<fraction)/float64(per)))
	a.op(alu64|mul|reg, units, r4, 0, 0)
	a.op(alu64|rsh, units, 0, 0, fraction)
	a.op(xadd64, state, units, at, 0)
}

// hasTag reports whether a tag is that of the program: the first 8 bytes of the SHA-1 of its
// instructions without the map, or of their SHA-256 since Linux 6.18 (bpf_prog_calc_tag in
// kernel/bpf/core.c).
func (p program) hasTag(tag []byte) bool {
	text := p.bytes(0)
	old, now := sha1.Sum(text), sha256.Sum256(text)
	return bytes.Equal(tag, old[:8]) || bytes.Equal(tag, now[:8])
}
