package offload

import (
	"bytes"
	"encoding/binary"
)

// A Joiner joins consecutive TCP segments of one connection into a super-frame, as the kernel's GRO
// does (net/ipv4/tcp_offload.c, tcp_gro_receive): what a Finisher makes of the super-frame are the
// same segments. Only one goroutine may use it at a time. It does not allocate:
//
//	for j.Start(frame); more && j.Add(next); {
//	}
//	frame, header := j.End()
type Joiner struct {
	frame []byte
	seg   segment
	ok    bool   // the first frame is a segment that may be joined
	ended bool   // no segment may follow the last one
	size  int    // payload bytes of the first segment
	n     uint16 // number of segments
}

// Start begins with a frame. The payload of further ones is appended to it, as far as it has
// capacity.
func (j *Joiner) Start(frame []byte) {
	j.frame, j.n = frame, 1
	j.seg, j.ok = innerSegment(frame)
	j.size = len(frame) - j.seg.head
	j.ended = j.ok && frame[j.seg.l4+13]&tcpPSH != 0
	j.ok = j.ok && j.size > 0 && frame[j.seg.l4+13]&^tcpPSH == tcpACK
}

// Add appends a frame's payload, and reports whether it could: else Start is next with that frame,
// which has not changed. The memory of the frame may be that behind the first one: it is read
// before it is overwritten.
func (j *Joiner) Add(next []byte) bool {
	if !j.ok || j.ended || !j.follows(next) {
		return false
	}
	if j.n == 1 && !j.seg.summed(j.frame) || !j.seg.summed(next) {
		return false
	}
	flags, payload := next[j.seg.l4+13], next[j.seg.head:]
	j.frame = append(j.frame, payload...)
	j.frame[j.seg.l4+13] |= flags & tcpPSH
	j.ended = flags&tcpPSH != 0 || len(payload) < j.size
	j.n++
	return true
}

// End returns the frame with what was added to it, and its vnet header. A single frame is as it
// was.
func (j *Joiner) End() (frame []byte, h Header) {
	if j.n == 1 {
		return j.frame, h
	}
	ip, length := j.frame[j.seg.ip.at:], len(j.frame)-j.seg.ip.at
	h = Header{
		Flags: NeedsCsum, GSOType: GSOTCPv4, GSOSize: uint16(j.size), HdrLen: uint16(j.seg.head),
		CsumStart: uint16(j.seg.l4), CsumOffset: tcpCsum,
	}
	if j.seg.ip.kind == layerIPv6 {
		h.GSOType = GSOTCPv6
		binary.BigEndian.PutUint16(ip[4:], uint16(length-ipv6Len))
	} else {
		binary.BigEndian.PutUint16(ip[2:], uint16(length))
		clear(ip[10:12])
		putSum(ip[10:], checksum(add(ip[:ipv4Len], 0)))
	}
	putSum(j.frame[j.seg.l4+tcpCsum:], j.seg.partial(j.frame, protoTCP))
	return j.frame, h
}

// follows reports whether a frame is the segment after the last one, with the same headers. Its
// payload fits in behind it.
func (j *Joiner) follows(next []byte) bool {
	s, b := j.seg, j.frame
	if len(next) <= s.head || len(next)-s.head > j.size || len(b)+len(next)-s.head > min(cap(b), s.ip.at+maxIP) ||
		!bytes.Equal(b[:s.ip.at], next[:s.ip.at]) {
		return false
	}
	was, is := b[s.ip.at:s.l4], next[s.ip.at:s.l4]
	if s.ip.kind == layerIPv6 {
		if int(binary.BigEndian.Uint16(is[4:])) != len(next)-s.l4 || !bytes.Equal(was[:4], is[:4]) ||
			!bytes.Equal(was[6:], is[6:]) {
			return false
		}
	} else {
		const dontFragment = 0x40
		id := binary.BigEndian.Uint16(is[4:]) - binary.BigEndian.Uint16(was[4:])
		if int(binary.BigEndian.Uint16(is[2:])) != len(next)-s.ip.at || !bytes.Equal(was[:2], is[:2]) ||
			!bytes.Equal(was[6:10], is[6:10]) || !bytes.Equal(was[12:], is[12:]) ||
			is[6]&dontFragment == 0 && id != j.n || fold(add(is, 0)) != 0xffff {
			return false
		}
	}
	return s.continues(b, next)
}

