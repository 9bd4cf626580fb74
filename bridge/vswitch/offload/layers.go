package offload

import (
	"encoding/binary"
	"math"
)

// This file parses a super-frame's headers, from Ethernet to TCP or UDP. In a tunnel some headers
// appear twice or more. The vnet header counts only the innermost payload, and its CsumStart is the
// start of the innermost TCP or UDP header (virtio_net_hdr_from_skb in include/linux/virtio_net.h).
// Each segment has a copy of the headers of tunnels and shims in between (VXLAN, Geneve, GRE, GUE,
// MPLS, NSH, an Ethernet header with tags); only lengths, ids and checksums differ. A header
// without these is therefore not parsed. Instead the parser searches for the next IP header, whose
// length must match the rest of the frame.

// A layer is a header that has a length, an id, or a checksum of what follows.
type layer struct {
	at     int // offset from the frame's start
	kind   layerKind
	pseudo uint64 // of a tunnel's UDP header, the pseudo header's sum without the length
}

type layerKind uint8

const (
	layerIPv4  layerKind = iota
	layerIPv6            // with its extension headers
	layerUDP             // UDP header of a tunnel
	layerGRE             // GRE header with a checksum (RFC 2784)
	layerPPPoE           // RFC 2516
)

const (
	// maxLayers limits the layers. Two tunnels over UDP and IP in PPPoE have 6.
	maxLayers = 8
	// maxTries limits how many apparent IP headers are tried, so that a frame full of them
	// costs little.
	maxTries = 64
)

// layout has the offsets of a super-frame's headers, in bytes from its start.
type layout struct {
	layers [maxLayers]layer
	n      int  // number of layers; the last is the IP header of the transport header
	tries  int  // number of tries of search, including failed ones
	l4     int  // the transport header
	head   int  // length of all headers
	jumbo  int  // offset of an IPv6 hop-by-hop header that has only a jumbo option; 0 for none
	direct bool // an IP header follows Ethernet and its tags
	plain  bool // and there is no other IP header
	udp    bool
	routed bool // has a routing header: the pseudo header's destination is not the IP header's
	more   int  // bytes that follow those that can be parsed
	cut    bool // a header ends behind these
}

// truncated is the reason for a header that ends behind what can be parsed.
func (p *layout) truncated() Reason {
	p.cut = true
	return Truncated
}

// ip returns the innermost IP header.
func (p *layout) ip() layer { return p.layers[p.n-1] }

// outer returns the offset of the outermost IP header.
func (p *layout) outer() int {
	if p.layers[0].kind == layerPPPoE {
		return p.layers[1].at
	}
	return p.layers[0].at
}

// overUDP reports whether the frame is one of a tunnel over UDP, with any headers between the outer
// UDP header and the inner IP header.
func (p *layout) overUDP() bool { return p.direct && p.n == 3 && p.layers[1].kind == layerUDP }

// wanted describes the transport header at which the parser must arrive.
type wanted struct {
	proto uint8
	at    int // its offset; -1 if the vnet header does not say
	most  int // its largest valid offset
}

// parse parses a super-frame's headers and checks everything on which segmentation relies.
func parse(h Header, frame []byte) (p layout, why Reason) { return parseStart(h, frame, 0) }

// parseStart is parse for the start of a frame, which more bytes follow. It does not return OK if
// it has met a header that is not all in the start: with the whole frame, search might have found
// another place.
func parseStart(h Header, frame []byte, more int) (p layout, why Reason) {
	proto, why := checkType(h)
	if why != OK {
		return p, why
	}
	p.udp, p.more = proto == protoUDP, more
	to := wanted{proto: proto, at: -1, most: min(len(frame)+more, MaxHead)}
	if h.Flags&NeedsCsum != 0 {
		to.at = int(h.CsumStart)
		to.most = min(to.at, to.most)
	}
	kind, at := etherType(frame)
	if why = p.link(frame, kind, at, to); why != OK {
		return p, why
	}
	p.direct = kind == typeIPv4 || kind == typeIPv6
	p.plain = p.direct && p.n == 1
	if kind := h.GSOType &^ GSOECN; p.ip().kind == layerIPv6 && kind == GSOTCPv4 ||
		p.ip().kind == layerIPv4 && kind == GSOTCPv6 {
		return p, Protocol
	}
	if why = p.transport(frame); why != OK {
		return p, why
	}
	if why = p.checkCut(h, len(frame)+more); why == OK && p.cut && more > 0 {
		return p, Truncated
	}
	return p, why
}

