package portsec

// A Reason says why a frame was dropped. Its numbers are those of guard.c in
// internal/kernel/bpfguard.
type Reason uint8

// The reasons.
const (
	Pass Reason = iota // not dropped

	Short        // a header that a check reads is missing or incomplete
	Malformed    // a version or a length of IPv4 or IPv6 that no host sends
	SourceMAC    // MAC: another source address
	Tagged       // VLAN: a tag; or more than two tags, whose content is not checked
	OtherType    // an EtherType that is not allowed, or LLC
	SourceIP     // IP: another source address
	ForgedARP    // ARP: the message names others as its sender, or is not of Ethernet and IPv4
	ForgedND     // ND: the message names others as its sender, or has invalid options
	DHCPServer   // DHCP: a server's or a relay's message
	RouterAdvert // RA: a router advertisement or a redirect
	Fragmented   // ND, RA: a fragment with such a message, or with an extension header
	Headers      // more than 8 extension headers of IPv6

	Reasons = int(Headers) + 1
)

// String returns the reason as the label of a counter.
func (r Reason) String() string {
	switch r {
	case Pass:
		return "passed"
	case Short:
		return "incomplete header"
	case Malformed:
		return "malformed IP header"
	case SourceMAC:
		return "source MAC address not the NIC's"
	case Tagged:
		return "VLAN tag from a guest"
	case OtherType:
		return "EtherType not allowed"
	case SourceIP:
		return "source IP address not the NIC's"
	case ForgedARP:
		return "forged ARP"
	case ForgedND:
		return "forged neighbor discovery"
	case DHCPServer:
		return "DHCP server behind a guest"
	case RouterAdvert:
		return "router advertisement from a guest"
	case Fragmented:
		return "fragment that hides its content"
	case Headers:
		return "too many extension headers"
	}
	return "unknown"
}
