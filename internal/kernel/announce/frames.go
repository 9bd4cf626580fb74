// Package announce tells neighbours and switches by which MAC address, and so behind which port, a
// guest's addresses are: by frames that nobody has asked for.
package announce

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
)

// EtherTypes, and parts of the frames below.
const (
	etherARP  = 0x0806
	etherVLAN = 0x8100
	etherRARP = 0x8035
	etherIPv6 = 0x86dd

	icmpv6             = 58
	neighborAdvert     = 136
	advertOverride     = 0x20
	targetLinkLayer    = 2
	minFrame           = 60 // without its checksum
	advertisementBytes = 32 // of ICMPv6, with one option
)

// Frames returns frames by which neighbours and switches learn where mac is: for each of its
// addresses a gratuitous ARP request (RFC 5227) or an unsolicited neighbour advertisement (RFC
// 4861, 7.2.6), and without any a RARP request for itself, as QEMU sends it after a migration.
func Frames(mac net.HardwareAddr, ips []netip.Addr) (frames [][]byte) {
	for _, a := range ips {
		if a.Is4() {
			frames = append(frames, arp(mac, etherARP, 1, a))
		} else {
			frames = append(frames, advertisement(mac, a))
		}
	}
	if len(ips) == 0 {
		frames = append(frames, arp(mac, etherRARP, 3, netip.IPv4Unspecified()))
	}
	return frames
}

// Tagged returns a frame with a VLAN tag (IEEE 802.1Q).
func Tagged(frame []byte, vlan int) []byte {
	const addresses = 12 // bytes before the tag
	tag := binary.BigEndian.AppendUint32(nil, etherVLAN<<16|uint32(vlan))
	return slices.Concat(frame[:addresses], tag, frame[addresses:])
}

// arp returns a request of ARP or RARP about the sender itself.
func arp(mac net.HardwareAddr, etherType, operation uint16, a netip.Addr) []byte {
	b := header(net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, mac, etherType)
	b = binary.BigEndian.AppendUint16(b, 1)      // Ethernet
	b = binary.BigEndian.AppendUint16(b, 0x0800) // IPv4
	b = append(b, 6, 4)
	b = binary.BigEndian.AppendUint16(b, operation)
	b = append(append(b, mac...), a.AsSlice()...)
	target := net.HardwareAddr{0, 0, 0, 0, 0, 0}
	if etherType == etherRARP {
		target = mac
	}
	b = append(append(b, target...), a.AsSlice()...)
	return append(b, make([]byte, minFrame-len(b))...)
}

// advertisement returns an unsolicited neighbour advertisement to all nodes.
func advertisement(mac net.HardwareAddr, a netip.Addr) []byte {
	all := netip.MustParseAddr("ff02::1")
	b := header(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, mac, etherIPv6)
	b = append(b, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, advertisementBytes)
	b = append(b, icmpv6, 255) // the hop limit by which receivers know that it was not routed
	b = append(append(b, a.AsSlice()...), all.AsSlice()...)
	start := len(b)
	b = append(b, neighborAdvert, 0, 0, 0, advertOverride, 0, 0, 0)
	b = append(b, a.AsSlice()...)
	b = append(append(b, targetLinkLayer, 1), mac...)
	binary.BigEndian.PutUint16(b[start+2:], checksum(a, all, b[start:]))
	return b
}

func header(to, from net.HardwareAddr, etherType uint16) []byte {
	b := append(append([]byte{}, to...), from...)
	return binary.BigEndian.AppendUint16(b, etherType)
}

// checksum returns that of ICMPv6, with its pseudo-header (RFC 8200, 8.1).
func checksum(from, to netip.Addr, b []byte) uint16 {
	pseudo := append(from.AsSlice(), to.AsSlice()...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(b)))
	pseudo = append(pseudo, 0, 0, 0, icmpv6)
	sum := uint32(0)
	for _, part := range [][]byte{pseudo, b} {
		for i := 0; i+1 < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
