// Package offload does in software what a frame's vnet header leaves to the receiver: it
// completes partial checksums, and cuts super-frames into segments. It makes no system call and
// does not allocate.
//
// Contracts: include/uapi/linux/virtio_net.h for the vnet header;
// include/linux/virtio_net.h (virtio_net_hdr_to_skb) for the kernel's checks of it;
// net/ipv4/tcp_offload.c, net/ipv4/udp_offload.c (__udp_gso_segment), net/ipv4/af_inet.c
// (inet_gso_segment) and net/ipv6/ip6_offload.c for segmentation. Live tests compare the result
// with that of the running kernel byte by byte.
package offload

import "encoding/binary"

// HeaderLen is the length in bytes of struct virtio_net_hdr, which precedes each frame of a tap
// unless TUNSETVNETHDRSZ has set a longer one.
const HeaderLen = 10

// TunnelHeaderLen is the length in bytes of struct virtio_net_hdr_v1_hash_tunnel (Linux 6.17),
// which begins with a virtio_net_hdr and can describe a super-frame in a tunnel over UDP.
const TunnelHeaderLen = 24

// MaxFrame is the longest Ethernet frame in bytes that is sent, or received other than by a packet
// socket: a super-frame of 64 KiB (GSO_LEGACY_MAX_SIZE in include/linux/netdevice.h) with room for
// its headers.
const MaxFrame = 64<<10 + 256

// Header.Flags, VIRTIO_NET_HDR_F_*.
const (
	NeedsCsum = 1 // the checksum at CsumStart+CsumOffset has only the pseudo header's sum
	DataValid = 2 // the checksum was verified
)

// Header.GSOType, VIRTIO_NET_HDR_GSO_*. GSOECN is a bit that may be set with a TCP type.
const (
	GSONone  = 0
	GSOTCPv4 = 1
	GSOUDP   = 3 // UDP fragmentation, which is obsolete; refused
	GSOTCPv6 = 4
	GSOUDPL4 = 5 // UDP segmentation, IPv4 or IPv6
	GSOECN   = 0x80

	// Bits that are set with the type of a super-frame in a tunnel, for the tunnel's own IP
	// header, and the bit of Header.Flags for a tunnel whose UDP header has a checksum.
	gsoTunnel4  = 0x20
	gsoTunnel6  = 0x40
	tunnelCsum  = 8
	outerOffset = 20 // offsetof(struct virtio_net_hdr_v1_hash_tunnel, outer_th_offset)
	innerOffset = 22 // and inner_nh_offset
)

// A Header is struct virtio_net_hdr. It is little endian in frames, as TUNSETVNETLE
// requests and a little-endian host has by default.
type Header struct {
	Flags   uint8
	GSOType uint8
	// HdrLen, the length of the headers, is a hint that the kernel does not always set
	// correctly. It is ignored.
	HdrLen     uint16
	GSOSize    uint16 // payload bytes of each segment but the last
	CsumStart  uint16 // start of the summed data, in bytes from the frame's start
	CsumOffset uint16 // offset of the checksum, in bytes from CsumStart
}

// Parse parses a Header. ok is false if b is shorter than HeaderLen.
func Parse(b []byte) (h Header, ok bool) {
	if len(b) < HeaderLen {
		return Header{}, false
	}
	w := binary.LittleEndian.Uint64(b) // one access: a header is often read right after it was written
	return Header{
		Flags:      uint8(w),
		GSOType:    uint8(w >> 8),
		HdrLen:     uint16(w >> 16),
		GSOSize:    uint16(w >> 32),
		CsumStart:  uint16(w >> 48),
		CsumOffset: binary.LittleEndian.Uint16(b[8:]),
	}, true
}

// Put writes h into the first HeaderLen bytes of b, which must be long enough.
func (h Header) Put(b []byte) {
	_ = b[HeaderLen-1]
	binary.LittleEndian.PutUint64(b, uint64(h.Flags)|uint64(h.GSOType)<<8|uint64(h.HdrLen)<<16|
		uint64(h.GSOSize)<<32|uint64(h.CsumStart)<<48)
	binary.LittleEndian.PutUint16(b[8:], h.CsumOffset)
}

// DescribesTunnel reports whether a vnet header of length TunnelHeaderLen describes a tunnel.
func DescribesTunnel(b []byte) bool { return b[1]&(gsoTunnel4|gsoTunnel6) != 0 }

// WithoutTunnel returns h without the bits about a tunnel, which can be found by parsing the frame.
func (h Header) WithoutTunnel() Header {
	h.GSOType &^= gsoTunnel4 | gsoTunnel6
	h.Flags &^= tunnelCsum
	return h
}

// Plain reports whether the frame has no offloads left to do.
func (h Header) Plain() bool { return h.Flags&NeedsCsum == 0 && h.GSOType == GSONone }

