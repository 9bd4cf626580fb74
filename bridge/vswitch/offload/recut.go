package offload

// fitting returns the size of the segments of a TCP super-frame so that they fit a target's MTU.
func (p *layout) fitting(h Header, frame []byte, l Limits) uint16 {
	_, at := etherType(frame)
	size := l.MTU + at - p.head
	if p.udp || !p.plain || size < 1 || size > int(h.GSOSize) {
		return h.GSOSize
	}
	return uint16(size)
}

// shortened returns the vnet header by which a TCP segment is cut into shorter ones. It returns the
// frame's own one for any other frame, and for one with a wrong checksum, which the shorter ones
// would not have.
func shortened(h Header, frame []byte, l Limits) Header {
	s, ok := innerSegment(frame)
	if !ok || frame[s.l4+13]&^(tcpFIN|tcpPSH|tcpACK) != 0 {
		return h
	}
	size := l.MTU + s.ip.at - s.head
	switch {
	case size < 1 || len(frame)-s.head <= size:
		return h
	case h.Flags&NeedsCsum == 0 && !s.summed(frame):
		return h
	case h.Flags&NeedsCsum != 0 && (int(h.CsumStart) != s.l4 || h.CsumOffset != tcpCsum):
		return h
	}
	h.GSOSize, h.GSOType = uint16(size), GSOTCPv4
	if s.ip.kind == layerIPv6 {
		h.GSOType = GSOTCPv6
	}
	return h
}
