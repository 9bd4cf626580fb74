package offload

import (
	"bytes"
	"testing"
)

// FuzzStart cuts a frame anywhere. What is OK with the start is so with the whole frame, which then
// fits the same targets, with the same header.
func FuzzStart(f *testing.F) {
	r := rng(3)
	for i := range 80 {
		s := randomShape(r)
		s.payload = min(s.payload, s.gso*5)
		h, frame := s.build()
		if i >= 20 {
			h, frame = wrapped(r, h, frame)
		}
		f.Add(h.put(), uint16(i*500), byte(i), uint16(64+8*i), frame)
	}
	f.Fuzz(func(t *testing.T, header []byte, mtu uint16, offloads byte, at uint16, frame []byte) {
		h, ok := Parse(header)
		if !ok || len(frame) > 1<<16 || len(frame) < MinStart {
			return
		}
		start := frame[:min(max(MinStart, int(at)), len(frame))]
		more := len(frame) - len(start)
		if CheckStart(h, start, more) != OK {
			return
		}
		if why := Check(h, frame); why != OK {
			t.Fatalf("the first %d of %d bytes are fine, all: %v", len(start), len(frame), why)
		}
		l := limits(mtu, offloads)
		l.Tunnels, l.VnetHdr = true, TunnelHeaderLen
		fits := FitsStart(h, start, more, &l)
		if fits != Fits(h, frame, l) {
			t.Fatalf("the first %d of %d bytes fit: %v", len(start), len(frame), fits)
		}
		if !fits {
			return
		}
		var b, want [TunnelHeaderLen]byte
		DescribeStart(h, start, more, b[:], 4)
		if Describe(h, frame, want[:], 4); !bytes.Equal(b[:], want[:]) {
			t.Fatalf("described as %x, the whole frame as %x", b, want)
		}
	})
}

// TestStartSuffices: the headers of ordinary super-frames are in the first bytes, but for some with
// many extension headers.
func TestStartSuffices(t *testing.T) {
	t.Parallel()
	r := rng(4)
	suffices := 0
	const all, most = 500, 246
	for range all {
		h, frame := randomShape(r).build()
		if len(frame) <= most || Check(h, frame) != OK || CheckStart(h, frame[:most], len(frame)-most) == OK {
			suffices++
		}
	}
	if suffices < all*9/10 {
		t.Errorf("the start suffices for %d of %d frames", suffices, all)
	}
}
