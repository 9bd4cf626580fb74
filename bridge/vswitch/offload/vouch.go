package offload

import (
	"encoding/binary"
	"math/bits"
)

// TCP flags (RFC 9293, 3.1), and the option that has the maximum segment size.
const (
	tcpSYN, tcpRST, tcpACK = 2, 4, 16

	optionEnd, optionNop, optionMSS, optionMSSLen = 0, 1, 2, 4
)

// A segment is where the headers of a frame with a whole TCP segment are: without VLAN tags, IP
// options of IPv6, fragments, and bytes behind the packet.
type segment struct {
	l4, head int // offsets of the TCP header and of its payload
	ip       layer
}

// segmentOf returns where they are in a frame that begins with b, which more bytes follow.
func segmentOf(b []byte, more int) (s segment, ok bool) {
	if len(b) < etherLen+ipv4Len+tcpLen {
		return s, false
	}
	length, ip := 0, b[etherLen:]
	switch binary.BigEndian.Uint16(b[etherLen-2:]) {
	case typeIPv4:
		s.l4, s.ip = etherLen+int(ip[0]&0xf)*4, layer{kind: layerIPv4, at: etherLen}
		length = etherLen + int(binary.BigEndian.Uint16(ip[2:]))
		ok = ip[0]>>4 == 4 && s.l4 >= etherLen+ipv4Len && ip[9] == protoTCP &&
			binary.BigEndian.Uint16(ip[6:])&0x3fff == 0
	case typeIPv6:
		s.l4, s.ip = etherLen+ipv6Len, layer{kind: layerIPv6, at: etherLen}
		length = s.l4 + int(binary.BigEndian.Uint16(ip[4:]))
		ok = ip[0]>>4 == 6 && ip[6] == protoTCP
	}
	if !ok || length != len(b)+more || s.l4+tcpLen > len(b) {
		return s, false
	}
	s.head = s.l4 + int(b[s.l4+12]>>4)*4
	return s, s.head >= s.l4+tcpLen && s.head <= len(b)
}

// Vouch marks a TCP segment whose checksum is known to be right as one that need not be verified
// (NeedsCsum), by replacing that checksum, and returns its vnet header. One that is longer than an
// MTU becomes a super-frame. ok is false for other frames, which stay as they are.
func Vouch(frame []byte, mtu int) (h Header, ok bool) {
	s, ok := segmentOf(frame, 0)
	if !ok {
		return h, false
	}
	h = Header{Flags: NeedsCsum, CsumStart: uint16(s.l4), CsumOffset: tcpCsum}
	if len(frame) > mtu+etherLen {
		size := mtu + etherLen - s.head
		if size <= 0 || frame[s.l4+13]&^(tcpFIN|tcpPSH|tcpACK) != 0 {
			return h, false
		}
		h.GSOType, h.GSOSize, h.HdrLen = GSOTCPv4, uint16(size), uint16(s.head)
		if s.ip.kind == layerIPv6 {
			h.GSOType = GSOTCPv6
		}
	}
	acc := addWord(uint16(len(frame)-s.l4), s.ip.pseudoOf(frame, protoTCP))
	putSum(frame[s.l4+tcpCsum:], fold(acc))
	return h, true
}

// RaiseMSS has the receiver of a frame that begins a TCP connection send segments of up to MaxMSS
// bytes in place of those that fill an MTU, which Vouch then makes super-frames. h is the frame's
// vnet header. It changes no other frame, and none with another maximum segment size: who announces
// a smaller one has a reason, such as a tunnel. frame may be only the start, which more bytes
// follow.
func RaiseMSS(h Header, frame []byte, more, mtu int) {
	s, ok := segmentOf(frame, more)
	if !ok || frame[s.l4+13]&(tcpSYN|tcpRST) != tcpSYN {
		return
	}
	fills := mtu - (s.l4 - etherLen) - tcpLen
	for at := s.l4 + tcpLen; at+optionMSSLen <= s.head; {
		kind, n := frame[at], int(frame[at+1])
		switch {
		case kind == optionNop:
			n = 1
		case kind == optionEnd, n < 2:
			return
		case kind == optionMSS && n == optionMSSLen:
			was := binary.BigEndian.Uint16(frame[at+2:])
			if int(was) == fills && fills < MaxMSS {
				binary.BigEndian.PutUint16(frame[at+2:], MaxMSS)
				if h.Flags&NeedsCsum == 0 {
					s.changed(frame, at+2, was)
				}
			}
			return
		}
		at += n
	}
}

// MaxMSS is the largest maximum segment size that RaiseMSS gives a connection, in bytes: that of
// IPv6 with an MTU of 65520 bytes.
const MaxMSS = 65520 - ipv6Len - tcpLen

// changed adapts the checksum to a word that was another one before (RFC 1624). A word at an odd
// offset is in the sum with its bytes in the other order.
func (s segment) changed(frame []byte, at int, was uint16) {
	is := binary.BigEndian.Uint16(frame[at:])
	if (at-s.l4)%2 != 0 {
		was, is = bits.ReverseBytes16(was), bits.ReverseBytes16(is)
	}
	field := frame[s.l4+tcpCsum:]
	acc := addWord(^was, uint64(^binary.LittleEndian.Uint16(field)))
	putSum(field, checksum(addWord(is, acc)))
}
