package offload

import "encoding/binary"

// Bounds of what is cut. The kernel itself sends no UDP super-frame of more segments
// (UDP_MAX_SEGMENTS, include/linux/udp.h); for TCP it has no bound, ours is 64 bytes a segment
// in 64 KiB, so that one frame cannot become 65,000.
const (
	MaxSegments    = 1024
	MaxUDPSegments = 128
	// MaxHead is the most bytes of headers, from Ethernet to TCP or UDP, that each
	// segment repeats; IPv4 with all options and two VLAN tags has 142.
	MaxHead = 256
)

const (
	etherLen = 14 // struct ethhdr
	vlanLen  = 4  // struct vlan_hdr
	maxTags  = 2  // an 802.1ad tag and an 802.1Q tag
	ipv4Len  = 20 // struct iphdr without options
	ipv6Len  = 40 // struct ipv6hdr
	tcpLen   = 20 // struct tcphdr without options
	udpLen   = 8  // struct udphdr
	maxExts  = 8  // IPv6 extension headers that are looked through

	tcpCsum  = 16 // offsetof(struct tcphdr, check)
	udpCsum  = 6  // offsetof(struct udphdr, check)
	sctpCsum = 8  // offsetof(struct sctphdr, checksum), a CRC32c

	typeIPv4 = 0x0800
	typeIPv6 = 0x86dd
	typeVLAN = 0x8100
	typeQinQ = 0x88a8

	protoHopByHop = 0
	protoTCP      = 6
	protoUDP      = 17
	protoRouting  = 43
	protoDstOpts  = 60
)

// minCsumStart is the least CsumStart: behind an Ethernet and an IPv4 header, so that to fill in a
// checksum never writes a MAC address or a VLAN tag. The kernel demands 20.
const minCsumStart = etherLen + ipv4Len

// Check tells whether a frame is consistent with its vnet header: OK, or why not. It is stricter
// than virtio_net_hdr_to_skb and what cuts frames afterwards: a super-frame's IP and UDP
// lengths must be right, it must be no fragment, have no more than two tags, and hold to the bounds above.
// In one thing it is not: as there, a payload of no more than GSOSize makes a frame like any
// other, but the kernel counts TCP options as payload and then drops such a frame.
func Check(h Header, frame []byte) Reason {
	if h.Plain() {
		return OK
	}
	if h.Flags&NeedsCsum != 0 {
		if why := checkCsum(h, frame); why != OK {
			return why
		}
	}
	if h.GSOType == GSONone {
		return OK
	}
	_, why := parse(h, frame)
	return why
}

func checkCsum(h Header, frame []byte) Reason {
	if h.CsumStart < minCsumStart || int(h.CsumStart)+int(h.CsumOffset)+h.csumLen() > len(frame) {
		return CsumRange
	}
	return OK
}

// csumLen is the length of the checksum that the header asks for.
func (h Header) csumLen() int {
	if h.sctp() {
		return 4
	}
	return 2
}

// layout is where a super-frame's headers are, in bytes from its start.
type layout struct {
	ip, l4 int
	head   int // length of all headers
	v6     bool
	udp    bool
	routed bool // has a routing header: the pseudo header's destination is not the IP header's
}

// parse finds a super-frame's headers, and checks all that cutting relies on.
func parse(h Header, frame []byte) (p layout, why Reason) {
	proto, why := checkType(h)
	if why != OK {
		return p, why
	}
	p.udp = proto == protoUDP
	var l4 uint8
	switch kind, at := etherType(frame); kind {
	case typeIPv4:
		p.ip = at
		l4, why = p.ipv4(frame)
	case typeIPv6:
		p.ip, p.v6 = at, true
		l4, why = p.ipv6(frame)
	default:
		return p, Protocol
	}
	switch kind := h.GSOType &^ GSOECN; {
	case why != OK:
		return p, why
	case l4 != proto, p.v6 && kind == GSOTCPv4, !p.v6 && kind == GSOTCPv6:
		return p, Protocol
	}
	if why = p.transport(frame); why != OK {
		return p, why
	}
	return p, p.checkCut(h, frame)
}

