package offload

const (
	protoICMPv6 = 58
	icmpCsum    = 2 // offsetof(struct icmp6hdr, icmp6_cksum)
)

// ICMPv6Summed reports whether the ICMPv6 message that follows an IPv6 header has a correct
// checksum. The packet must have a whole header.
func ICMPv6Summed(packet []byte) bool { return fold(icmpSum(packet)) == 0xffff }

// SumICMPv6 writes the checksum of the ICMPv6 message that follows an IPv6 header.
func SumICMPv6(packet []byte) {
	field := packet[ipv6Len+icmpCsum:]
	clear(field[:2])
	putSum(field, checksum(icmpSum(packet)))
}

func icmpSum(packet []byte) uint64 {
	l := layer{kind: layerIPv6}
	acc := addWord(uint16(len(packet)-ipv6Len), l.pseudoOf(packet, protoICMPv6))
	return add(packet[ipv6Len:], acc)
}