// push adds a layer, and reports whether there was room for it.
func (p *layout) push(kind layerKind, at int) bool {
	if p.n == maxLayers {
		return false
	}
	p.layers[p.n] = layer{at: at, kind: kind}
	p.n++
	return true
}

// link parses what has that EtherType and begins at offset at.
func (p *layout) link(frame []byte, kind uint16, at int, to wanted) Reason {
	switch kind {
	case typeIPv4:
		return p.ipv4(frame, at, to)
	case typeIPv6:
		return p.ipv6(frame, at, to)
	case typePPPoE:
		return p.pppoe(frame, at, to)
	case typeMPLS, typeMPLSMulticast, typeNSH:
		return p.search(frame, at, to)
	}
	return Protocol
}

// search searches for the next IP header from offset at on.
func (p *layout) search(frame []byte, at int, to wanted) Reason {
	was := *p
	for ; at+ipv4Len <= to.most && was.tries < maxTries; at += 2 {
		if at+ipv4Len > len(frame) {
			return p.truncated()
		}
		b := frame[at:]
		if v := b[0] >> 4; v != 4 && v != 6 {
			continue
		}
		why := Protocol
		switch b[0] >> 4 {
		case 4:
			ihl := int(b[0]&15) * 4
			p.cut = p.cut || len(b) < ihl
			if ihl >= ipv4Len && len(b) >= ihl && fold(add(b[:ihl], 0)) == 0xffff {
				why = p.ipv4(frame, at, to)
			}
		case 6:
			why = p.ipv6(frame, at, to)
		}
		if why == OK {
			return OK
		}
		was.tries, was.cut = p.tries+1, p.cut
		*p = was
	}
	return Tunnel
}

func (p *layout) ipv4(frame []byte, at int, to wanted) Reason {
	b := frame[at:]
	if len(b) < ipv4Len {
		return p.truncated()
	}
	ihl := int(b[0]&15) * 4
	switch {
	case b[0]>>4 != 4 || ihl < ipv4Len:
		return Protocol
	case len(b) < ihl:
		return p.truncated()
	case binary.BigEndian.Uint16(b[6:])&0x3fff != 0: // "more fragments", or an offset
		return Fragment
	case !isLength(b[2:], len(b)+p.more):
		return Length
	case !p.push(layerIPv4, at):
		return Headers
	}
	return p.behindIP(frame, b[9], at+ihl, to)
}

// isLength reports whether a header's length field matches n. For more than 65535 bytes (BIG TCP),
// the kernel writes 0 (iph_set_totlen in include/net/ip.h; the same for IPv6, with or without a
// jumbo option).
func isLength(field []byte, n int) bool {
	v := int(binary.BigEndian.Uint16(field))
	return v == n || v == 0 && n > math.MaxUint16
}

// ipv6 parses the same extension headers as the kernel (INET6_PROTO_GSO_EXTHDR,
// net/ipv6/exthdrs_offload.c).
func (p *layout) ipv6(frame []byte, at int, to wanted) Reason {
	b := frame[at:]
	switch {
	case len(b) < ipv6Len:
		return p.truncated()
	case b[0]>>4 != 6:
		return Protocol
	case !isLength(b[4:], len(b)+p.more-ipv6Len):
		return Length
	case !p.push(layerIPv6, at):
		return Headers
	}
	proto, next := b[6], ipv6Len
	if isJumbo(b, p.more) {
		p.jumbo = at + next
	}
	for range maxExts {
		if proto != protoHopByHop && proto != protoRouting && proto != protoDstOpts {
			break
		}
		p.routed = p.routed || proto == protoRouting
		if len(b) < next+8 {
			return p.truncated()
		}
		proto, next = b[next], next+8+int(b[next+1])*8
	}
	return p.behindIP(frame, proto, at+next, to)
}

// isJumbo reports whether a hop-by-hop header is that of BIG TCP, whose only option is the length
// (RFC 2675; struct hop_jumbo_hdr in include/net/ipv6.h).
func isJumbo(b []byte, more int) bool {
	return len(b) >= ipv6Len+jumboLen && b[6] == protoHopByHop && b[ipv6Len+1] == 0 &&
		b[ipv6Len+2] == 0xc2 && b[ipv6Len+3] == 4 &&
		binary.BigEndian.Uint32(b[ipv6Len+4:]) == uint32(len(b)+more-ipv6Len)
}

