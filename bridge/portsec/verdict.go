package portsec

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
)

// The kernel's engine, guard.c, has the same functions with the same order of checks: a frame with
// several faults has the same reason in both. What changes here changes there too.

// Limits of both engines.
const (
	maxTags    = 2  // VLAN tags
	maxHeaders = 8  // extension headers of IPv6
	maxOptions = 16 // of a message of neighbor discovery
)

// A Checker checks frames as a Config says. Several goroutines may use it at the same time.
type Checker struct {
	checks Checks
	mac    []byte
	types  []EtherType
	v4     []range4
	v6     []range6
	known  bool // there are own IP addresses
}

// A range4 is a network of IPv4, or one address.
type range4 struct{ addr, mask uint32 }

// A range6 is a network of IPv6, or one address.
type range6 struct{ hi, lo, maskHi, maskLo uint64 }

// NewChecker returns a checker for a valid Config.
func NewChecker(cfg Config) *Checker {
	c := &Checker{
		checks: cfg.Checks, mac: make([]byte, 6), types: slices.Clone(cfg.EtherTypes), known: len(cfg.IPs) > 0,
	}
	copy(c.mac, cfg.MAC)
	for _, p := range cfg.Own() {
		if p.Addr().Is4() {
			b := p.Addr().As4()
			c.v4 = append(c.v4, range4{binary.BigEndian.Uint32(b[:]), ^uint32(0) << (32 - p.Bits())})
			continue
		}
		c.v6 = append(c.v6, rangeOf(p))
	}
	return c
}

func rangeOf(p netip.Prefix) range6 {
	b := p.Addr().As16()
	r := range6{hi: binary.BigEndian.Uint64(b[:]), lo: binary.BigEndian.Uint64(b[8:])}
	r.maskHi = ^uint64(0) << (64 - min(p.Bits(), 64)) // a shift by 64 gives 0
	r.maskLo = ^uint64(0) << (64 - max(p.Bits()-64, 0))
	return r
}

func be16(b []byte) uint16 { return binary.BigEndian.Uint16(b) }

// Verdict returns Pass, or why the frame is dropped. The frame begins with its Ethernet header. It
// may be a super-frame, whose headers are those of its segments. What a check needs and the frame
// does not have is a reason to drop it. Verdict neither changes nor keeps the frame, and allocates
// nothing.
func (c *Checker) Verdict(f []byte) Reason {
	const etherLen, tagLen = 14, 4
	if len(f) < etherLen {
		return Short
	}
	if c.checks&MAC != 0 && !bytes.Equal(f[6:12], c.mac) {
		return SourceMAC
	}
	if c.checks&(VLAN|payload) == 0 {
		return Pass
	}
	at, kind := etherLen, EtherType(be16(f[12:]))
	for tags := 0; kind.isTag(); tags++ {
		if c.checks&VLAN != 0 || tags == maxTags {
			return Tagged
		}
		if len(f) < at+tagLen {
			return Short
		}
		kind = EtherType(be16(f[at+2:]))
		at += tagLen
	}
	if c.checks&payload == 0 {
		return Pass
	}
	switch kind {
	case typeIPv4:
		return c.ipv4(f, at)
	case typeIPv6:
		return c.ipv6(f, at)
	case typeARP, typeRARP:
		return c.arp(f, at, kind)
	}
	if slices.Contains(c.types, kind) {
		return Pass
	}
	return OtherType
}

// arpHead is the head of an ARP message for Ethernet and IPv4 (RFC 826).
var arpHead = []byte{0, 1, 0x08, 0, 6, 4}

func (c *Checker) arp(f []byte, at int, kind EtherType) Reason {
	const arpLen, request, reply, reverse = 28, 1, 2, 3
	if c.checks&ARP == 0 {
		return Pass
	}
	if len(f) < at+arpLen {
		return Short
	}
	m := f[at : at+arpLen]
	op, sender, target := be16(m[6:]), binary.BigEndian.Uint32(m[14:]), binary.BigEndian.Uint32(m[24:])
	if !bytes.Equal(m[:6], arpHead) || !bytes.Equal(m[8:14], c.mac) {
		return ForgedARP
	}
	var ok bool
	switch {
	case kind == typeRARP:
		ok = op == reverse && sender == 0 && bytes.Equal(m[18:24], c.mac)
	case op != request && op != reply:
	case !c.known, c.own4(sender):
		ok = true
	default:
		ok = op == request && sender == 0 && c.own4(target) // a probe
	}
	if !ok {
		return ForgedARP
	}
	return Pass
}