// Limits describes the frames that a target takes. The zero value takes finished frames of any
// length without a vnet header.
type Limits struct {
	CSum   bool // partial checksums (TUN_F_CSUM); needs a vnet header
	TSO4   bool // super-frames of TCP over IPv4 (TUN_F_TSO4)
	TSO6   bool // super-frames of TCP over IPv6 (TUN_F_TSO6)
	TSOECN bool // super-frames of TCP with the ECN bit (TUN_F_TSO_ECN)
	USO    bool // super-frames of UDP (TUN_F_USO4 and TUN_F_USO6)
	// Tunnels accepts such super-frames also in a tunnel over UDP, with and without a checksum
	// (TUN_F_UDP_TUNNEL_GSO and TUN_F_UDP_TUNNEL_GSO_CSUM). It needs TunnelHeaderLen.
	Tunnels bool

	// Recut cuts TCP into segments that fit the MTU, even if the sender made longer ones. Otherwise
	// they are refused.
	Recut bool

	// MTU limits the bytes after the Ethernet header and its VLAN tags; 0 means no limit. For a
	// super-frame it limits each segment. An untagged frame may have four bytes more, as in the
	// kernel.
	MTU int
	// VnetHdr is the length in bytes of the vnet header that precedes each frame for the
	// target: 0 for none, otherwise HeaderLen to MaxVnetHdr.
	VnetHdr int
}

// MaxVnetHdr is the length of the longest vnet header in bytes.
const MaxVnetHdr = TunnelHeaderLen

// Fits reports whether the target takes the frame unchanged, with the same header. The frame must
// have passed Check. If it does not fit, a Finisher converts it. A super-frame without NeedsCsum
// never fits, since a receiver may rely on both being set (virtio 1.2, 5.1.6.4).
func Fits(h Header, frame []byte, l Limits) bool { return FitsStart(h, frame, 0, &l) }

// FitsStart reports whether the target takes a frame of which only the start is there. The frame
// has passed CheckStart with the same arguments.
func FitsStart(h Header, start []byte, more int, l *Limits) bool {
	size := len(start) + more
	if h.Flags&NeedsCsum != 0 && !l.CSum || h.sctp() {
		return false
	}
	if h.GSOType == GSONone {
		return l.admits(start, size)
	}
	p, why := parseStart(h, start, more)
	return why == OK && h.Flags&NeedsCsum != 0 && l.takesCut(h.GSOType, &p) && size-p.outer() <= maxIP &&
		l.admits(start, min(size, p.segment(h)))
}

// maxIP is the longest IP packet in bytes that its length field can express and a target takes. BIG
// TCP has longer ones (GSO_MAX_SIZE in include/linux/netdevice.h).
const maxIP = 65535

// segment returns the length in bytes of the longest segment.
func (p *layout) segment(h Header) int {
	n := p.head + int(h.GSOSize)
	if p.jumbo != 0 {
		n -= jumboLen
	}
	return n
}

// takesCut reports whether the target itself cuts super-frames of this type and these headers.
func (l *Limits) takesCut(gsoType uint8, p *layout) bool {
	return l.CSum && l.VnetHdr >= HeaderLen && l.takes(gsoType) &&
		(p.plain || p.overUDP() && l.Tunnels && l.VnetHdr >= TunnelHeaderLen)
}

// Describe writes into b the vnet header of a frame that fits a target (Fits). b has the length of
// the target's header, which may be 0. shift is the number of bytes that tags add for the target,
// or remove if negative.
func Describe(h Header, frame, b []byte, shift int) { DescribeStart(h, frame, 0, b, shift) }

// DescribeStart is Describe for the start of a frame that fits (FitsStart).
func DescribeStart(h Header, start []byte, more int, b []byte, shift int) {
	clear(b)
	if len(b) < HeaderLen {
		return
	}
	shifted := h.Shifted(shift)
	if h.GSOType != GSONone && len(b) >= TunnelHeaderLen {
		if p, why := parseStart(h, start, more); why == OK && p.overUDP() {
			p.putTunnel(shifted, start, b, shift)
			return
		}
	}
	shifted.Put(b)
}

// Shifted returns the vnet header of a frame into which that many bytes were inserted before its
// payload.
func (h Header) Shifted(by int) Header {
	if h.Flags&NeedsCsum != 0 {
		h.CsumStart = uint16(int(h.CsumStart) + by)
	}
	if h.HdrLen != 0 {
		h.HdrLen = uint16(int(h.HdrLen) + by)
	}
	return h
}

// putTunnel writes a header that describes the tunnel.
func (p *layout) putTunnel(h Header, frame, b []byte, shift int) {
	outer, inner := p.layers[1].at, p.layers[2].at
	h.GSOType |= gsoTunnel4
	if p.layers[0].kind == layerIPv6 {
		h.GSOType ^= gsoTunnel4 | gsoTunnel6
	}
	if getSum(frame[outer+udpCsum:]) != 0 {
		h.Flags |= tunnelCsum
	}
	h.Put(b)
	binary.LittleEndian.PutUint16(b[outerOffset:], uint16(outer+shift))
	binary.LittleEndian.PutUint16(b[innerOffset:], uint16(inner+shift))
}

// takes reports whether the target takes super-frames of this type.
func (l *Limits) takes(gsoType uint8) bool {
	if gsoType&GSOECN != 0 && !l.TSOECN {
		return false
	}
	switch gsoType &^ GSOECN {
	case GSOTCPv4:
		return l.TSO4
	case GSOTCPv6:
		return l.TSO6
	case GSOUDPL4:
		return l.USO
	}
	return false
}

// admits reports whether a frame of n bytes that begins like frame is within the target's MTU. It
// follows the rule of a kernel bridge: an untagged frame may be longer by the length of a tag
// (__is_skb_forwardable in include/linux/netdevice.h), and the outermost tag does not count.
func (l *Limits) admits(frame []byte, n int) bool {
	if l.MTU == 0 || n <= l.MTU+etherLen+vlanLen {
		return true
	}
	_, at := etherType(frame)
	return n <= l.MTU+at || at > etherLen && n <= l.MTU+etherLen+2*vlanLen
}
