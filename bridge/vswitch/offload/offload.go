// Package offload finishes in software what a frame's vnet header leaves to the
// receiver: checksums that are filled in only partly, and super-frames that are to be cut into
// segments. It makes no system call and no allocation.
//
// Contracts: include/uapi/linux/virtio_net.h; what the kernel demands of such a header,
// include/linux/virtio_net.h (virtio_net_hdr_to_skb); how it cuts, net/ipv4/tcp_offload.c,
// net/ipv4/udp_offload.c (__udp_gso_segment), net/ipv4/af_inet.c (inet_gso_segment) and
// net/ipv6/ip6_offload.c. Live tests compare with the running kernel byte by byte.
package offload

import "encoding/binary"

// HeaderLen is the length in bytes of struct virtio_net_hdr, which a tap has before each
// frame unless TUNSETVNETHDRSZ asked for more.
const HeaderLen = 10

// TunnelHeaderLen is that of struct virtio_net_hdr_v1_hash_tunnel (Linux 6.17), which begins with a
// virtio_net_hdr and can describe the super-frame of a tunnel over UDP.
const TunnelHeaderLen = 24

// Header.Flags, VIRTIO_NET_HDR_F_*.
const (
	NeedsCsum = 1 // the checksum at CsumStart+CsumOffset holds the pseudo header's sum only
	DataValid = 2 // the checksum was verified
)

// Header.GSOType, VIRTIO_NET_HDR_GSO_*. GSOECN is a bit beside a TCP type.
const (
	GSONone  = 0
	GSOTCPv4 = 1
	GSOUDP   = 3 // UDP fragmentation, which nobody sends any more; refused
	GSOTCPv6 = 4
	GSOUDPL4 = 5 // UDP segmentation, IPv4 or IPv6
	GSOECN   = 0x80

	// Bits beside the type of what is in a tunnel, for the tunnel's own IP header; and that of
	// Header.Flags for a tunnel whose UDP header has a checksum.
	gsoTunnel4  = 0x20
	gsoTunnel6  = 0x40
	tunnelCsum  = 8
	outerOffset = 20 // offsetof(struct virtio_net_hdr_v1_hash_tunnel, outer_th_offset)
	innerOffset = 22 // and inner_nh_offset
)

// A Header is struct virtio_net_hdr, little endian on the wire: what TUNSETVNETLE
// asks for, and what a little-endian host has anyway.
type Header struct {
	Flags   uint8
	GSOType uint8
	// HdrLen, the bytes of headers, is a hint that the kernel does not keep to; it is ignored.
	HdrLen     uint16
	GSOSize    uint16 // payload bytes of each segment but the last
	CsumStart  uint16 // where the sum begins, in bytes from the frame's start
	CsumOffset uint16 // where the checksum is, in bytes from CsumStart
}

// Parse reads a Header; it is not ok where b is shorter than HeaderLen.
func Parse(b []byte) (h Header, ok bool) {
	if len(b) < HeaderLen {
		return Header{}, false
	}
	return Header{
		Flags:      b[0],
		GSOType:    b[1],
		HdrLen:     binary.LittleEndian.Uint16(b[2:]),
		GSOSize:    binary.LittleEndian.Uint16(b[4:]),
		CsumStart:  binary.LittleEndian.Uint16(b[6:]),
		CsumOffset: binary.LittleEndian.Uint16(b[8:]),
	}, true
}

// Put writes h into the first HeaderLen bytes of b, which must have them.
func (h Header) Put(b []byte) {
	_ = b[HeaderLen-1]
	b[0], b[1] = h.Flags, h.GSOType
	binary.LittleEndian.PutUint16(b[2:], h.HdrLen)
	binary.LittleEndian.PutUint16(b[4:], h.GSOSize)
	binary.LittleEndian.PutUint16(b[6:], h.CsumStart)
	binary.LittleEndian.PutUint16(b[8:], h.CsumOffset)
}

// DescribesTunnel reports whether a vnet header of TunnelHeaderLen says of a tunnel.
func DescribesTunnel(b []byte) bool { return b[1]&(gsoTunnel4|gsoTunnel6) != 0 }

// WithoutTunnel is h without what a TunnelHeaderLen header says of a tunnel, which is found in the frame.
func (h Header) WithoutTunnel() Header {
	h.GSOType &^= gsoTunnel4 | gsoTunnel6
	h.Flags &^= tunnelCsum
	return h
}

// Plain tells that the frame is finished already.
func (h Header) Plain() bool { return h.Flags&NeedsCsum == 0 && h.GSOType == GSONone }

