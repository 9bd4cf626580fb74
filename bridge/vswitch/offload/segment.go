package offload

import "encoding/binary"

// TCP flags, in the 14th byte of the header.
const (
	tcpFIN = 0x01
	tcpPSH = 0x08
	tcpCWR = 0x80
)

// startCut prepares what all segments have in common. The IPv4 ids, also those of a tunnel's
// headers, count up from the super-frame's id, with or without DF. The kernel does the same, since
// a vnet header cannot ask for a fixed id (SKB_GSO_TCP_FIXEDID).
func (f *Finisher) startCut(h Header) {
	p := &f.lay
	f.pseudo = p.pseudo(h, f.frame)
	f.noCsum = p.udp && h.Flags&NeedsCsum == 0 && getSum(f.frame[p.l4+udpCsum:]) == 0
	head := f.template[f.vnet : f.vnet+p.head]
	copy(head, f.frame)
	clear(f.template[:f.vnet])
	if p.jumbo != 0 {
		f.withoutJumbo(head)
	}
	f.number = 0
	if !p.udp {
		f.seq = binary.BigEndian.Uint32(head[p.l4+4:])
		f.flags = head[p.l4+13]
	}
}

// withoutJumbo removes the hop-by-hop header with the jumbo payload option from the template, since
// no segment is that long (ipv6_hopopt_jumbo_remove in include/net/ipv6.h).
func (f *Finisher) withoutJumbo(head []byte) {
	p := &f.lay
	head[p.jumbo-ipv6Len+6] = head[p.jumbo]
	copy(head[p.jumbo:], head[p.jumbo+jumboLen:])
	for i := range p.layers[:p.n] {
		if p.layers[i].at > p.jumbo {
			p.layers[i].at -= jumboLen
		}
	}
	p.l4 -= jumboLen
	p.head -= jumboLen
}

// csum returns the offset of the checksum in the transport header.
func (p *layout) csum() uint16 {
	if p.udp {
		return udpCsum
	}
	return tcpCsum
}

// pseudo returns the sum of the pseudo header without the length. Like the kernel, it takes it from
// the checksum field: with an IPv6 routing header, only the sender knows the final destination.
func (p *layout) pseudo(h Header, frame []byte) uint64 {
	if h.Flags&NeedsCsum != 0 {
		return withoutLength(frame[p.l4+int(p.csum()):], len(frame)-p.l4)
	}
	if p.udp {
		return p.ip().pseudoOf(frame, protoUDP)
	}
	return p.ip().pseudoOf(frame, protoTCP)
}

// withoutLength subtracts the length of the summed data from a field that has a pseudo header's
// sum.
func withoutLength(field []byte, n int) uint64 {
	acc := addWord(^uint16(n), getSum(field))
	if n > 0xffff { // BIG TCP: the length has 32 bits
		acc = addWord(^uint16(n>>16), acc)
	}
	return acc
}

// pseudoOf returns the sum of an IP header's pseudo header for a protocol, without the length.
func (l layer) pseudoOf(frame []byte, proto uint16) uint64 {
	if l.kind == layerIPv6 {
		return addWord(proto, add(frame[l.at+8:l.at+40], 0))
	}
	return addWord(proto, add(frame[l.at+12:l.at+20], 0))
}

// segment cuts off the next segment and writes its headers into room.
func (f *Finisher) segment(room []byte) Frame {
	p := &f.lay
	payload := f.frame[f.next:min(f.next+f.size, len(f.frame))]
	f.next += len(payload)
	n := copy(room, f.template[:f.vnet+p.head])
	head := room[f.vnet:n]
	if f.vnet >= HeaderLen {
		f.describe(len(payload), room)
	}
	f.transport(head[p.l4:], payload)
	for i := p.n - 1; i >= 0; i-- {
		f.network(p.layers[i], head, payload)
	}
	f.number += uint16((len(payload) + f.gso - 1) / f.gso)
	return Frame{Head: room[:n], Payload: payload}
}

