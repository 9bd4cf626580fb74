package offload

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"
)

// finished returns a shape's frame with its checksum, as it comes from a tap without offloads.
func (s shape) finished(t *testing.T) []byte {
	t.Helper()
	h, frame := s.build()
	out, _, why := finish(new(Finisher), h, frame, Limits{})
	if why != OK || len(out) != 1 {
		t.Fatalf("%v, %d frames", why, len(out))
	}
	return out[0]
}

// TestVouch: what Vouch describes is the frame as it was, or is cut into frames that have all of
// its bytes and right checksums.
func TestVouch(t *testing.T) {
	for i, s := range []shape{
		{payload: 1000},
		{payload: 1001, tcpOptions: 12},
		{payload: 1460},
		{payload: 1, v6: true},
		{payload: 0, flags: tcpACK},
		{payload: 9000, ipOptions: 8, flags: tcpSYN},
		{payload: 1461},
		{payload: 65495, flags: tcpACK | tcpPSH},
		{payload: 65460, v6: true, tcpOptions: 12},
		{payload: 3000, ipOptions: 4, tcpOptions: 8, flags: tcpFIN},
	} {
		s.seed = uint64(i)
		whole := s.finished(t)
		frame := bytes.Clone(whole)
		h, ok := Vouch(frame, 1500)
		long := len(frame) > 1500+etherLen
		if s.flags&tcpSYN != 0 && long {
			if ok || !bytes.Equal(frame, whole) {
				t.Errorf("%+v: a SYN of %d bytes is vouched for", s, len(frame))
			}
			continue
		}
		if !ok || h.Flags != NeedsCsum || (h.GSOType != GSONone) != long || Check(h, frame) != OK {
			t.Errorf("%+v: %+v, %v", s, h, ok)
			continue
		}
		if !Fits(h, frame, Limits{CSum: true, TSO4: true, TSO6: true, MTU: 1500, VnetHdr: HeaderLen}) {
			t.Errorf("%+v: a guest does not take it", s)
		}
		out, _, why := finish(new(Finisher), h, frame, Limits{MTU: 1500})
		switch {
		case why != OK:
			t.Errorf("%+v: %v", s, why)
		case !long && (len(out) != 1 || !bytes.Equal(out[0], whole)):
			t.Errorf("%+v: it has changed", s)
		case long:
			if err := verify(frame, int(h.GSOSize), out, false); err != nil || len(out[0]) != 1500+etherLen {
				t.Errorf("%+v: %v, %d bytes", s, err, len(out[0]))
			}
		}
	}
}

// TestVouchNot: of other frames nothing is known, and they stay as they are.
func TestVouchNot(t *testing.T) {
	plain := shape{payload: 100}.finished(t)
	with := func(at int, v ...byte) []byte {
		b := bytes.Clone(plain)
		copy(b[at:], v)
		return b
	}
	for name, frame := range map[string][]byte{
		"UDP": shape{payload: 100, udp: true}.finished(t), "tagged": shape{payload: 100, tags: []uint16{0x8100}}.finished(t),
		"extension": shape{payload: 100, v6: true, exts: []uint8{60}}.finished(t),
		"fragment":  with(20, 0x20), "later fragment": with(21, 1), "padded": append(bytes.Clone(plain), 0),
		"short": plain[:40], "cut": plain[:len(plain)-1], "IPv4 header of 16 bytes": with(14, 0x44),
		"version": with(14, 0x65), "TCP header of 16 bytes": with(etherLen+ipv4Len+12, 0x40),
		"TCP header that is too long": shape{}.finishedWith(t, etherLen+ipv4Len+12, 0xf0), "ARP": with(12, 8, 6),
	} {
		was := bytes.Clone(frame)
		if h, ok := Vouch(frame, 1500); ok || !bytes.Equal(frame, was) {
			t.Errorf("%s: %+v", name, h)
		}
		RaiseMSS(Header{}, frame, 0, 1500)
		if !bytes.Equal(frame, was) {
			t.Errorf("%s: RaiseMSS has changed it", name)
		}
	}
}

