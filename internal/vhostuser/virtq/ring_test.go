package virtq

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmnet/internal/vhostuser/guestmem"
)

// The memory of a test in bytes, and its address in the machine and in the frontend.
const (
	guestSize = 1 << 18
	guestBase = 0x10000
)

// guarded returns a memory between two pages that cannot be accessed: an access outside of it ends
// the test. It is of two regions, which are neighbours in the machine.
func guarded(t testing.TB) (*guestmem.Memory, []byte) {
	t.Helper()
	page := unix.Getpagesize()
	raw, err := unix.Mmap(-1, 0, guestSize+2*page, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(raw) })
	in := raw[page : page+guestSize]
	if err := unix.Mprotect(in, unix.PROT_READ|unix.PROT_WRITE); err != nil {
		t.Fatal(err)
	}
	const first = guestSize - 8192
	return guestmem.New(
		guestmem.Of(guestmem.Region{Guest: guestBase, User: guestBase, Size: first}, in[:first], 0),
		guestmem.Of(guestmem.Region{Guest: guestBase + first, User: guestBase + first, Size: 8192}, in[first:], 0),
	), in
}

// noise fills a ring of the driver: descriptors that are valid in part, at its end and beyond.
func noise(r *rand.Rand, mem []byte, l Layout, writable bool) {
	n := int(l.Size)
	for i := range n {
		d := mem[int(l.Desc)-guestBase+16*i:]
		addr := uint64(guestBase + r.IntN(guestSize+4096) - 2048)
		if r.IntN(8) == 0 {
			addr = r.Uint64()
		}
		length := uint32(r.IntN(3000))
		switch r.IntN(8) {
		case 0:
			length = r.Uint32()
		case 1:
			length, addr = uint32(r.IntN(40)*16), addr&^7
		}
		flags := uint16(r.IntN(8))
		if r.IntN(2) == 0 {
			flags = 0
			if writable {
				flags = descWrite
			}
		}
		binary.LittleEndian.PutUint64(d, addr)
		binary.LittleEndian.PutUint32(d[8:], length)
		binary.LittleEndian.PutUint16(d[12:], flags)
		binary.LittleEndian.PutUint16(d[14:], uint16(r.IntN(n+2)))
		binary.LittleEndian.PutUint16(mem[int(l.Avail)-guestBase+4+2*i:], uint16(r.IntN(n+1)))
	}
	binary.LittleEndian.PutUint16(mem[int(l.Avail)-guestBase:], uint16(r.IntN(2)))
	binary.LittleEndian.PutUint16(mem[int(l.Avail)-guestBase+2:], uint16(r.IntN(n+2)))
}

// layoutAt returns a ring of that size that ends at the end of the first region, or begins at the
// start of the memory.
func layoutAt(size int, end bool) Layout {
	l := Layout{Size: uint32(size), Desc: guestBase}
	if end {
		l.Desc = uint64(guestBase + guestSize - 8192 - (16*size + 6 + 2*size + 2 + 6 + 8*size + 16))
		l.Desc &^= 15
	}
	l.Avail = l.Desc + uint64(16*size)
	l.Used = (l.Avail + uint64(6+2*size) + 3) &^ 3
	return l
}

// use does with a ring what a device does, and touches all bytes of all pieces.
func use(r *Ring, writable bool) (chains int, err error) {
	r.WantKicks(false)
	have, err := r.Available()
	if err != nil {
		return 0, err
	}
	var pieces [][]byte
	for range have {
		var c Chain
		head, buffer := r.Single(0, writable)
		if c, pieces, err = r.Chain(0, writable, pieces[:0]); err != nil {
			if len(buffer) > 0 {
				return chains, errors.New("a malformed chain is a single buffer")
			}
			break
		}
		if len(buffer) > 0 && (head != c.Head || len(pieces) != 1 || &pieces[0][0] != &buffer[0] ||
			len(pieces[0]) != len(buffer)) {
			return chains, errors.New("the single buffer is not the chain's only piece")
		}
		total := 0
		for _, p := range pieces {
			total += len(p)
			for i := 0; i < len(p); i += max(1, len(p)/8) {
				if writable {
					p[i] = 0
				} else {
					_ = p[i]
				}
			}
			_ = p[len(p)-1]
		}
		if total != int(c.Len) {
			return chains, errors.New("the pieces are not as long as the chain")
		}
		r.Use(c.Head, c.Len)
		chains++
	}
	r.Publish()
	r.Interrupts()
	r.WantKicks(true)
	if err != nil && !errors.Is(err, errBroken) {
		return chains, err
	}
	return chains, nil
}

func hostile(t testing.TB, r *rand.Rand, mem *guestmem.Memory, bytes []byte) int {
	t.Helper()
	l := layoutAt(1<<r.IntN(10), r.IntN(2) == 0)
	writable := r.IntN(2) == 0
	noise(r, bytes, l, writable)
	ring, err := New(mem, l)
	if err != nil {
		t.Fatal(err)
	}
	ring.EventIndex = r.IntN(2) == 0
	n, err := use(ring, writable)
	if err != nil && !errors.Is(err, errBroken) {
		t.Fatal(err)
	}
	return n
}