// behindIP parses the payload of an IP header.
func (p *layout) behindIP(frame []byte, proto uint8, at int, to wanted) Reason {
	switch {
	case proto == to.proto && (to.at < 0 || to.at == at):
		p.l4 = at
		return OK
	case at == to.at:
		return Protocol
	}
	switch proto {
	case protoIPIP:
		return p.inner(frame, at, to, p.ipv4)
	case protoIPv6:
		return p.inner(frame, at, to, p.ipv6)
	case protoMPLS:
		return p.inner(frame, at, to, p.search)
	case protoUDP:
		return p.inner(frame, at, to, p.udpTunnel)
	case protoGRE:
		return p.inner(frame, at, to, p.gre)
	case to.proto:
		return CsumPlace
	}
	return Protocol
}

// inner parses what follows a tunnel's IP header with walk, unless that is past the wanted
// transport header.
func (p *layout) inner(frame []byte, at int, to wanted, walk func([]byte, int, wanted) Reason) Reason {
	switch {
	case at > len(frame):
		return p.truncated()
	case at >= to.most && to.at >= 0:
		return CsumPlace
	}
	return walk(frame, at, to)
}

func (p *layout) udpTunnel(frame []byte, at int, to wanted) Reason {
	b := frame[at:]
	n := len(b) + p.more
	switch {
	case len(b) < udpLen:
		return p.truncated()
	case !isLength(b[4:], n) && (n <= math.MaxUint16 || binary.BigEndian.Uint16(b[4:]) != uint16(n)):
		return Length
	}
	ip, routed := p.ip(), p.routed
	if !p.push(layerUDP, at) {
		return Headers
	}
	outer := &p.layers[p.n-1]
	outer.pseudo = ip.pseudoOf(frame, protoUDP)
	if routed {
		// only the sender knows the final destination; it has left the pseudo header's sum
		// (udp_set_csum in net/ipv4/udp.c)
		outer.pseudo = withoutLength(b[udpCsum:], n)
		p.routed = false
	}
	return p.search(frame, at+udpLen, to)
}

func (p *layout) gre(frame []byte, at int, to wanted) Reason {
	b := frame[at:]
	if len(b) < greLen+greCsum {
		return p.truncated()
	}
	if b[0]&0x80 != 0 && !p.push(layerGRE, at) {
		return Headers
	}
	return p.search(frame, at+greLen, to)
}

func (p *layout) pppoe(frame []byte, at int, to wanted) Reason {
	b := frame[at:]
	switch {
	case len(b) < pppoeLen+2:
		return p.truncated()
	case int(binary.BigEndian.Uint16(b[4:])) != len(b)+p.more-pppoeLen:
		return Length
	case !p.push(layerPPPoE, at):
		return Headers
	}
	switch binary.BigEndian.Uint16(b[pppoeLen:]) {
	case 0x21:
		return p.ipv4(frame, at+pppoeLen+2, to)
	case 0x57:
		return p.ipv6(frame, at+pppoeLen+2, to)
	}
	return Protocol
}

// transport parses the transport header, and finds the start of the payload.
func (p *layout) transport(frame []byte) Reason {
	least := tcpLen
	if p.udp {
		least = udpLen
	}
	if len(frame) < p.l4+least {
		return p.truncated()
	}
	p.head = p.l4 + least
	b := frame[p.l4:]
	if p.udp {
		if int(binary.BigEndian.Uint16(b[4:])) != len(b)+p.more {
			return Length
		}
		return OK
	}
	p.head = p.l4 + int(b[12]>>4)*4
	switch {
	case p.head < p.l4+tcpLen:
		return Protocol
	case len(frame) < p.head:
		return p.truncated()
	}
	return OK
}

// checkCut checks the offset of the checksum and the limits of a frame of size bytes.
func (p *layout) checkCut(h Header, size int) Reason {
	csum, most := tcpCsum, MaxSegments
	if p.udp {
		csum, most = udpCsum, MaxUDPSegments
	}
	switch {
	case h.Flags&NeedsCsum == 0 && p.routed:
		return NoCsum
	case h.Flags&NeedsCsum != 0 && int(h.CsumOffset) != csum:
		return CsumPlace
	case p.head > MaxHead:
		return Headers
	case size-p.head > int(h.GSOSize)*most:
		return Segments
	}
	return OK
}