// continues reports whether a frame's TCP header is that of the segment behind b, but for PSH.
func (s segment) continues(b, next []byte) bool {
	was, is := b[s.l4:s.head], next[s.l4:s.head]
	seq := binary.BigEndian.Uint32(was[4:]) + uint32(len(b)-s.head)
	return binary.BigEndian.Uint32(is[4:]) == seq && bytes.Equal(was[:4], is[:4]) && bytes.Equal(was[8:13], is[8:13]) &&
		(was[13]^is[13])&^tcpPSH == 0 && bytes.Equal(was[14:tcpCsum], is[14:tcpCsum]) && bytes.Equal(was[18:], is[18:])
}

// partial returns the sum of the pseudo header, which a partial checksum has.
func (s segment) partial(frame []byte, proto uint16) uint16 {
	return fold(addWord(uint16(len(frame)-s.l4), s.ip.pseudoOf(frame, proto)))
}

// summed reports whether a frame's TCP checksum is right.
func (s segment) summed(frame []byte) bool {
	acc := addWord(uint16(len(frame)-s.l4), s.ip.pseudoOf(frame, protoTCP))
	return fold(add(frame[s.l4:], acc)) == 0xffff
}

// innerSegment is segmentOf for a frame that may have VLAN tags, without IP options, and whose IP
// header has a correct checksum.
func innerSegment(frame []byte) (s segment, ok bool) {
	s, proto, ok := packetOf(frame)
	if !ok || proto != protoTCP || s.l4+tcpLen > len(frame) {
		return s, false
	}
	if s.ip.kind == layerIPv4 && (s.l4 != s.ip.at+ipv4Len || fold(add(frame[s.ip.at:s.l4], 0)) != 0xffff) {
		return s, false
	}
	s.head = s.l4 + int(frame[s.l4+12]>>4)*4
	return s, s.head >= s.l4+tcpLen && s.head <= len(frame)
}

// packetOf returns where the headers of a frame with a whole IP packet are, and the protocol of its
// payload. The packet ends with the frame.
func packetOf(frame []byte) (s segment, proto byte, ok bool) {
	kind, at := etherType(frame)
	ip := frame[at:]
	switch {
	case kind == typeIPv4 && len(ip) >= ipv4Len:
		s.ip, s.l4, proto = layer{kind: layerIPv4, at: at}, at+int(ip[0]&0xf)*4, ip[9]
		ok = ip[0]>>4 == 4 && s.l4 >= at+ipv4Len && s.l4 <= len(frame) &&
			binary.BigEndian.Uint16(ip[6:])&0x3fff == 0 && int(binary.BigEndian.Uint16(ip[2:])) == len(ip)
	case kind == typeIPv6 && len(ip) >= ipv6Len:
		s.ip, s.l4, proto = layer{kind: layerIPv6, at: at}, at+ipv6Len, ip[6]
		ok = ip[0]>>4 == 6 && int(binary.BigEndian.Uint16(ip[4:])) == len(ip)-ipv6Len
	}
	return s, proto, ok
}

// Whole reports whether a frame has one whole IP packet, up to its end.
func Whole(frame []byte) bool {
	_, _, ok := packetOf(frame)
	return ok
}

// Recover returns the vnet header that a frame had before it came through a tunnel that has none. A
// kernel that leaves checksums to NICs also leaves those in a tunnel, and NICs of virtual machines
// and containers pass them on. Then a checksum is the pseudo header's sum, and is not right. Such a
// frame that is longer than an MTU is a super-frame, of segments of size bytes, or that fill the
// MTU if size is 0.
func Recover(frame []byte, mtu, size int) (h Header) {
	s, proto, ok := packetOf(frame)
	offset, head := tcpCsum, tcpLen
	switch {
	case ok && proto == protoUDP:
		offset, head = udpCsum, udpLen
	case !ok || proto != protoTCP:
		return h
	}
	if s.l4+head > len(frame) {
		return h
	}
	was := getSum(frame[s.l4+offset:])
	partial := s.partial(frame, uint16(proto))
	if was != uint64(partial) || fold(add(frame[s.l4:], uint64(partial))) == 0xffff {
		return h
	}
	h = Header{Flags: NeedsCsum, CsumStart: uint16(s.l4), CsumOffset: uint16(offset)}
	if proto == protoTCP {
		head = int(frame[s.l4+12]>>4) * 4
	}
	if fills := mtu - (s.l4 - s.ip.at) - head; size == 0 && len(frame) > mtu+s.ip.at && proto == protoTCP {
		size = max(fills, 1)
	}
	if size == 0 || size > len(frame) {
		return h
	}
	h.GSOSize, h.HdrLen, h.GSOType = uint16(size), uint16(s.l4+head), GSOTCPv4
	switch {
	case proto == protoUDP:
		h.GSOType = GSOUDPL4
	case s.ip.kind == layerIPv6:
		h.GSOType = GSOTCPv6
	}
	return h
}