func (s shape) finishedWith(t *testing.T, at int, v byte) []byte {
	b := s.finished(t)
	b[at] = v
	return b
}

// TestRaiseMSS: only a connection whose segments would fill the MTU is changed, and its checksum
// with it.
func TestRaiseMSS(t *testing.T) {
	for _, c := range []struct {
		v6      bool
		options string
		flags   byte
		mtu     int
		raised  int // offset of the changed size; 0: none
	}{
		{false, "\x02\x04\x05\xb4", tcpSYN, 1500, 2},
		{false, "\x01\x02\x04\x05\xb4\x01\x01\x01", tcpSYN, 1500, 3},
		{false, "\x04\x02\x02\x04\x05\xb4\x00\x00", tcpSYN, 1500, 4},
		{true, "\x02\x04\x05\xa0", tcpSYN, 1500, 2},
		{false, "\x02\x04\x05\xb4", tcpSYN | tcpACK, 1500, 2},
		{false, "\x02\x04\x05\xa0", tcpSYN, 1500, 0}, // a smaller one
		{true, "\x02\x04\x05\xb4", tcpSYN, 1500, 0},
		{false, "\x02\x04\x05\xb4", tcpSYN, 9000, 0},
		{false, "\x02\x04\x05\xb4", tcpACK, 1500, 0},
		{false, "\x02\x04\x05\xb4", tcpSYN | tcpRST, 1500, 0},
		{false, "\x00\x02\x04\x05\xb4\x00\x00\x00", tcpSYN, 1500, 0},
		{false, "\x03\x00\x02\x04\x05\xb4\x00\x00", tcpSYN, 1500, 0},
		{false, "\x03\xff\x02\x04\x05\xb4\x00\x00", tcpSYN, 1500, 0},
		{false, "\x02\x04\xff\xc8", tcpSYN, 65520, 0}, // larger than MaxMSS
		{false, "", tcpSYN, 1500, 0},
	} {
		for _, partial := range []bool{false, true} {
			t.Run(fmt.Sprintf("%x %v", c.options, partial), func(t *testing.T) {
				s := shape{v6: c.v6, tcpOptions: len(c.options), flags: c.flags, payload: 3}
				h, frame := s.build()
				copy(frame[int(h.CsumStart)+tcpLen:], c.options)
				at := int(h.CsumStart) + tcpLen + c.raised
				done := func(b []byte) []byte {
					out, _, why := finish(new(Finisher), h, b, Limits{})
					if why != OK {
						t.Fatal(why)
					}
					return out[0]
				}
				want := bytes.Clone(frame)
				if c.raised > 0 {
					binary.BigEndian.PutUint16(want[at:], MaxMSS)
				}
				got, header := bytes.Clone(frame), h
				if !partial {
					got, want, header = done(got), done(want), Header{}
				}
				RaiseMSS(header, got, 0, c.mtu)
				if !bytes.Equal(got, want) {
					t.Errorf("got  %x\nwant %x", got, want)
				}
			})
		}
	}
}

// FuzzVouch: no frame is read or written beyond its end, and what is vouched for passes Check.
func FuzzVouch(f *testing.F) {
	r := rng(7)
	for range 20 {
		_, frame := randomShape(r).build()
		f.Add(frame, uint16(1500))
	}
	f.Fuzz(func(t *testing.T, frame []byte, mtu uint16) {
		if len(frame) > MaxFrame {
			return
		}
		RaiseMSS(Header{}, frame, 0, int(mtu))
		was := bytes.Clone(frame)
		h, ok := Vouch(frame, int(mtu))
		if ok && Check(h, frame) != OK {
			t.Errorf("%+v: %v", h, Check(h, frame))
		}
		if !ok && !bytes.Equal(frame, was) {
			t.Error("it has changed")
		}
	})
}
