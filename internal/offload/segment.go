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

// startCut prepares what all segments have in common. The IPv4 id counts up from the super-frame's, with
// or without DF: a vnet header cannot say that the id shall stay (SKB_GSO_TCP_FIXEDID), so
// the kernel does the same.
func (f *Finisher) startCut(h Header) {
	p := &f.lay
	head := f.template[f.vnet : f.vnet+p.head]
	copy(head, f.frame)
	clear(f.template[:f.vnet])
	if f.partial {
		Header{Flags: NeedsCsum, CsumStart: uint16(p.l4), CsumOffset: p.csum()}.Put(f.template[:])
	}
	f.pseudo = p.pseudo(h, f.frame)
	if !p.v6 {
		f.id = binary.BigEndian.Uint16(head[p.ip+4:])
	}
	if !p.udp {
		f.seq = binary.BigEndian.Uint32(head[p.l4+4:])
		f.flags = head[p.l4+13]
		f.first = true
	}
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
		return addWord(^uint16(len(frame)-p.l4), getSum(frame[p.l4+int(p.csum()):]))
	}
	addresses := frame[p.ip+12 : p.ip+20]
	if p.v6 {
		addresses = frame[p.ip+8 : p.ip+40]
	}
	return addWord(protoTCP, add(addresses, 0))
}

// segment cuts the next segment off; its headers go into room.
func (f *Finisher) segment(room []byte) Frame {
	p := &f.lay
	payload := f.frame[f.next:min(f.next+f.size, len(f.frame))]
	f.next += len(payload)
	n := copy(room, f.template[:f.vnet+p.head])
	head := room[f.vnet:n]
	f.network(head[p.ip:], len(head)-p.ip+len(payload))
	f.transport(head[p.l4:], payload)
	return Frame{room[:n], payload}
}

// network writes the lengths, the id and the checksum of the IP header.
func (f *Finisher) network(ip []byte, length int) {
	if f.lay.v6 {
		binary.BigEndian.PutUint16(ip[4:], uint16(length-ipv6Len))
		return
	}
	binary.BigEndian.PutUint16(ip[2:], uint16(length))
	binary.BigEndian.PutUint16(ip[4:], f.id)
	f.id++
	clear(ip[10:12])
	putSum(ip[10:], checksum(add(ip[:f.lay.l4-f.lay.ip], 0)))
}

// transport writes the TCP or UDP header: FIN and PSH are the last segment's, CWR
// the first one's (RFC 3168, 6.1.2).
func (f *Finisher) transport(l4, payload []byte) {
	length := uint16(len(l4) + len(payload))
	sum := fold(addWord(length, f.pseudo))
	if f.lay.udp {
		binary.BigEndian.PutUint16(l4[4:], length)
		putSum(l4[udpCsum:], sum)
		if !f.partial {
			putSum(l4[udpCsum:], mangled(checksum(add(payload, add(l4, 0)))))
		}
		return
	}
	binary.BigEndian.PutUint32(l4[4:], f.seq)
	f.seq += uint32(len(payload))
	l4[13] = f.flags
	if !f.first {
		l4[13] &^= tcpCWR
	}
	if f.next < len(f.frame) {
		l4[13] &^= tcpFIN | tcpPSH
	}
	f.first = false
	putSum(l4[tcpCsum:], sum)
	if !f.partial {
		putSum(l4[tcpCsum:], checksum(add(payload, add(l4, 0))))
	}
}
