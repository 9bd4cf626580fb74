// Package radv sends router advertisements to a network's guests, and answers their solicitations
// (RFC 4861). The sender needs two open sockets and no privilege.
package radv

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"time"
)

// Params is what advertisements say.
type Params struct {
	Prefix   netip.Prefix  // from which guests make their addresses; a /64
	Lifetime time.Duration // for which the sender is a default router; 0 for a network without one
	DNS      netip.Addr    // the name server
	Domain   string        // in which guests look up names
}

// Lifetimes of what is advertised.
const (
	validLifetime     = 24 * time.Hour // of guests' addresses
	preferredLifetime = 4 * time.Hour
	dnsLifetime       = 30 * time.Minute
	// leastValid is what remains of an address's lifetime when the sender ends: hosts do not let an
	// advertisement cut it to less (RFC 4862, 5.5.3).
	leastValid = 2 * time.Hour
)

// Types of messages and options, and their flags (RFC 4861, RFC 8106).
const (
	typeSolicitation  = 133
	typeAdvertisement = 134

	optionSource  = 1 // the sender's link-layer address
	optionPrefix  = 3
	optionMTU     = 5
	optionDNS     = 25
	optionDomains = 31

	onLink, autonomous = 0x80, 0x40

	curHopLimit = 64
	unit        = 8 // bytes that the length of an option counts
)

// IPv6 (RFC 8200).
const (
	headerLen    = 40
	protocolICMP = 58
	// hopLimit is that of all neighbour discovery: a router has passed on what has less.
	hopLimit = 255
)

// advertisement returns the ICMPv6 message with a checksum of zero. mtu is that of the link, in
// bytes; 0 leaves it out. At the end, all lifetimes are as short as they may be.
func (p Params) advertisement(mac net.HardwareAddr, mtu int, end bool) []byte {
	router, valid, preferred, dns := p.Lifetime, validLifetime, preferredLifetime, dnsLifetime
	if end {
		router, valid, preferred, dns = 0, leastValid, 0, 0
	}
	b := []byte{typeAdvertisement, 0, 0, 0, curHopLimit, 0}
	b = binary.BigEndian.AppendUint16(b, uint16(router/time.Second))
	b = append(b, make([]byte, 8)...) // reachable time and retransmission timer: not specified
	if len(mac) == 6 {
		b = append(append(b, optionSource, 1), mac...)
	}
	if mtu > 0 {
		b = binary.BigEndian.AppendUint32(append(b, optionMTU, 1, 0, 0), uint32(mtu))
	}
	b = append(b, optionPrefix, 4, byte(p.Prefix.Bits()), onLink|autonomous)
	b = appendSeconds(appendSeconds(b, valid), preferred)
	b = append(append(b, 0, 0, 0, 0), p.Prefix.Masked().Addr().AsSlice()...)
	if p.DNS.IsValid() {
		b = appendSeconds(append(b, optionDNS, 3, 0, 0), dns)
		b = append(b, p.DNS.AsSlice()...)
	}
	if p.Domain != "" {
		name := domainName(p.Domain)
		b = appendSeconds(append(b, optionDomains, byte((8+len(name))/unit), 0, 0), dns)
		b = append(b, name...)
	}
	return b
}

func appendSeconds(b []byte, d time.Duration) []byte {
	return binary.BigEndian.AppendUint32(b, uint32(d/time.Second))
}

// domainName returns a name as labels (RFC 1035, 3.1), padded with zeros.
func domainName(name string) (b []byte) {
	for label := range strings.SplitSeq(name, ".") {
		b = append(append(b, byte(len(label))), label...)
	}
	b = append(b, 0)
	return append(b, make([]byte, (unit-len(b)%unit)%unit)...)
}

// packet puts an ICMPv6 message into an IPv6 packet, and fills in its checksum.
func packet(from, to netip.Addr, message []byte) []byte {
	b := []byte{6 << 4, 0, 0, 0}
	b = binary.BigEndian.AppendUint16(b, uint16(len(message)))
	b = append(b, protocolICMP, hopLimit)
	b = append(append(b, from.AsSlice()...), to.AsSlice()...)
	b = append(b, message...)
	binary.BigEndian.PutUint16(b[headerLen+2:], ^sum(b))
	return b
}

// sum returns the sum for the checksum of a packet's ICMPv6 message (RFC 8200, 8.1): over the
// addresses, the message's length, the protocol, and the message.
func sum(packet []byte) uint16 {
	message := packet[headerLen:]
	s := uint32(protocolICMP) + uint32(len(message))
	for _, part := range [][]byte{packet[8:headerLen], message} {
		for i := 0; i+1 < len(part); i += 2 {
			s += uint32(binary.BigEndian.Uint16(part[i:]))
		}
		if len(part)%2 == 1 {
			s += uint32(part[len(part)-1]) << 8
		}
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// solicitation returns the source of a router solicitation; ok is false for any other packet, and
// for one that RFC 4861, 6.1.1 has a router ignore.
func solicitation(b []byte) (from netip.Addr, ok bool) {
	if len(b) < headerLen+8 || b[0]>>4 != 6 || b[6] != protocolICMP || b[7] != hopLimit {
		return from, false
	}
	length := int(binary.BigEndian.Uint16(b[4:]))
	if length < 8 || headerLen+length > len(b) {
		return from, false
	}
	b = b[:headerLen+length]
	message := b[headerLen:]
	from, _ = netip.AddrFromSlice(b[8:24])
	if message[0] != typeSolicitation || message[1] != 0 || sum(b) != 0xffff || from.IsMulticast() {
		return from, false
	}
	for options := message[8:]; len(options) > 0; {
		if len(options) < 2 || options[1] == 0 || int(options[1])*unit > len(options) {
			return from, false
		}
		if options[0] == optionSource && from.IsUnspecified() {
			return from, false
		}
		options = options[int(options[1])*unit:]
	}
	return from, true
}
