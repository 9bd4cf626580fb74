package offload

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// FuzzFinish gives a Finisher whatever comes: it must refuse it, or give right frames
// within the limits, and leave the frame as it was.
func FuzzFinish(f *testing.F) {
	r := rng(2)
	for i := range 40 {
		s := randomShape(r)
		s.payload = min(s.payload, s.gso*5)
		h, frame := s.build()
		f.Add(h.put(), uint16(i*500), byte(i), frame)
	}
	fin := new(Finisher)
	f.Fuzz(func(t *testing.T, header []byte, mtu uint16, offloads byte, frame []byte) {
		h, ok := Parse(header)
		if !ok || len(frame) > 1<<16 {
			return
		}
		l := limits(mtu, offloads)
		why := Check(h, frame)
		if why == OK {
			fixUp(h, frame)
		}
		was := bytes.Clone(frame)
		fits := Fits(h, frame, l)
		out, heads, got := finish(fin, h, frame, l)
		switch {
		case !bytes.Equal(frame, was):
			t.Fatal("the frame was written to")
		case why != OK && (got != why || fits && h.GSOType != GSONone):
			t.Fatalf("Check says %v, Start %v, Fits %v", why, got, fits)
		case why == OK && got != OK && got != TooBig && got != Headers:
			t.Fatalf("Check is fine, Start says %v", got)
		case fits && got == TooBig:
			t.Fatal("it fits, but is too big")
		case got == OK:
			right(t, h, l, frame, out, heads)
		}
	})
}

// right checks what has become of a frame.
func right(t *testing.T, h Header, l Limits, frame []byte, out [][]byte, heads []Header) {
	t.Helper()
	for i, o := range out {
		if _, at := etherType(o); l.MTU > 0 && len(o) > at+l.MTU {
			t.Fatalf("a frame of %d bytes for an MTU of %d", len(o), l.MTU)
		}
		if h := heads[i]; h.GSOType != GSONone || h.Flags != 0 && (!l.CSum || Check(h, o) != OK) {
			t.Fatalf("%+v for %+v", h, l)
		}
	}
	switch {
	case len(out) > 1:
		if err := verify(frame, int(h.GSOSize), out, heads[0].Flags != 0); err != nil {
			t.Fatal(err)
		}
	case len(out) == 0 || len(out[0]) != len(frame):
		t.Fatalf("%d frames of one that needs no cutting", len(out))
	case h.Flags&NeedsCsum == 0 || heads[0].Flags != 0:
		if !bytes.Equal(out[0], frame) {
			t.Fatal("a finished frame was changed")
		}
	default:
		at := int(h.CsumStart) + int(h.CsumOffset)
		if !bytes.Equal(out[0][:at], frame[:at]) || !bytes.Equal(out[0][at+h.csumLen():], frame[at+h.csumLen():]) {
			t.Fatal("more than the checksum was changed")
		}
		want := ^plainSum(frame[h.CsumStart:], 0)
		if want == 0 {
			want = 0xffff
		}
		if got := binary.BigEndian.Uint16(out[0][at:]); got != want && !h.sctp() {
			t.Fatalf("checksum %x, want %x", got, want)
		}
	}
}

func limits(mtu uint16, offloads byte) Limits {
	l := Limits{
		MTU: int(mtu), CSum: offloads&1 != 0, TSO4: offloads&2 != 0, TSO6: offloads&4 != 0,
		TSOECN: offloads&8 != 0, USO: offloads&16 != 0, VnetHdr: HeaderLen,
	}
	if offloads&32 != 0 {
		l.VnetHdr = MaxVnetHdr
	}
	return l
}

// fixUp gives a super-frame the checksums that an honest sender would have put into it:
// where they lie the segments do as well, here as in the kernel.
func fixUp(h Header, frame []byte) {
	p, why := parse(h, frame)
	if why != OK {
		return
	}
	addresses := frame[p.ip+12 : p.ip+20]
	if p.v6 {
		addresses = frame[p.ip+8 : p.ip+40]
	} else {
		clear(frame[p.ip+10 : p.ip+12])
		binary.BigEndian.PutUint16(frame[p.ip+10:], ^plainSum(frame[p.ip:p.l4], 0))
	}
	proto, _ := checkType(h)
	pseudo := plainSum(addresses, uint32(proto)+uint32(len(frame)-p.l4))
	binary.BigEndian.PutUint16(frame[p.l4+int(p.csum()):], pseudo)
}

func (h Header) put() []byte {
	b := make([]byte, HeaderLen)
	h.Put(b)
	return b
}
