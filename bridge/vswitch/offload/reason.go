package offload

// A Reason says why a frame was refused, or OK. Its values are small, so that an array of [Reasons]
// can count drops.
type Reason uint8

// The reasons for which Check and Finisher.Start refuse frames.
const (
	OK        Reason = iota
	Truncated        // the frame ends within its headers
	CsumRange        // CsumStart or CsumOffset points outside of what can be summed
	CsumPlace        // a super-frame's CsumStart and CsumOffset miss its TCP or UDP checksum
	NoCsum           // no NeedsCsum, and a routing header hides a super-frame's pseudo header
	GSOType          // an invalid type: unknown, UDP fragmentation, a tunnel, or ECN without TCP
	GSOSize          // 0, or 65535, which the kernel reserves (GSO_BY_FRAGS)
	Protocol         // the frame's protocols do not match the type
	Tunnel           // a super-frame with headers of an unknown tunnel
	Fragment         // a super-frame that is a fragment of an IP packet
	Length           // the IP or UDP length does not match the frame
	Segments         // more segments than MaxSegments or MaxUDPSegments
	Headers          // headers longer than MaxHead
	TooBig           // the frame, or a segment of it, is larger than the target's MTU
	Reasons          // the number of reasons
)

// String returns the reason as the label of a counter.
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