// Limits is what a target takes. The zero value takes finished frames of any
// length, without a vnet header.
type Limits struct {
	CSum   bool // partial checksums (TUN_F_CSUM); needs a vnet header
	TSO4   bool // super-frames of TCP over IPv4 (TUN_F_TSO4)
	TSO6   bool // and over IPv6 (TUN_F_TSO6)
	TSOECN bool // those with the ECN bit (TUN_F_TSO_ECN)
	USO    bool // super-frames of UDP (TUN_F_USO4 and TUN_F_USO6)
	// Tunnels takes these also in a tunnel over UDP, with and without a checksum (TUN_F_UDP_TUNNEL_GSO
	// and TUN_F_UDP_TUNNEL_GSO_CSUM); it needs TunnelHeaderLen.
	Tunnels bool

	// MTU is the most bytes behind the Ethernet header and its VLAN tags, for a super-frame those of each
	// segment; 0 is no limit. Four bytes more pass where no tag takes them, as the kernel has it.
	MTU int
	// VnetHdr is the length in bytes of the vnet header that the target wants before each
	// frame: 0 none, else HeaderLen to MaxVnetHdr.
	VnetHdr int
}

// MaxVnetHdr is the longest vnet header.
const MaxVnetHdr = TunnelHeaderLen

// Fits tells whether the target takes the frame, which has passed Check, as it is, under
// the same header. Where it does not, a Finisher makes of it what fits. A super-frame without
// NeedsCsum fits nowhere: a receiver may rely on getting both (virtio 1.2, 5.1.6.4).
func Fits(h Header, frame []byte, l Limits) bool {
	if h.Flags&NeedsCsum != 0 && !l.CSum || h.sctp() {
		return false
	}
	if h.GSOType == GSONone {
		return l.admits(frame, len(frame))
	}
	p, why := parse(h, frame)
	return why == OK && h.Flags&NeedsCsum != 0 && l.takesCut(h.GSOType, &p) && len(frame)-p.outer() <= maxIP &&
		l.admits(frame, min(len(frame), p.segment(h)))
}

// maxIP is the most bytes of an IP packet that its length tells, and that a target takes. BIG TCP has
// more (GSO_MAX_SIZE in include/linux/netdevice.h).
const maxIP = 65535

// segment is the most bytes of a segment.
func (p *layout) segment(h Header) int {
	n := p.head + int(h.GSOSize)
	if p.jumbo != 0 {
		n -= jumboLen
	}
	return n
}

// takesCut reports whether the target itself cuts super-frames of this type and these headers.
func (l Limits) takesCut(gsoType uint8, p *layout) bool {
	return l.CSum && l.VnetHdr >= HeaderLen && l.takes(gsoType) &&
		(p.plain || p.overUDP() && l.Tunnels && l.VnetHdr >= TunnelHeaderLen)
}

// Describe writes into b the vnet header of a frame that Fits a target whose header is as long as b; 0
// is none. Where the target gets a tag more than the frame has, or one less, shift is its length.
func Describe(h Header, frame, b []byte, shift int) {
	clear(b)
	if len(b) < HeaderLen {
		return
	}
	shifted := h.Shifted(shift)
	if h.GSOType != GSONone && len(b) >= TunnelHeaderLen {
		if p, why := parse(h, frame); why == OK && p.overUDP() {
			p.putTunnel(shifted, frame, b, shift)
			return
		}
	}
	shifted.Put(b)
}

// Shifted is the vnet header of a frame that has got so many bytes more in front of its payload.
func (h Header) Shifted(by int) Header {
	if h.Flags&NeedsCsum != 0 {
		h.CsumStart = uint16(int(h.CsumStart) + by)
	}
	if h.HdrLen != 0 {
		h.HdrLen = uint16(int(h.HdrLen) + by)
	}
	return h
}

// putTunnel writes a header with what it says of the tunnel.
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

// takes tells whether the target takes super-frames of this type.
func (l Limits) takes(gsoType uint8) bool {
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

// admits reports whether n bytes that begin like frame are within the target's MTU, by the rule of a
// kernel bridge: an untagged frame may have a tag's length more (__is_skb_forwardable in
// include/linux/netdevice.h), and the outermost tag does not count at all.
func (l Limits) admits(frame []byte, n int) bool {
	if l.MTU == 0 || n <= l.MTU+etherLen+vlanLen {
		return true
	}
	_, at := etherType(frame)
	return n <= l.MTU+at || at > etherLen && n <= l.MTU+etherLen+2*vlanLen
}