// Protocols of IPv4 and next headers of IPv6.
const (
	protoIGMP = 2
	protoUDP  = 17
	protoICMP = 58 // of IPv6

	headerHopByHop    = 0
	headerRouting     = 43
	headerFragment    = 44
	headerAuth        = 51
	headerDestination = 60
)

// Ports of DHCP and DHCPv6.
const (
	portServer4, portClient4 = 67, 68
	portClient6, portServer6 = 546, 547
)

func (c *Checker) ipv4(f []byte, at int) Reason {
	const headerLen, udpPorts, allOnes, multicast = 20, 4, 0xffffffff, 0xe
	if c.checks&(IP|DHCP) == 0 {
		return Pass
	}
	if len(f) < at+headerLen {
		return Short
	}
	h := f[at : at+headerLen]
	n := int(h[0]&15) * 4
	if h[0]>>4 != 4 || n < headerLen {
		return Malformed
	}
	src, dst := binary.BigEndian.Uint32(h[12:]), binary.BigEndian.Uint32(h[16:])
	first := be16(h[6:])&0x1fff == 0
	at += n
	if len(f) < at {
		return Short
	}
	starting := false // a host without an address may send it
	switch {
	case first && h[9] == protoUDP:
		if len(f) < at+udpPorts {
			return Short
		}
		from, to := be16(f[at:]), be16(f[at+2:])
		if c.checks&DHCP != 0 && (from == portServer4 || to == portClient4) {
			return DHCPServer
		}
		starting = from == portClient4 && to == portServer4 && dst == allOnes
	case first && h[9] == protoIGMP && src == 0:
		if len(f) < at+1 {
			return Short
		}
		starting = isIGMPReport(f[at]) && dst>>28 == multicast
	}
	if c.checks&IP != 0 && !c.own4(src) && !(src == 0 && starting && len(c.v4) > 0) {
		return SourceIP
	}
	return Pass
}

// isIGMPReport reports whether a host sends that type of message to join or leave a group, which
// RFC 3376 (4.2.13) allows without an address.
func isIGMPReport(kind byte) bool {
	return kind == 0x12 || kind == 0x16 || kind == 0x17 || kind == 0x22
}

func (c *Checker) own4(a uint32) bool {
	for _, r := range c.v4 {
		if (a^r.addr)&r.mask == 0 {
			return true
		}
	}
	return false
}

func (c *Checker) own6(a []byte) bool {
	hi, lo := binary.BigEndian.Uint64(a), binary.BigEndian.Uint64(a[8:])
	for _, r := range c.v6 {
		if (hi^r.hi)&r.maskHi|(lo^r.lo)&r.maskLo == 0 {
			return true
		}
	}
	return false
}

// An ip6 is what is known of an IPv6 packet. Offsets are those of the frame.
type ip6 struct {
	at, end  int  // of the payload; a receiver ignores what follows the end
	next     byte // what the payload is
	own      bool // the source is the NIC's
	none     bool // the source is unspecified
	fragment bool // the first fragment of a packet
}

func (c *Checker) ipv6(f []byte, at int) Reason {
	const headerLen = 40
	if c.checks&(IP|ND|DHCP|RA) == 0 {
		return Pass
	}
	if len(f) < at+headerLen {
		return Short
	}
	h := f[at : at+headerLen]
	if h[0]>>4 != 6 {
		return Malformed
	}
	p := ip6{at: at + headerLen, next: h[6], own: c.own6(h[8:]), none: isZero(h[8:24])}
	p.end = min(len(f), p.at+int(be16(h[4:])))
	later, why := p.walk(f)
	starting := false // a host without an address may send it
	if why == Pass && !later {
		starting, why = c.transport(f, &p)
	}
	if why != Pass {
		return why
	}
	if c.checks&IP != 0 && !p.own && !(p.none && starting && len(c.v6) > 0) {
		return SourceIP
	}
	return Pass
}

func isZero(b []byte) bool {
	return binary.BigEndian.Uint64(b)|binary.BigEndian.Uint64(b[8:]) == 0
}

