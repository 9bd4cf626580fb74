package ratelimit

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"vmnet/bridge/portrate"
	"vmnet/internal/kernel/clsact"
)

// The program is a token bucket for bits and one for packets, each as the generic cell rate
// algorithm (ITU-T I.371): its state is the time at which the bucket would be full again. Frames
// that pass move that time into the future by what they cost. A frame is dropped if that time is
// further away than a burst takes. The program takes no lock, which on Linux 5.10 needs a map with
// type information: two processors may both pass a frame at the end of a burst, and both are
// charged. Limits are constants of the program, so that its tag, which any user may read, says what
// they are.

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
	ctx    = asm.R6
	now    = asm.R7 // nanoseconds
	state  = asm.R8
	length = asm.R9 // bytes on the wire
	frames = asm.R2 // segments of a super-frame, or 1
)

// programName is the name of the program and of its map.
const programName = "vmnet_rate"

// license lets the program call what it calls: bpf_ktime_get_ns, open to all since Linux 5.8.
const license = "Apache-2.0"

// load loads the program of a bucket with a map of its own. The caller closes it.
func load(b portrate.Bucket) (p *ebpf.Program, err error) {
	err = clsact.WithMemlock(func() (err error) {
		m, err := ebpf.NewMap(&ebpf.MapSpec{
			Name: programName, Type: ebpf.Array, KeySize: 4, ValueSize: stateSize, MaxEntries: 1,
		})
		if err != nil {
			return fmt.Errorf("make a BPF map: %w", plain(err))
		}
		defer m.Close() // the program has it
		text := programOf(b)
		if err := text.AssociateMap(programName, m); err != nil {
			return fmt.Errorf("load a BPF program: %w", err)
		}
		p, err = ebpf.NewProgram(&ebpf.ProgramSpec{
			Name: programName, Type: ebpf.SchedCLS, License: license, Instructions: text,
		})
		if err != nil {
			return fmt.Errorf("load a BPF program: %w", plain(err))
		}
		return nil
	})
	return p, err
}

// plain returns what the kernel said where the library adds advice about locked memory, of which
// WithMemlock takes care.
func plain(err error) error {
	if errors.Is(err, unix.EPERM) {
		return unix.EPERM
	}
	return err
}

// programOf returns the program of a bucket that limits something, without its map.
func programOf(b portrate.Bucket) asm.Instructions {
	p := asm.Instructions{
		asm.Mov.Reg(ctx, asm.R1),
		asm.FnKtimeGetNs.Call(),
		asm.Mov.Reg(now, asm.R0),
		asm.LoadMapValue(state, 0, 0).WithReference(programName),
	}
	p = append(p, wire()...)
	measured := len(p)
	if b.Bits != 0 {
		p = append(p, look(bitState, b.BitDepth(), "bits")...)
	}
	if b.Packets != 0 {
		p = append(p, look(packetState, b.PacketDepth(), "packets")...)
	}
	if b.Bits != 0 {
		p = append(p, charge(bitState, length, 8*uint64(time.Second), b.Bits)...)
	}
	if b.Packets != 0 {
		p = append(p, charge(packetState, frames, uint64(time.Second), b.Packets)...)
	}
	p[measured] = p[measured].WithSymbol("measured")
	return append(p,
		asm.Mov.Imm(asm.R0, actUnspec),
		asm.Return(),
		asm.Mov.Imm(asm.R0, actShot).WithSymbol("drop"),
		asm.Return(),
	)
}

// wire sets length and frames, as portrate.Wire does, or goes to drop.
func wire() asm.Instructions {
	const segment, more, headers = asm.R3, asm.R4, asm.R5
	return asm.Instructions{
		asm.LoadMem(length, ctx, frameLength, asm.Word),
		asm.Mov.Imm(frames, 1),
		asm.LoadMem(segment, ctx, segmentSize, asm.Word),
		asm.JEq.Imm(segment, 0, "measured"),
		// frames = max(1, (length + segment - portrate.MostHeaders - 1) / segment)
		asm.JGT.Reg(segment, length, "measured"),
		asm.Mov.Reg(more, length),
		asm.Add.Reg(more, segment),
		asm.Sub.Imm(more, portrate.MostHeaders+1),
		asm.Div.Reg(more, segment),
		asm.JEq.Imm(more, 0, "measured"),
		asm.JGT.Imm(more, 1<<16, "measured"), // a length below portrate.MostHeaders
		asm.JGT.Imm(more, portrate.MaxSegments, "drop"),
		asm.Mov.Reg(frames, more),
		asm.Sub.Imm(more, 1),
		asm.Mov.Imm(headers, portrate.SegmentHeaders),
		asm.JGE.Imm(segment, portrate.TinySegment, "sized"),
		asm.Mov.Imm(headers, portrate.TinyHeaders),
		asm.Mul.Reg(more, headers).WithSymbol("sized"),
		asm.Add.Reg(length, more),
	}
}

// look goes to drop if a bucket is empty. A bucket that is full does not become fuller by time.
func look(at int16, depth time.Duration, name string) asm.Instructions {
	return asm.Instructions{
		asm.LoadMem(asm.R1, state, at, asm.DWord),
		asm.JGE.Reg(asm.R1, now, name),
		asm.StoreMem(state, at, now, asm.DWord),
		asm.Mov.Reg(asm.R1, now),
		asm.Sub.Reg(asm.R1, now).WithSymbol(name),
		asm.LoadImm(asm.R4, int64(depth), asm.DWord),
		asm.JGT.Reg(asm.R1, asm.R4, "drop"),
	}
}

// charge adds a number of units to a bucket, of which that many nanoseconds have per.
func charge(at int16, units asm.Register, nanoseconds, per uint64) asm.Instructions {
	return asm.Instructions{
		// At most portrate.MaxSegments times portrate.TinyHeaders bytes more than the frame has, at
		// portrate.MinBits: the product fits into 63 bits.
		asm.LoadImm(asm.R4, int64(float64(nanoseconds)*(1<<fraction)/float64(per)), asm.DWord),
		asm.Mul.Reg(units, asm.R4),
		asm.RSh.Imm(units, fraction),
		asm.AddAtomic.Mem(state, units, asm.DWord, at),
	}
}

// hasTag reports whether a tag is that of a program, which does not depend on its map (BPF_TAG_SIZE
// bytes; bpf_prog_calc_tag in kernel/bpf/core.c).
func hasTag(p asm.Instructions, tag []byte) bool {
	if err := p.Marshal(io.Discard, byteOrder); err != nil { // which resolves the jumps
		return false
	}
	has, err := p.HasTag(hex.EncodeToString(tag), byteOrder)
	return has && err == nil
}

// byteOrder is the machine's. Package asm does not take binary.NativeEndian.
var byteOrder = func() binary.ByteOrder {
	if binary.NativeEndian.Uint16([]byte{1, 0}) == 1 {
		return binary.LittleEndian
	}
	return binary.BigEndian
}()
