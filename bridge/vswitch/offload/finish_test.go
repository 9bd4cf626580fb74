package offload

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
)

// finish returns all frames of a Finisher, each in one piece of its own, and the vnet headers
// before them.
func finish(f *Finisher, h Header, frame []byte, l Limits) (out [][]byte, heads []Header, why Reason) {
	if why := f.Start(h, frame, l); why != OK {
		return nil, nil, why
	}
	for frames := f.Next(); len(frames) > 0; frames = f.Next() {
		for _, g := range frames {
			b := slices.Concat(g.Head, g.Payload)
			head, _ := Parse(b)
			heads = append(heads, head)
			out = append(out, b[l.VnetHdr:])
		}
	}
	return out, heads, OK
}

func TestSegments(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var f Finisher
	for range 200 {
		s := randomShape(r)
		h, frame := s.build()
		was := bytes.Clone(frame)
		if why := Check(h, frame); why != OK {
			t.Fatalf("%+v: %v", s, why)
		}
		for _, vnet := range []int{0, 12} {
			out, heads, why := finish(&f, h, frame, Limits{VnetHdr: vnet})
			if why != OK {
				t.Fatalf("%+v: %v", s, why)
			}
			if err := verify(frame, s.gso, out, false); err != nil {
				t.Fatalf("%+v: %v", s, err)
			}
			if vnet > 0 && heads[0] != (Header{}) {
				t.Fatalf("finished frames have the vnet header %+v", heads[0])
			}
		}
		if !bytes.Equal(frame, was) {
			t.Fatal("the original frame was written to")
		}
	}
}

// zeroed are frames whose (first) checksum is zero, with how that is then written. UDP must not say
// that it has none. A checksum that was only missing gets all ones from the kernel.
var zeroed = []struct {
	name string
	s    shape
	want uint16
}{
	{"TCP segment", shape{payload: 5000, gso: 1000}, 0},
	{"TCP segment, IPv6", shape{v6: true, payload: 5000, gso: 1000}, 0},
	{"UDP segment", shape{udp: true, payload: 5000, gso: 1000}, 0xffff},
	{"UDP segment, IPv6", shape{v6: true, udp: true, payload: 5000, gso: 1000}, 0xffff},
	{"TCP", shape{payload: 999}, 0xffff},
	{"UDP", shape{udp: true, payload: 999}, 0xffff},
}

// buildZeroed changes the first word of the payload so that the checksum becomes zero.
func (s shape) buildZeroed(t *testing.T) (h Header, frame []byte, field int) {
	t.Helper()
	h, frame = s.build()
	out, _, why := finish(new(Finisher), h, frame, Limits{})
	if why != OK {
		t.Fatal(why)
	}
	field = int(h.CsumStart) + int(h.CsumOffset)
	seen, err := look(out[0], false)
	if err != nil {
		t.Fatal(err)
	}
	w := frame[seen.payload:]
	sum := plainSum(out[0][field:field+2], uint32(binary.BigEndian.Uint16(w)))
	binary.BigEndian.PutUint16(w, sum)
	return h, frame, field
}

func TestChecksumOfZero(t *testing.T) {
	for _, tt := range zeroed {
		h, frame, field := tt.s.buildZeroed(t)
		out, _, why := finish(new(Finisher), h, frame, Limits{})
		if why != OK {
			t.Fatalf("%s: %v", tt.name, why)
		}
		if got := binary.BigEndian.Uint16(out[0][field:]); got != tt.want {
			t.Errorf("%s: %#x, want %#x", tt.name, got, tt.want)
		}
	}
}