// TestHostileRings reads rings of noise.
func TestHostileRings(t *testing.T) {
	mem, bytes := guarded(t)
	r := rand.New(rand.NewPCG(1, 2))
	chains := 0
	for range 1000 {
		chains += hostile(t, r, mem, bytes)
	}
	if chains < 200 {
		t.Errorf("only %d chains are valid: the test does not get far", chains)
	}
}

// FuzzRing reads rings of noise from a seed.
func FuzzRing(f *testing.F) {
	mem, bytes := guarded(f)
	f.Add(uint64(1))
	f.Fuzz(func(t *testing.T, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 3))
		for range 4 {
			hostile(t, r, mem, bytes)
		}
	})
}

func TestPlace(t *testing.T) {
	t.Parallel()
	mem, _ := guarded(t)
	good := layoutAt(256, false)
	for name, change := range map[string]func(l *Layout){
		"no descriptors":       func(l *Layout) { l.Size = 0 },
		"no power of two":      func(l *Layout) { l.Size = 255 },
		"too many":             func(l *Layout) { l.Size = 65536 },
		"no memory":            func(l *Layout) { l.Desc = 0 },
		"odd descriptors":      func(l *Layout) { l.Desc += 8 },
		"odd available ring":   func(l *Layout) { l.Avail++ },
		"odd used ring":        func(l *Layout) { l.Used += 2 },
		"end of the memory":    func(l *Layout) { l.Used = guestBase + guestSize - 8 },
		"in two regions":       func(l *Layout) { l.Desc = guestBase + guestSize - 8192 - 16 },
		"around the address 0": func(l *Layout) { l.Avail = 1<<64 - 2 },
	} {
		l := good
		change(&l)
		if _, err := New(mem, l); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := New(mem, good); err != nil {
		t.Error(err)
	}
}

// TestIndexesWrap passes chains around the end of 16 bits, and checks which of them interrupt.
func TestIndexesWrap(t *testing.T) {
	t.Parallel()
	for _, event := range []bool{false, true} {
		mem, bytes := guarded(t)
		l := layoutAt(4, false)
		at := func(addr uint64) []byte { return bytes[addr-guestBase:] }
		const start = 65530
		binary.LittleEndian.PutUint16(at(l.Used+2), start)
		for i := range uint64(4) {
			d := at(l.Desc + 16*i)
			binary.LittleEndian.PutUint64(d, guestBase+4096+64*i)
			binary.LittleEndian.PutUint32(d[8:], 64)
			binary.LittleEndian.PutUint16(at(l.Avail+4+2*i), uint16(i))
		}
		r, err := New(mem, l)
		if err != nil {
			t.Fatal(err)
		}
		r.EventIndex = event
		for n := range uint16(12) {
			index := start + n
			binary.LittleEndian.PutUint16(at(l.Avail+2), index+1)
			wanted := n%3 == 0
			if wanted {
				binary.LittleEndian.PutUint16(at(l.Avail), 0)
				binary.LittleEndian.PutUint16(at(l.Avail+4+2*4), index) // used_event
			} else {
				binary.LittleEndian.PutUint16(at(l.Avail), noInterrupt)
			}
			if has, err := r.Has(1); !has || err != nil {
				t.Fatalf("chain %d: %v, %v", n, has, err)
			}
			c, pieces, err := r.Chain(0, false, nil)
			if err != nil || int(c.Head) != int(index)&3 || len(pieces) != 1 {
				t.Fatalf("chain %d is %+v: %v", n, c, err)
			}
			r.Use(c.Head, 7)
			r.Publish()
			if got := r.Interrupts(); got != wanted {
				t.Errorf("event index %v, chain %d: interrupts %v", event, n, got)
			}
			entry := at(l.Used + 4 + 8*uint64(index&3))
			if binary.LittleEndian.Uint32(entry) != uint32(index&3) || binary.LittleEndian.Uint32(entry[4:]) != 7 ||
				binary.LittleEndian.Uint16(at(l.Used+2)) != index+1 {
				t.Errorf("chain %d: the used ring has %x", n, entry[:8])
			}
			r.WantKicks(true)
			if got := binary.LittleEndian.Uint16(at(l.Used + 4 + 8*4)); event && got != index+1 {
				t.Errorf("chain %d: avail_event is %d", n, got)
			}
			if got := binary.LittleEndian.Uint16(at(l.Used)); !event && got != 0 {
				t.Errorf("chain %d: used.flags is %d", n, got)
			}
		}
		if n := r.Next(); n != start+12-65536 {
			t.Errorf("the next entry is %d", n)
		}
	}
}

// TestStore16 keeps the neighbour.
func TestStore16(t *testing.T) {
	t.Parallel()
	_, bytes := guarded(t)
	for at := range 2 {
		copy(bytes, []byte{1, 2, 3, 4})
		p := unsafe.Pointer(&bytes[2*at])
		store16(p, 0x5566)
		if got := load16(p); got != 0x5566 || load16(unsafe.Pointer(&bytes[2-2*at])) != uint16(0x0403-0x0202*at) {
			t.Errorf("at %d: %x", 2*at, bytes[:4])
		}
	}
}
