package offload

import (
	"encoding/binary"
)

// Flags of TCP, in the 14th byte of its header.
const (
	tcpFIN = 0x01
	tcpPSH = 0x08
	tcpCWR = 0x80
)

// startCut prepares what all segments have in common. The IPv4 ids, also those of a tunnel's headers,
// count up from the super-frame's, with or without DF: a vnet header cannot say that the id shall stay
// (SKB_GSO_TCP_FIXEDID), so the kernel does the same.
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

// withoutJumbo takes the hop-by-hop header with the jumbo payload option out of the template: no
// segment is that long (ipv6_hopopt_jumbo_remove in include/net/ipv6.h).
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

// csum is where the protocol has its checksum.
func (p *layout) csum() uint16 {
	if p.udp {
		return udpCsum
	}
	return tcpCsum
}

// pseudo is the sum of the pseudo header without the length. It is taken from the checksum field,
// as the kernel does: with an IPv6 routing header the sender knew the destination, we do not.
func (p *layout) pseudo(h Header, frame []byte) uint64 {
	if h.Flags&NeedsCsum != 0 {
		return withoutLength(frame[p.l4+int(p.csum()):], len(frame)-p.l4)
	}
	if p.udp {
		return p.ip().pseudoOf(frame, protoUDP)
	}
	return p.ip().pseudoOf(frame, protoTCP)
}

// withoutLength takes the length of what is summed out of a field that holds a pseudo header's sum.
func withoutLength(field []byte, n int) uint64 {
	acc := addWord(^uint16(n), getSum(field))
	if n > 0xffff { // BIG TCP: the length is of 32 bits
		acc = addWord(^uint16(n>>16), acc)
	}
	return acc
}

// pseudoOf is the sum of the pseudo header that an IP header makes for a protocol, without the length.
func (l layer) pseudoOf(frame []byte, proto uint16) uint64 {
	if l.kind == layerIPv6 {
		return addWord(proto, add(frame[l.at+8:l.at+40], 0))
	}
	return addWord(proto, add(frame[l.at+12:l.at+20], 0))
}

// segment cuts the next segment off; its headers go into room.
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
	return Frame{room[:n], payload}
}

// describe writes the vnet header of a segment: of one that is a super-frame itself, which BIG TCP is
// cut into, of one whose checksum is left to the target, or of a finished one.
func (f *Finisher) describe(payload int, room []byte) {
	p := &f.lay
	var h Header
	if f.partial && !f.noCsum {
		h = Header{Flags: NeedsCsum, CsumStart: uint16(p.l4), CsumOffset: p.csum()}
	}
	if payload > f.gso {
		h.GSOType, h.GSOSize, h.HdrLen = f.gsoType, uint16(f.gso), uint16(p.head)
		if f.number != 0 {
			h.GSOType &^= GSOECN // CWR is the first one's
		}
		if p.overUDP() {
			p.putTunnel(h, room[f.vnet:], room, 0)
			return
		}
	}
	h.Put(room)
}

// network writes the lengths, the id and the checksums of a header that is not the transport's.
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
		case len(payload) > f.gso: // a super-frame, whose target completes this sum, too
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

// sum adds up a tunnel's header and all that is behind it. Of the transport header and the payload the
// sum is known: with their checksum, which the target may fill in later, they make up for the pseudo
// header (Documentation/networking/checksum-offloads.rst, Local Checksum Offload).
func (f *Finisher) sum(l layer, head, payload []byte, acc uint64) uint64 {
	l4 := f.lay.l4
	acc = add(head[l.at:l4], acc)
	if f.noCsum {
		return add(payload, add(head[l4:], acc))
	}
	return addCarry(acc, uint64(^fold(addWord(uint16(len(head)-l4+len(payload)), f.pseudo))))
}

// transport writes the TCP or UDP header: FIN and PSH are the last segment's, CWR
// the first one's (RFC 3168, 6.1.2).
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