// checkType tells the protocol that the header's type stands for.
func checkType(h Header) (proto uint8, why Reason) {
	switch {
	case h.GSOType == GSOUDPL4:
		proto = protoUDP
	case h.GSOType&^GSOECN == GSOTCPv4, h.GSOType&^GSOECN == GSOTCPv6:
		proto = protoTCP
	default:
		return 0, GSOType
	}
	if h.GSOSize == 0 || h.GSOSize == 0xffff {
		return 0, GSOSize
	}
	return proto, OK
}

// etherType is the type behind the VLAN tags, and where what has that type begins.
// Behind more than two tags it is a VLAN's.
func etherType(frame []byte) (kind uint16, at int) {
	if len(frame) < etherLen {
		return 0, len(frame)
	}
	at = etherLen
	kind = binary.BigEndian.Uint16(frame[at-2:])
	for range maxTags {
		if kind != typeVLAN && kind != typeQinQ || len(frame) < at+vlanLen {
			break
		}
		at += vlanLen
		kind = binary.BigEndian.Uint16(frame[at-2:])
	}
	return kind, at
}

func (p *layout) ipv4(frame []byte) (proto uint8, why Reason) {
	b := frame[p.ip:]
	if len(b) < ipv4Len {
		return 0, Truncated
	}
	ihl := int(b[0]&15) * 4
	switch {
	case b[0]>>4 != 4 || ihl < ipv4Len:
		return 0, Protocol
	case len(b) < ihl:
		return 0, Truncated
	case binary.BigEndian.Uint16(b[6:])&0x3fff != 0: // more fragments, or an offset
		return 0, Fragment
	case int(binary.BigEndian.Uint16(b[2:])) != len(b):
		return 0, Length
	}
	p.l4 = p.ip + ihl
	return b[9], OK
}

// ipv6 looks through the extension headers that the kernel looks through, too
// (INET6_PROTO_GSO_EXTHDR, net/ipv6/exthdrs_offload.c).
func (p *layout) ipv6(frame []byte) (proto uint8, why Reason) {
	b := frame[p.ip:]
	switch {
	case len(b) < ipv6Len:
		return 0, Truncated
	case b[0]>>4 != 6:
		return 0, Protocol
	case int(binary.BigEndian.Uint16(b[4:])) != len(b)-ipv6Len:
		return 0, Length
	}
	proto, at := b[6], ipv6Len
	for range maxExts {
		if proto != protoHopByHop && proto != protoRouting && proto != protoDstOpts {
			break
		}
		p.routed = p.routed || proto == protoRouting
		if len(b) < at+8 {
			return 0, Truncated
		}
		proto, at = b[at], at+8+int(b[at+1])*8
	}
	p.l4 = p.ip + at
	return proto, OK
}

// transport finds where the payload begins.
func (p *layout) transport(frame []byte) Reason {
	least := tcpLen
	if p.udp {
		least = udpLen
	}
	if len(frame) < p.l4+least {
		return Truncated
	}
	p.head = p.l4 + least
	b := frame[p.l4:]
	if p.udp {
		if int(binary.BigEndian.Uint16(b[4:])) != len(b) {
			return Length
		}
		return OK
	}
	p.head = p.l4 + int(b[12]>>4)*4
	switch {
	case p.head < p.l4+tcpLen:
		return Protocol
	case len(frame) < p.head:
		return Truncated
	}
	return OK
}

// checkCut checks the checksum's place and the bounds.
func (p *layout) checkCut(h Header, frame []byte) Reason {
	csum, most := tcpCsum, MaxSegments
	if p.udp {
		csum, most = udpCsum, MaxUDPSegments
	}
	switch {
	case h.Flags&NeedsCsum == 0 && (p.udp || p.routed):
		return NoCsum
	case h.Flags&NeedsCsum != 0 && (int(h.CsumStart) != p.l4 || int(h.CsumOffset) != csum):
		return CsumPlace
	case p.head > MaxHead:
		return Headers
	case len(frame)-p.head > int(h.GSOSize)*most:
		return Segments
	}
	return OK
}
