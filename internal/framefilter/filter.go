// Package framefilter selects Ethernet frames by an expression, in a part of the language of
// pcap-filter(7).
package framefilter

import (
	"bytes"
	"net"
	"net/netip"
)

// A Filter reports whether a frame is selected. The zero value selects all.
type Filter struct{ match func(*packet) bool }

// Match reports whether a frame is selected. A frame may be cut: what is missing matches nothing.
// HeaderBytes are enough for all that a filter looks at, unless IPv6 has many extension headers.
func (f Filter) Match(frame []byte) bool {
	if f.match == nil {
		return true
	}
	p := decode(frame)
	return f.match(&p)
}

// HeaderBytes is how much of a frame should be kept for a filter.
const HeaderBytes = 256

// EtherTypes (IEEE 802) and IP protocols (IANA).
const (
	typeIPv4 = 0x0800
	typeARP  = 0x0806
	typeVLAN = 0x8100
	typeQinQ = 0x88a8
	typeIPv6 = 0x86dd

	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
	protoSCTP   = 132
)

// packet is what filters look at.
type packet struct {
	dst, src     net.HardwareAddr
	vlans        []uint16
	etherType    uint16
	srcIP, dstIP netip.Addr // of ARP too
	proto        int        // -1 without an IP header
	ports        bool
	sport, dport uint16
}

func be16(b []byte) uint16 { return uint16(b[0])<<8 | uint16(b[1]) }

func decode(b []byte) (p packet) {
	p.proto = -1
	if len(b) < 14 {
		return p
	}
	p.dst, p.src, p.etherType = b[:6], b[6:12], be16(b[12:])
	b = b[14:]
	const maxTags = 2
	for len(p.vlans) < maxTags && (p.etherType == typeVLAN || p.etherType == typeQinQ) && len(b) >= 4 {
		p.vlans = append(p.vlans, be16(b)&0xfff)
		p.etherType, b = be16(b[2:]), b[4:]
	}
	switch p.etherType {
	case typeARP:
		p.arp(b)
	case typeIPv4:
		p.ipv4(b)
	case typeIPv6:
		p.ipv6(b)
	}
	return p
}

func (p *packet) arp(b []byte) {
	if len(b) >= 28 && be16(b[2:]) == typeIPv4 && b[4] == 6 && b[5] == 4 {
		p.srcIP, p.dstIP = netip.AddrFrom4([4]byte(b[14:18])), netip.AddrFrom4([4]byte(b[24:28]))
	}
}

func (p *packet) ipv4(b []byte) {
	if len(b) < 20 || b[0]>>4 != 4 || b[0]&15 < 5 {
		return
	}
	p.proto = int(b[9])
	p.srcIP, p.dstIP = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	if header := int(b[0]&15) * 4; be16(b[6:])&0x1fff == 0 && len(b) >= header { // else a later fragment
		p.transport(b[header:])
	}
}

func (p *packet) ipv6(b []byte) {
	if len(b) < 40 || b[0]>>4 != 6 {
		return
	}
	p.srcIP, p.dstIP = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	next, rest := int(b[6]), b[40:]
	const maxHeaders = 8
	for range maxHeaders {
		switch {
		case len(rest) < 8:
		case next == 0, next == 43, next == 60: // hop-by-hop, routing, destination options (RFC 8200)
			size := 8 * (int(rest[1]) + 1)
			next, rest = int(rest[0]), rest[min(size, len(rest)):]
			continue
		case next == 44: // fragment
			later := be16(rest[2:])&^7 != 0
			next, rest = int(rest[0]), rest[8:]
			if later {
				rest = nil
			}
			continue
		}
		break
	}
	p.proto = next
	p.transport(rest)
}

func (p *packet) transport(b []byte) {
	if len(b) >= 4 && (p.proto == protoTCP || p.proto == protoUDP || p.proto == protoSCTP) {
		p.ports, p.sport, p.dport = true, be16(b), be16(b[2:])
	}
}

func (p *packet) isBroadcast() bool {
	return bytes.Equal(p.dst, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
}

func (p *packet) isMulticast() bool { return len(p.dst) > 0 && p.dst[0]&1 != 0 }
