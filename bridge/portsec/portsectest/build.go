// Package portsectest has the frames by which tests compare the engines of port security: a table
// of named ones with the reason that each engine must have ([Table]), and random ones ([Random]).
package portsectest

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"vmnet/bridge/portsec"
)

// The guest of the frames, and others of its network.
var (
	MAC       = net.HardwareAddr{0x52, 0x54, 0, 0, 0xaa, 1}
	OtherMAC  = net.HardwareAddr{0x52, 0x54, 0, 0, 0x0b, 0xad}
	VictimMAC = net.HardwareAddr{0x52, 0x54, 0, 0, 0xaa, 2}

	IP4    = netip.MustParseAddr("10.7.0.1")
	peer4  = netip.MustParseAddr("10.7.0.2")
	other4 = netip.MustParseAddr("10.7.0.99")
	router = netip.MustParseAddr("10.7.0.254")
	any4   = netip.IPv4Unspecified()
	all4   = netip.MustParseAddr("255.255.255.255")

	IP6      = netip.MustParseAddr("2001:db8::1")
	local6   = netip.MustParseAddr("fe80::5054:ff:fe00:aa01") // EUI-64 of MAC
	peer6    = netip.MustParseAddr("2001:db8::2")
	other6   = netip.MustParseAddr("2001:db8::99")
	otherLL  = netip.MustParseAddr("fe80::1")
	any6     = netip.IPv6Unspecified()
	allNodes = netip.MustParseAddr("ff02::1")
	group6   = netip.MustParseAddr("ff02::1:ff00:1")

	everybody = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	allNodesM = net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}
	zeroMAC   = net.HardwareAddr{0, 0, 0, 0, 0, 0}
)

// Config is the guest's port security with all checks.
func Config() portsec.Config {
	return portsec.Config{
		Checks: portsec.All, MAC: MAC,
		IPs: []netip.Prefix{netip.PrefixFrom(IP4, 32), netip.PrefixFrom(IP6, 128)},
	}
}

// Without is Config without some checks.
func Without(some portsec.Checks) portsec.Config {
	cfg := Config()
	cfg.Checks &^= some
	return cfg
}

func be16(n uint16) []byte { return binary.BigEndian.AppendUint16(nil, n) }

// eth returns a frame from the guest, without padding.
func eth(dst net.HardwareAddr, kind uint16, payload []byte) []byte {
	return ethFrom(MAC, dst, kind, payload)
}

func ethFrom(src, dst net.HardwareAddr, kind uint16, payload []byte) []byte {
	return slices.Concat(dst, src, be16(kind), payload)
}

// tagged inserts tags, each a type and a TCI, the outermost first.
func tagged(frame []byte, tags ...[2]uint16) []byte {
	var all []byte
	for _, t := range tags {
		all = append(all, slices.Concat(be16(t[0]), be16(t[1]))...)
	}
	return slices.Insert(slices.Clone(frame), 12, all...)
}

type arpMessage struct {
	op       uint16
	sha, tha net.HardwareAddr
	spa, tpa netip.Addr
}

func (m arpMessage) bytes() []byte {
	return slices.Concat([]byte{0, 1, 8, 0, 6, 4}, be16(m.op), m.sha, m.spa.AsSlice(), m.tha, m.tpa.AsSlice())
}

// An ip4 is a packet of IPv4.
type ip4 struct {
	src, dst netip.Addr
	proto    byte
	fragment uint16 // flags and offset
	options  []byte // of a multiple of 4 bytes
	payload  []byte
}

func (p ip4) bytes() []byte {
	n := 20 + len(p.options)
	h := slices.Concat([]byte{byte(0x40 | n/4), 0}, be16(uint16(n+len(p.payload))), be16(1), be16(p.fragment),
		[]byte{64, p.proto, 0, 0}, p.src.AsSlice(), p.dst.AsSlice(), p.options)
	binary.BigEndian.PutUint16(h[10:], checksum(h))
	return append(h, p.payload...)
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func udp(from, to uint16, text string) []byte {
	return slices.Concat(be16(from), be16(to), be16(uint16(8+len(text))), be16(0), []byte(text))
}

// ip6 returns a packet of IPv6.
func ip6(src, dst netip.Addr, next byte, payload []byte) []byte {
	return slices.Concat([]byte{0x60, 0, 0, 0}, be16(uint16(len(payload))), []byte{next, 255}, src.AsSlice(),
		dst.AsSlice(), payload)
}

// icmp6 returns a message with a valid checksum.
func icmp6(src, dst netip.Addr, kind byte, body []byte) []byte {
	m := slices.Concat([]byte{kind, 0, 0, 0}, body)
	pseudo := slices.Concat(src.AsSlice(), dst.AsSlice(), []byte{0, 0}, be16(uint16(len(m))),
		[]byte{0, 0, 0, 58}, m)
	binary.BigEndian.PutUint16(m[2:], checksum(pseudo))
	return m
}

// neighbor returns the body of a solicitation or an advertisement.
func neighbor(target netip.Addr, options ...[]byte) []byte {
	return slices.Concat([]byte{0, 0, 0, 0}, target.AsSlice(), slices.Concat(options...))
}

// lladdr returns an option with a link-layer address: 1 for the source's, 2 for the target's.
func lladdr(kind byte, mac net.HardwareAddr) []byte { return slices.Concat([]byte{kind, 1}, mac) }

// advert returns the body of a router advertisement.
func advert(options ...[]byte) []byte {
	return slices.Concat([]byte{64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0}, slices.Concat(options...))
}

// fragment returns a fragment header. offset is in bytes.
func fragment(next byte, offset int, more bool) []byte {
	o := uint16(offset)
	if more {
		o |= 1
	}
	return slices.Concat([]byte{next, 0}, be16(o), be16(0), be16(7))
}

// padding returns a header of 8 bytes with hop-by-hop or destination options: padding only.
func padding(next byte) []byte { return []byte{next, 0, 1, 4, 0, 0, 0, 0} }
