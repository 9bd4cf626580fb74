package offload

import "encoding/binary"

// Limits of segmentation. The kernel itself sends no UDP super-frame with more segments
// (UDP_MAX_SEGMENTS, include/linux/udp.h). For TCP it has no limit; ours is 64 KiB in segments of
// 64 bytes, so that one frame cannot become 65,000.
const (
	MaxSegments    = 1024
	MaxUDPSegments = 128
	// MaxHead limits the headers from Ethernet to TCP or UDP, which each segment repeats, in
	// bytes. TCP over IPv6 in Geneve with all its options over IPv6 has 444.
	MaxHead = 512
)

const (
	etherLen = 14 // struct ethhdr
	vlanLen  = 4  // struct vlan_hdr
	maxTags  = 8  // VLAN tags that are parsed
	ipv4Len  = 20 // struct iphdr without options
	ipv6Len  = 40 // struct ipv6hdr
	tcpLen   = 20 // struct tcphdr without options
	udpLen   = 8  // struct udphdr
	maxExts  = 8  // IPv6 extension headers that are parsed
	jumboLen = 8  // struct hop_jumbo_hdr
	greLen   = 4  // struct gre_base_hdr
	greCsum  = 4  // the checksum and 2 reserved bytes that may follow
	pppoeLen = 6  // struct pppoe_hdr

	tcpCsum  = 16 // offsetof(struct tcphdr, check)
	udpCsum  = 6  // offsetof(struct udphdr, check)
	sctpCsum = 8  // offsetof(struct sctphdr, checksum), a CRC32c

	typeIPv4          = 0x0800
	typeIPv6          = 0x86dd
	typeVLAN          = 0x8100
	typeQinQ          = 0x88a8
	typePPPoE         = 0x8864
	typeNSH           = 0x894f
	typeMPLS          = 0x8847
	typeMPLSMulticast = 0x8848

	protoHopByHop = 0
	protoIPIP     = 4
	protoTCP      = 6
	protoUDP      = 17
	protoIPv6     = 41
	protoRouting  = 43
	protoGRE      = 47
	protoDstOpts  = 60
	protoMPLS     = 137
)

// MinStart is the least length in bytes of the start of a longer frame, for the functions that take
// one: it has the Ethernet header with all tags that are parsed.
const MinStart = etherLen + maxTags*vlanLen

// minCsumStart is the least CsumStart, after an Ethernet and an IPv4 header. With it, filling in a
// checksum never overwrites a MAC address or a VLAN tag. The kernel demands 20.
const minCsumStart = etherLen + ipv4Len

// Check returns OK if a frame is consistent with its vnet header, or else the reason. It is
// stricter than virtio_net_hdr_to_skb and the kernel's segmentation: a super-frame must have
// correct IP and UDP lengths and at most two tags, must not be a fragment, and must keep to the
// limits above. It is more lenient in one case. To Check as to the kernel, a super-frame whose
// payload is at most GSOSize is an ordinary frame. But the kernel counts TCP options as payload
// there, and then drops such a frame.
func Check(h Header, frame []byte) Reason { return CheckStart(h, frame, 0) }

// CheckStart is Check for the start of a frame, which more bytes follow. It has MinStart bytes at
// least. OK is true of the whole frame. Any other reason may only mean that the start has not all
// headers.
func CheckStart(h Header, start []byte, more int) Reason {
	if h.Plain() { // inlined where frames are forwarded
		return OK
	}
	return check(h, start, more)
}

func check(h Header, start []byte, more int) Reason {
	if h.Flags&NeedsCsum != 0 {
		if why := checkCsum(h, len(start)+more); why != OK {
			return why
		}
	}
	if h.GSOType == GSONone {
		return OK
	}
	_, why := parseStart(h, start, more)
	return why
}

// checkCsum checks that the checksum is in a frame of that many bytes.
func checkCsum(h Header, size int) Reason {
	if h.CsumStart < minCsumStart || int(h.CsumStart)+int(h.CsumOffset)+h.csumLen() > size {
		return CsumRange
	}
	return OK
}

// csumLen returns the length in bytes of the checksum that the header asks for.
func (h Header) csumLen() int {
	if h.sctp() {
		return 4
	}
	return 2
}

// checkType returns the protocol of the header's GSO type.
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

// etherType returns the type after the VLAN tags, and the offset of what follows it.
// After more than maxTags tags, it is the type of a VLAN tag.
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
