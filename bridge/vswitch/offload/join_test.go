package offload

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// segmentsOf cuts a shape's super-frame, and returns the segments and the super-frame.
func segmentsOf(t testing.TB, s shape) (segments [][]byte, h Header, super []byte) {
	t.Helper()
	h, super = s.build()
	segments, _, why := finish(new(Finisher), h, bytes.Clone(super), Limits{})
	if why != OK || len(segments) < 2 {
		t.Fatalf("%v, %d segments", why, len(segments))
	}
	return segments, h, super
}

// joined joins frames that are in one piece of memory, each behind 8 bytes that are not its own, as
// in a datagram.
func joined(frames [][]byte) (frame []byte, h Header, n int) {
	const front = 8
	var room []byte
	for _, f := range frames {
		room = append(append(room, make([]byte, front)...), f...)
	}
	var j Joiner
	j.Start(room[front : front+len(frames[0])])
	at := front + len(frames[0])
	for n = 1; n < len(frames); n++ {
		next := room[at+front : at+front+len(frames[n])]
		if !bytes.Equal(next, frames[n]) {
			panic("a frame that was not joined has changed")
		}
		if !j.Add(next) {
			break
		}
		at += front + len(frames[n])
	}
	frame, h = j.End()
	return frame, h, n
}

// TestJoin joins the segments of super-frames, which become what they were cut from.
func TestJoin(t *testing.T) {
	for i, s := range []shape{
		{payload: 14000, gso: 1400},
		{payload: 64000, gso: 1448, tcpOptions: 12},
		{payload: 1401, gso: 1400, v6: true},
		{payload: 20001, gso: 1348, v6: true, tcpOptions: 20, tags: []uint16{typeVLAN}},
		{payload: 5000, gso: 1000, tags: []uint16{typeQinQ, typeVLAN}},
	} {
		s.seed, s.flags = uint64(i), tcpACK|tcpPSH
		segments, h, super := segmentsOf(t, s)
		frame, got, n := joined(segments)
		h.HdrLen = got.HdrLen // a hint, which the shape leaves out
		if n != len(segments) || got != h || !bytes.Equal(frame, super) {
			t.Errorf("%+v: %d of %d joined, %+v", s, n, len(segments), got)
		}
		if Check(got, frame) != OK {
			t.Errorf("%+v: %v", s, Check(got, frame))
		}
	}
}

