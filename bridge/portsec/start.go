package portsec

// Suffices reports whether Verdict of the start of a longer frame is that of the whole frame: all
// that any check reads is in the start.
func Suffices(start []byte) bool {
	const (
		etherLen, tagLen  = 14, 4
		arpLen            = 28
		ip4Most, ip6Least = 60, 40
		ports             = 4
	)
	at := etherLen
	if len(start) < at {
		return false
	}
	kind := EtherType(be16(start[12:]))
	for tags := 0; kind.isTag() && tags < maxTags; tags++ {
		if len(start) < at+tagLen {
			return false
		}
		kind = EtherType(be16(start[at+2:]))
		at += tagLen
	}
	switch kind {
	case typeIPv4:
		return len(start) >= at+ip4Most+ports
	case typeIPv6:
		// ICMP has options up to the end of the packet.
		return len(start) >= at+ip6Least+ports && !isExtension(start[at+6]) && start[at+6] != protoICMP
	case typeARP, typeRARP:
		return len(start) >= at+arpLen
	}
	return true
}
