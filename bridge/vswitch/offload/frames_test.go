package offload

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
)

// A shape describes a super-frame or, with gso 0, a frame with a partial checksum.
type shape struct {
	tags       []uint16 // ethertypes of VLAN tags
	v6, udp    bool
	exts       []uint8 // IPv6 extension headers
	extLen     int     // bytes of each, a multiple of 8; 0 is 8
	ipOptions  int     // bytes, a multiple of 4
	tcpOptions int     // bytes, a multiple of 4
	flags      byte    // of TCP
	payload    int
	gso        int
	ecn        bool
	full       bool // without NeedsCsum
	seed       uint64
}

// build makes the frame and its vnet header. Addresses, ports, ids, options and payload are random
// by the seed. The addresses are those that the live tests forward.
func (s shape) build() (Header, []byte) {
	r := rng(s.seed)
	f := []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1}
	for i, tag := range s.tags {
		f = append(f, byte(tag>>8), byte(tag), 0, byte(i+5))
	}
	l4 := s.transport(r)
	proto := byte(protoTCP)
	if s.udp {
		proto = protoUDP
	}
	ip, addresses := s.network(r, proto, len(l4))
	start := len(f) + 2 + len(ip)
	h := Header{CsumStart: uint16(start), CsumOffset: tcpCsum}
	if s.udp {
		h.CsumOffset = udpCsum
	}
	pseudo := plainSum(addresses, uint32(len(l4))+uint32(proto))
	binary.BigEndian.PutUint16(l4[h.CsumOffset:], pseudo)
	h.Flags = NeedsCsum
	if s.full {
		h.Flags, h.CsumStart, h.CsumOffset = DataValid, 0, 0
		at := tcpCsum
		if s.udp {
			at = udpCsum
		}
		binary.BigEndian.PutUint16(l4[at:], 0x1234) // its value does not matter
	}
	s.gsoHeader(&h)
	if s.v6 {
		f = append(f, 0x86, 0xdd)
	} else {
		f = append(f, 0x08, 0)
	}
	return h, append(append(f, ip...), l4...)
}

func (s shape) gsoHeader(h *Header) {
	if s.gso == 0 {
		return
	}
	h.GSOSize = uint16(s.gso)
	switch {
	case s.udp:
		h.GSOType = GSOUDPL4
	case s.v6:
		h.GSOType = GSOTCPv6
	default:
		h.GSOType = GSOTCPv4
	}
	if s.ecn {
		h.GSOType |= GSOECN
	}
}

func (s shape) transport(r *rand.Rand) []byte {
	if s.udp {
		l4 := random(r, udpLen+s.payload)
		binary.BigEndian.PutUint16(l4[4:], uint16(len(l4)))
		return l4
	}
	l4 := random(r, tcpLen+s.tcpOptions+s.payload)
	l4[12] = byte((tcpLen+s.tcpOptions)/4) << 4
	l4[13] = s.flags
	for i := range s.tcpOptions {
		l4[tcpLen+i] = 1 // NOP
	}
	return l4
}

func (s shape) network(r *rand.Rand, proto byte, l4 int) (ip, addresses []byte) {
	if !s.v6 {
		ip = random(r, ipv4Len+s.ipOptions)
		ip[0] = 0x40 | byte(len(ip)/4)
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+l4))
		ip[6], ip[7] = 0x40*byte(r.IntN(2)), 0
		ip[8], ip[9] = 64, proto
		copy(ip[12:], []byte{10, 9, 8, 1, 10, 9, 8, 2})
		for i := range s.ipOptions {
			ip[ipv4Len+i] = 1 // NOP
		}
		ip[10], ip[11] = 0, 0
		binary.BigEndian.PutUint16(ip[10:], ^plainSum(ip, 0))
		return ip, ip[12:20]
	}
	ip = random(r, ipv6Len)
	ip[0] = 0x60
	ip[8], ip[24] = 0xfd, 0xfd
	next := 6 // offset of the number of the next header
	for _, ext := range s.exts {
		ip[next] = ext
		next = len(ip)
		ip = append(ip, padded(max(s.extLen, 8))...)
	}
	ip[next] = proto
	binary.BigEndian.PutUint16(ip[4:], uint16(len(ip)-ipv6Len+l4))
	return ip, ip[8:40]
}

// padded is an extension header that has only padding (RFC 8200, 4.2).
func padded(n int) []byte {
	b := make([]byte, n)
	b[1] = byte(n/8 - 1)
	for at := 2; at < n; {
		size := min(n-at-2, 255)
		b[at], b[at+1] = 1, byte(size) // PadN
		at += 2 + size
		if at == n-1 {
			at++ // Pad1
		}
	}
	return b
}

func random(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// plainSum is the one's complement sum of RFC 1071, word by word. The tests compare add with it.
func plainSum(b []byte, acc uint32) uint16 {
	for i, c := range b {
		if i%2 == 0 {
			acc += uint32(c) << 8
		} else {
			acc += uint32(c)
		}
		acc = acc>>16 + acc&0xffff
	}
	acc = acc>>16 + acc&0xffff
	return uint16(acc>>16 + acc&0xffff)
}

// randomShape returns a shape that a real sender might use, including unusual ones.
func randomShape(r *rand.Rand) shape {
	s := shape{
		v6: r.IntN(2) == 0, udp: r.IntN(3) == 0, flags: byte(r.Uint32()), ecn: r.IntN(4) == 0,
		gso: 1 + r.IntN(1460), seed: r.Uint64(),
	}
	switch r.IntN(4) {
	case 0:
		s.tags = []uint16{typeVLAN}
	case 1:
		s.tags = []uint16{typeQinQ, typeVLAN}
	}
	if s.v6 {
		for range r.IntN(3) {
			s.exts = append(s.exts, []byte{protoRouting, protoDstOpts}[r.IntN(2)])
		}
		if r.IntN(3) == 0 {
			s.exts = append([]byte{protoHopByHop}, s.exts...)
		}
		s.extLen = 8 * r.IntN(5)
	} else {
		s.ipOptions = 4 * r.IntN(11)
	}
	most := 100
	s.full = r.IntN(8) == 0 && !slices.Contains(s.exts, protoRouting)
	if s.udp {
		s.ecn = false
	} else {
		s.tcpOptions, most = 4*r.IntN(11), 300
	}
	s.payload = min(s.gso+s.tcpOptions+1+r.IntN(s.gso*most), 64000)
	return s
}

func rng(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 1)) }