// describe writes the vnet header of a segment. The segment may be a super-frame itself, cut from
// one of BIG TCP, or leave its checksum to the target, or be finished.
func (f *Finisher) describe(payload int, room []byte) {
	p := &f.lay
	var h Header
	if f.partial && !f.noCsum {
		h = Header{Flags: NeedsCsum, CsumStart: uint16(p.l4), CsumOffset: p.csum()}
	}
	if payload > f.gso {
		h.GSOType, h.GSOSize, h.HdrLen = f.gsoType, uint16(f.gso), uint16(p.head)
		if f.number != 0 {
			h.GSOType &^= GSOECN // only the first segment has CWR
		}
		if p.overUDP() {
			p.putTunnel(h, room[f.vnet:], room, 0)
			return
		}
	}
	h.Put(room)
}

// network writes the length, the id and the checksum of a layer other than the transport header.
func (f *Finisher) network(l layer, head, payload []byte) {
	b, length := head[l.at:], len(head)-l.at+len(payload)
	switch l.kind {
	case layerIPv6:
		binary.BigEndian.PutUint16(b[4:], uint16(length-ipv6Len))
	case layerIPv4:
		binary.BigEndian.PutUint16(b[2:], uint16(length))
		binary.BigEndian.PutUint16(b[4:], binary.BigEndian.Uint16(b[4:])+f.number)
		clear(b[10:12])
		putSum(b[10:], checksum(add(b[:int(b[0]&15)*4], 0)))
	case layerUDP:
		binary.BigEndian.PutUint16(b[4:], uint16(length))
		switch none := getSum(b[udpCsum:]) == 0; {
		case none:
		case len(payload) > f.gso: // a super-frame: the target completes this sum too
			putSum(b[udpCsum:], fold(addWord(uint16(length), l.pseudo)))
		default:
			clear(b[udpCsum : udpCsum+2])
			putSum(b[udpCsum:], mangled(checksum(f.sum(l, head, payload, addWord(uint16(length), l.pseudo)))))
		}
	case layerGRE:
		clear(b[greLen : greLen+2])
		putSum(b[greLen:], checksum(f.sum(l, head, payload, 0)))
	case layerPPPoE:
		binary.BigEndian.PutUint16(b[4:], uint16(length-pppoeLen))
	}
}

// sum sums a tunnel's header and everything after it. The sum of the transport header and the
// payload is known without reading them: with their checksum, which the target may fill in later,
// they cancel out the pseudo header (Documentation/networking/checksum-offloads.rst, Local Checksum
// Offload).
func (f *Finisher) sum(l layer, head, payload []byte, acc uint64) uint64 {
	l4 := f.lay.l4
	acc = add(head[l.at:l4], acc)
	if f.noCsum {
		return add(payload, add(head[l4:], acc))
	}
	return addCarry(acc, uint64(^fold(addWord(uint16(len(head)-l4+len(payload)), f.pseudo))))
}

// transport writes the TCP or UDP header. Only the last segment has FIN and PSH, only the first one
// CWR (RFC 3168, 6.1.2).
func (f *Finisher) transport(l4, payload []byte) {
	length := uint16(len(l4) + len(payload))
	sum := fold(addWord(length, f.pseudo))
	if f.lay.udp {
		binary.BigEndian.PutUint16(l4[4:], length)
		if f.noCsum {
			return
		}
		putSum(l4[udpCsum:], sum)
		if !f.partial {
			putSum(l4[udpCsum:], mangled(checksum(add(payload, add(l4, 0)))))
		}
		return
	}
	binary.BigEndian.PutUint32(l4[4:], f.seq)
	f.seq += uint32(len(payload))
	l4[13] = f.flags
	if f.number != 0 {
		l4[13] &^= tcpCWR
	}
	if f.next < len(f.frame) {
		l4[13] &^= tcpFIN | tcpPSH
	}
	putSum(l4[tcpCsum:], sum)
	if !f.partial {
		putSum(l4[tcpCsum:], checksum(add(payload, add(l4, 0))))
	}
}