// TestJoinRefuses: a segment that is not just the next one is not joined, and does not change.
func TestJoinRefuses(t *testing.T) {
	const ip = etherLen
	for name, change := range map[string]struct {
		v6     bool
		change func(f []byte)
		sum    bool // the checksums are made right again
	}{
		"another host":        {change: func(f []byte) { f[0] ^= 2 }},
		"another address":     {change: func(f []byte) { f[ip+15]++ }, sum: true},
		"another TTL":         {change: func(f []byte) { f[ip+8]-- }, sum: true},
		"another TOS":         {change: func(f []byte) { f[ip+1] ^= 3 }, sum: true},
		"a fragment":          {change: func(f []byte) { f[ip+6] |= 0x20 }, sum: true},
		"a wrong length":      {change: func(f []byte) { f[ip+3]-- }, sum: true},
		"a wrong IP sum":      {change: func(f []byte) { f[ip+10]++ }},
		"another port":        {change: func(f []byte) { f[ip+ipv4Len+1]++ }, sum: true},
		"a gap":               {change: func(f []byte) { f[ip+ipv4Len+7]++ }, sum: true},
		"another ack":         {change: func(f []byte) { f[ip+ipv4Len+11]++ }, sum: true},
		"another window":      {change: func(f []byte) { f[ip+ipv4Len+15]++ }, sum: true},
		"a FIN":               {change: func(f []byte) { f[ip+ipv4Len+13] |= tcpFIN }, sum: true},
		"a CWR":               {change: func(f []byte) { f[ip+ipv4Len+13] |= tcpCWR }, sum: true},
		"an urgent pointer":   {change: func(f []byte) { f[ip+ipv4Len+19]++ }, sum: true},
		"another option":      {change: func(f []byte) { f[ip+ipv4Len+tcpLen] = 3 }, sum: true},
		"a wrong sum":         {change: func(f []byte) { f[len(f)-1]++ }},
		"another flow label":  {v6: true, change: func(f []byte) { f[ip+3]++ }, sum: true},
		"another hop limit":   {v6: true, change: func(f []byte) { f[ip+7]++ }, sum: true},
		"another IPv6 length": {v6: true, change: func(f []byte) { f[ip+5]-- }, sum: true},
	} {
		segments, _, _ := segmentsOf(t, shape{
			payload: 4200, gso: 1400, tcpOptions: 12, flags: tcpACK, v6: change.v6, seed: 7,
		})
		change.change(segments[1])
		if change.sum {
			sumUp(segments[1], change.v6)
		}
		frame, h, n := joined(segments)
		if n != 1 || h != (Header{}) || !bytes.Equal(frame, segments[0]) {
			t.Errorf("%s: %d joined, %+v", name, n, h)
		}
	}
	segments, _, _ := segmentsOf(t, shape{payload: 4200, gso: 1400, flags: tcpACK, seed: 8})
	if _, _, n := joined([][]byte{segments[0], segments[1], segments[1]}); n != 2 {
		t.Errorf("a repeated segment: %d joined", n)
	}
	segments[0][len(segments[0])-1]++
	if _, _, n := joined(segments); n != 1 {
		t.Errorf("the first one is wrong: %d joined", n)
	}
}

// sumUp makes the checksums of an IPv4 header without options, and of TCP, right.
func sumUp(f []byte, v6 bool) {
	l4, addresses := etherLen+ipv6Len, f[etherLen+8:etherLen+40]
	if !v6 {
		l4, addresses = etherLen+ipv4Len, f[etherLen+12:etherLen+20]
		clear(f[etherLen+10 : etherLen+12])
		binary.BigEndian.PutUint16(f[etherLen+10:], ^plainSum(f[etherLen:l4], 0))
	}
	clear(f[l4+tcpCsum : l4+tcpCsum+2])
	pseudo := plainSum(addresses, uint32(len(f)-l4)+protoTCP)
	binary.BigEndian.PutUint16(f[l4+tcpCsum:], ^plainSum(f[l4:], uint32(pseudo)))
}

// TestRecover: frames with the pseudo header's sum get their vnet header back, and no others do.
func TestRecover(t *testing.T) {
	for i, s := range []shape{
		{payload: 1000},
		{payload: 30000, gso: 1460},
		{payload: 30000, gso: 1440, v6: true},
		{payload: 30000, gso: 1436, tcpOptions: 24, tags: []uint16{typeVLAN}},
		{payload: 900, udp: true},
		{payload: 9000, udp: true, v6: true, gso: 700},
	} {
		s.seed = uint64(i)
		h, frame := s.build()
		size := 0
		if s.udp {
			size = s.gso
		}
		got := Recover(frame, 1500, size)
		h.HdrLen = got.HdrLen
		if got != h || Check(got, frame) != OK {
			t.Errorf("%+v: %+v, want %+v", s, got, h)
		}
		if s.gso != 0 {
			continue
		}
		whole := s.finished(t)
		if got := Recover(whole, 1500, 0); got != (Header{}) {
			t.Errorf("%+v: finished: %+v", s, got)
		}
		for n := range whole {
			_ = Recover(whole[:n], 1500, 0) // must not read beyond
		}
	}
}