func isExtension(next byte) bool {
	switch next {
	case headerHopByHop, headerRouting, headerFragment, headerAuth, headerDestination:
		return true
	}
	return false
}

// walk skips the extension headers. Each is at least 8 bytes long. later reports a fragment that is
// not the first of its packet, whose headers are in the first.
func (p *ip6) walk(f []byte) (later bool, why Reason) {
	for range maxHeaders {
		if !isExtension(p.next) {
			return false, Pass
		}
		if len(f) < p.at+8 {
			return false, Short
		}
		h := f[p.at : p.at+8]
		switch p.next {
		case headerFragment:
			if isExtension(h[0]) {
				return false, Fragmented
			}
			if be16(h[2:])&^7 != 0 {
				return true, Pass
			}
			p.fragment = true
			p.at += 8
		case headerAuth:
			p.at += (int(h[1]) + 2) * 4
		default:
			p.at += (int(h[1]) + 1) * 8
		}
		p.next = h[0]
	}
	if isExtension(p.next) {
		return false, Headers
	}
	return false, Pass
}

// transport checks what the packet carries. starting reports a message that a host without an
// address may send.
func (c *Checker) transport(f []byte, p *ip6) (starting bool, why Reason) {
	switch p.next {
	case protoUDP:
		if len(f) < p.at+4 {
			return false, Short
		}
		from, to := be16(f[p.at:]), be16(f[p.at+2:])
		if c.checks&DHCP != 0 && (from == portServer6 || to == portClient6) {
			return false, DHCPServer
		}
	case protoICMP:
		return c.icmp6(f, p)
	}
	return false, Pass
}

// Types of ICMPv6 messages (RFC 4861, RFC 2710, RFC 3810).
const (
	mldReport, mldDone, mld2Report = 131, 132, 143
	routerSolicit, routerAdvert    = 133, 134
	neighborSolicit                = 135
	neighborAdvert, redirect       = 136, 137
)

func (c *Checker) icmp6(f []byte, p *ip6) (starting bool, why Reason) {
	if len(f) < p.at+1 {
		return false, Short
	}
	kind := f[p.at]
	if kind < routerSolicit || kind > redirect {
		return !p.fragment && (kind == mldReport || kind == mldDone || kind == mld2Report), Pass
	}
	switch {
	case p.fragment && c.checks&(ND|RA) != 0:
		return false, Fragmented
	case c.checks&RA != 0 && (kind == routerAdvert || kind == redirect):
		return false, RouterAdvert
	case c.checks&ND != 0 && kind != redirect:
		why = c.neighbor(f, p, kind)
	}
	return kind == routerSolicit || kind == neighborSolicit, why
}

// ndLen holds the lengths of ND messages without options, from routerSolicit on.
var ndLen = [...]int{8, 16, 24, 24}

// neighbor checks a message of neighbor discovery other than a redirect, whose options are about
// another host.
func (c *Checker) neighbor(f []byte, p *ip6, kind byte) Reason {
	n := ndLen[kind-routerSolicit]
	if p.end < p.at+n {
		return Short
	}
	if c.known {
		solicits := kind == routerSolicit || kind == neighborSolicit
		about := kind == neighborAdvert || kind == neighborSolicit && p.none // its target is the NIC
		if !p.own && !(p.none && solicits) || about && !c.own6(f[p.at+8:p.at+24]) {
			return ForgedND
		}
	}
	return c.options(f[:p.end], p.at+n)
}

// options checks the link-layer addresses in the options from at to the end of the message. An
// option of another kind that ends behind it has no address, and hides none: receivers discard such
// a message.
func (c *Checker) options(m []byte, at int) Reason {
	const sourceAddr, targetAddr, addrLen = 1, 2, 8
	for range maxOptions {
		if at >= len(m) {
			return Pass
		}
		if len(m) < at+2 {
			return Short
		}
		kind, n := m[at], int(m[at+1])*8
		if n == 0 {
			return ForgedND
		}
		if kind == sourceAddr || kind == targetAddr {
			if n != addrLen || len(m) < at+addrLen || !bytes.Equal(m[at+2:at+addrLen], c.mac) {
				return ForgedND
			}
		}
		at += n
	}
	if at >= len(m) {
		return Pass
	}
	return ForgedND
}
