package offload

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"
)

// finish is all that a Finisher gives, each frame in one piece of its own, and the vnet
// headers before them.
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
				t.Fatalf("finished frames come with the vnet header %+v", heads[0])
			}
		}
		if !bytes.Equal(frame, was) {
			t.Fatal("the original frame was written to")
		}
	}
}
