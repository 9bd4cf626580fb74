package offload

// A Reason tells why a frame was refused; OK is none. It is small, so that
// drops are counted in an array of [Reasons].
type Reason uint8

// What Check and Finisher.Start refuse.
const (
	OK        Reason = iota
	Truncated        // the frame ends within its headers
	CsumRange        // CsumStart or CsumOffset points out of the frame, or in front of what can be summed
	CsumPlace        // a super-frame's CsumStart and CsumOffset are not those of its TCP or UDP checksum
	NoCsum           // a super-frame without NeedsCsum whose pseudo header is unknown, behind a routing header
	GSOType          // a type that nobody may send: unknown, UDP fragmentation, a tunnel, or ECN without TCP
	GSOSize          // 0, or the 65535 that the kernel keeps for itself (GSO_BY_FRAGS)
	Protocol         // the frame's protocols are not those of the type
	Tunnel           // a super-frame whose headers are of no known tunnel
	Fragment         // a super-frame that is a fragment of an IP packet
	Length           // the IP or UDP length is not the frame's
	Segments         // more segments than MaxSegments or MaxUDPSegments
	Headers          // headers longer than MaxHead
	TooBig           // the frame, or a segment of it, is larger than the target's MTU
	Reasons          // how many there are
)

// String is the reason in words, as a counter is labelled.
func (r Reason) String() string {
	switch r {
	case OK:
		return "ok"
	case Truncated:
		return "ends within its headers"
	case CsumRange:
		return "checksum out of the frame"
	case CsumPlace:
		return "checksum not where the protocol has it"
	case NoCsum:
		return "super-frame without partial checksum"
	case GSOType:
		return "unknown type of super-frame"
	case GSOSize:
		return "impossible segment size"
	case Protocol:
		return "type of super-frame disagrees with its protocols"
	case Tunnel:
		return "super-frame of an unknown tunnel or shim"
	case Fragment:
		return "super-frame is an IP fragment"
	case Length:
		return "IP or UDP length disagrees with the frame's"
	case Segments:
		return "too many segments"
	case Headers:
		return "headers too long"
	case TooBig:
		return "larger than the MTU"
	}
	return "unknown reason"
}
