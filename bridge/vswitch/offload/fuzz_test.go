package offload

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
)

// FuzzFinish passes any frame to a Finisher, which must refuse it or return correct frames within
// the limits, and leave the frame unchanged.
func FuzzFinish(f *testing.F) {
	r := rng(2)
	for i := range 80 {
		s := randomShape(r)
		s.payload = min(s.payload, s.gso*5)
		h, frame := s.build()
		if i >= 40 {
			h, frame = wrapped(r, h, frame)
		}
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

// right checks the frames that were made of a frame.
func right(t *testing.T, h Header, l Limits, frame []byte, out [][]byte, heads []Header) {
	t.Helper()
	out, heads = expanded(t, l, out, heads)
	for i, o := range out {
		if _, at := etherType(o); l.MTU > 0 && len(o) > max(at+l.MTU, l.MTU+etherLen+2*vlanLen) {
			t.Fatalf("a frame of %d bytes for an MTU of %d", len(o), l.MTU)
		}
		if h := heads[i]; h.GSOType != GSONone || h.Flags != 0 && (!l.CSum || Check(h, o) != OK) {
			t.Fatalf("%+v for %+v", h, l)
		}
	}
	switch {
	case len(out) > 1:
		err := rightTunnel(h, frame, out, heads[0].Flags != 0)
		if p, _ := parse(h, frame); p.plain {
			err = errors.Join(err, verify(frame, int(h.GSOSize), out, heads[0].Flags != 0))
		}
		if err != nil {
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

// expanded segments the super-frames among frames, as the target would.
func expanded(t *testing.T, l Limits, frames [][]byte, heads []Header) (out [][]byte, headers []Header) {
	t.Helper()
	for i, f := range frames {
		if heads[i].GSOType == GSONone {
			out, headers = append(out, f), append(headers, heads[i])
			continue
		}
		if !Fits(heads[i], f, l) {
			t.Fatalf("a super-frame that the target does not take: %+v for %+v", heads[i], l)
		}
		cut, h, why := finish(new(Finisher), heads[i], f, Limits{CSum: true, VnetHdr: l.VnetHdr, MTU: l.MTU})
		if why != OK {
			t.Fatal(why)
		}
		out, headers = append(out, cut...), append(headers, h...)
	}
	return out, headers
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

// fixUp gives a super-frame the checksums that an honest sender would put into it. If they are
// wrong, those of the segments are too, here as in the kernel.
func fixUp(h Header, frame []byte) {
	p, why := parse(h, frame)
	if why != OK {
		return
	}
	for _, l := range p.layers[:p.n] {
		if l.kind == layerIPv4 {
			ip := frame[l.at : l.at+int(frame[l.at]&15)*4]
			clear(ip[10:12])
			binary.BigEndian.PutUint16(ip[10:], ^plainSum(ip, 0))
		}
	}
	if h.Flags&NeedsCsum == 0 {
		return
	}
	proto, _ := checkType(h)
	pseudo := plainSum(addressesOf(p.ip(), frame), uint32(proto)+uint32(len(frame)-p.l4))
	binary.BigEndian.PutUint16(frame[p.l4+int(p.csum()):], pseudo)
}

func addressesOf(ip layer, frame []byte) []byte {
	if ip.kind == layerIPv6 {
		return frame[ip.at+8 : ip.at+40]
	}
	return frame[ip.at+12 : ip.at+20]
}

// rightTunnel checks the lengths and checksums of a super-frame's segments in all layers, and their
// payload.
func rightTunnel(h Header, frame []byte, out [][]byte, partial bool) error {
	was, why := parse(h, frame)
	if why != OK {
		return fmt.Errorf("the frame itself: %v", why)
	}
	var payload []byte
	for i, o := range out {
		p, why := parse(h, o)
		if why != OK || p.n != was.n || p.head != was.head {
			return fmt.Errorf("segment %d: %v, headers %+v, were %+v", i, why, p, was)
		}
		if n := len(o) - p.head; n != int(h.GSOSize) && (i < len(out)-1 || n > int(h.GSOSize) || n == 0) {
			return fmt.Errorf("segment %d of %d has %d bytes of %d", i, len(out), n, h.GSOSize)
		}
		if err := rightLayers(p, frame, o, i, partial); err != nil {
			return fmt.Errorf("segment %d: %w", i, err)
		}
		payload = append(payload, o[p.head:]...)
	}
	if !bytes.Equal(payload, frame[was.head:]) {
		return fmt.Errorf("payload of %d bytes became %d", len(frame)-was.head, len(payload))
	}
	return nil
}

func rightLayers(p layout, frame, o []byte, number int, partial bool) error {
	// A tunnel's checksum covers the partial one as the target completes it.
	complete := bytes.Clone(o)
	field := complete[p.l4+int(p.csum()):]
	if partial {
		binary.BigEndian.PutUint16(field, ^plainSum(complete[p.l4:], 0))
	}
	routed := false
	for i, l := range p.layers[:p.n] {
		b := complete[l.at:]
		switch l.kind {
		case layerIPv4:
			if sum := plainSum(b[:int(b[0]&15)*4], 0); sum != 0xffff {
				return fmt.Errorf("layer %d: IPv4 header sums up to %#x", i, sum)
			}
			if id, was := binary.BigEndian.Uint16(b[4:]),
				binary.BigEndian.Uint16(frame[l.at+4:]); id != was+uint16(number) {
				return fmt.Errorf("layer %d: id %d, was %d", i, id, was)
			}
		case layerIPv6:
			routed = routed || b[6] == protoHopByHop || b[6] == protoRouting || b[6] == protoDstOpts
		case layerUDP:
			ip := p.layers[i-1]
			sum := plainSum(b, uint32(plainSum(addressesOf(ip, o), protoUDP+uint32(len(b)))))
			if binary.BigEndian.Uint16(b[udpCsum:]) != 0 && sum != 0xffff && !routed {
				return fmt.Errorf("layer %d: UDP sums up to %#x", i, sum)
			}
		case layerGRE:
			if sum := plainSum(b, 0); sum != 0xffff {
				return fmt.Errorf("layer %d: GRE sums up to %#x", i, sum)
			}
		}
	}
	return nil
}

func (h Header) put() []byte {
	b := make([]byte, HeaderLen)
	h.Put(b)
	return b
}