// TestRecut: a target that says so gets TCP in segments that fit its MTU, with all bytes.
func TestRecut(t *testing.T) {
	const mtu = 1450
	for i, s := range []shape{
		{payload: 30000, gso: 1460, flags: tcpACK | tcpPSH},
		{payload: 30000, gso: 1440, v6: true},
		{payload: 1460, flags: tcpACK | tcpFIN},
		{payload: 1440, v6: true, flags: tcpACK, tags: []uint16{typeVLAN}},
	} {
		s.seed = uint64(i)
		h, frame := s.build()
		limits := Limits{MTU: mtu, Recut: true}
		if Fits(h, frame, limits) {
			t.Errorf("%+v: it fits as it is", s)
		}
		out, _, why := finish(new(Finisher), h, frame, limits)
		size := mtu + len(s.tags)*4 + etherLen - (len(frame) - s.payload)
		if why != OK || len(out) < 2 {
			t.Errorf("%+v: %v, %d frames", s, why, len(out))
		} else if err := verify(frame, size, out, false); err != nil {
			t.Errorf("%+v: %v", s, err)
		}
		if _, _, why := finish(new(Finisher), h, frame, Limits{MTU: mtu}); why != TooBig && len(s.tags) == 0 {
			t.Errorf("%+v: without Recut: %v", s, why)
		}
		if s.gso != 0 {
			continue
		}
		whole := s.finished(t)
		if out, _, why := finish(new(Finisher), Header{}, whole, limits); why != OK {
			t.Errorf("%+v: finished: %v", s, why)
		} else if err := verify(whole, size, out, false); err != nil {
			t.Errorf("%+v: finished: %v", s, err)
		}
		whole[len(whole)-1]++
		if _, _, why := finish(new(Finisher), Header{}, whole, limits); why != TooBig {
			t.Errorf("%+v: with a wrong checksum: %v", s, why)
		}
	}
	h, frame := shape{payload: 1472, udp: true}.build()
	if _, _, why := finish(new(Finisher), h, frame, Limits{MTU: mtu, Recut: true}); why != TooBig {
		t.Errorf("UDP: %v", why)
	}
}

// FuzzJoin joins any frames, and checks that a Finisher makes the same segments of the result.
func FuzzJoin(f *testing.F) {
	for i, s := range []shape{
		{payload: 4000, gso: 1400, flags: tcpACK}, {payload: 300, gso: 100, v6: true, flags: tcpACK},
	} {
		s.seed = uint64(i)
		segments, _, _ := segmentsOf(f, s)
		f.Add(bytes.Join(segments, nil), uint16(len(segments[0])))
	}
	f.Fuzz(func(t *testing.T, data []byte, size uint16) {
		var frames [][]byte
		for len(data) > 0 && size > 0 {
			n := min(int(size), len(data))
			frames, data = append(frames, data[:n]), data[n:]
		}
		if len(frames) == 0 {
			return
		}
		first := bytes.Clone(frames[0])
		frame, h, n := joined(frames)
		if n == 1 {
			if !bytes.Equal(frame, first) {
				t.Error("a single frame has changed")
			}
			_ = Recover(frame, 1500, int(size))
			return
		}
		if why := Check(h, frame); why != OK {
			t.Fatalf("%v", why)
		}
		out, _, why := finish(new(Finisher), h, frame, Limits{})
		if why != OK || len(out) != n {
			t.Fatalf("%v, %d of %d", why, len(out), n)
		}
		for i := range out {
			if s := innerOf(out[i]); !bytes.Equal(s, innerOf(frames[i])) {
				t.Errorf("segment %d of %d has changed", i, n)
			}
		}
	})
}

// innerOf returns a segment without what a Finisher counts up or moves: IPv4's id and sum, PSH, and
// with them the TCP checksum.
func innerOf(f []byte) []byte {
	s, ok := innerSegment(f)
	if !ok {
		return nil
	}
	b := bytes.Clone(f)
	if s.ip.kind == layerIPv4 {
		clear(b[s.ip.at+4 : s.ip.at+6])
		clear(b[s.ip.at+10 : s.ip.at+12])
	}
	b[s.l4+13] &^= tcpPSH
	clear(b[s.l4+tcpCsum : s.l4+tcpCsum+2])
	return b
}
