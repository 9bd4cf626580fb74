package offload

import (
	"encoding/binary"
	"hash/crc32"
	"math/bits"
)

// The internet checksum (RFC 1071) does not care in which byte order its words
// are read, as long as the result is written in the same: all sums here are of little-endian
// words, eight bytes at a time, with the carry added in again.

// add adds b to a sum. b begins at an even place of what is summed. Two chains of additions, each
// of which waits for its carries, run beside each other: one alone is half as fast.
func add(b []byte, acc uint64) uint64 {
	x, y := acc, uint64(0)
	var cx, cy uint64
	for len(b) >= 128 {
		w := b[:128]
		x, cx = bits.Add64(x, word(w[0:]), cx)
		x, cx = bits.Add64(x, word(w[8:]), cx)
		x, cx = bits.Add64(x, word(w[16:]), cx)
		x, cx = bits.Add64(x, word(w[24:]), cx)
		x, cx = bits.Add64(x, word(w[32:]), cx)
		x, cx = bits.Add64(x, word(w[40:]), cx)
		x, cx = bits.Add64(x, word(w[48:]), cx)
		x, cx = bits.Add64(x, word(w[56:]), cx)
		y, cy = bits.Add64(y, word(w[64:]), cy)
		y, cy = bits.Add64(y, word(w[72:]), cy)
		y, cy = bits.Add64(y, word(w[80:]), cy)
		y, cy = bits.Add64(y, word(w[88:]), cy)
		y, cy = bits.Add64(y, word(w[96:]), cy)
		y, cy = bits.Add64(y, word(w[104:]), cy)
		y, cy = bits.Add64(y, word(w[112:]), cy)
		y, cy = bits.Add64(y, word(w[120:]), cy)
		b = b[128:]
	}
	for len(b) >= 8 {
		x, cx = bits.Add64(x, word(b), cx)
		b = b[8:]
	}
	x, cx = bits.Add64(x, addTail(b, y), cx) // y with its tail
	return addCarry(x, cx+cy)
}

func word(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }

// addTail adds the last 0 to 7 bytes; an odd one is followed by a zero.
func addTail(b []byte, acc uint64) uint64 {
	var last uint64
	at := 0
	if len(b) >= 4 {
		last, at = uint64(binary.LittleEndian.Uint32(b)), 4
	}
	for ; at < len(b); at++ {
		last |= uint64(b[at]) << (8 * at)
	}
	return addCarry(acc, last)
}

// addCarry adds with the carry added in again, which cannot carry a second time.
func addCarry(acc, v uint64) uint64 {
	acc, carry := bits.Add64(acc, v, 0)
	return acc + carry
}

// addWord adds a number that is written big endian.
func addWord(v uint16, acc uint64) uint64 { return addCarry(acc, uint64(bits.ReverseBytes16(v))) }

// fold makes 16 bits of a sum.
func fold(acc uint64) uint16 {
	acc = acc>>32 + acc&0xffffffff
	acc = acc>>32 + acc&0xffffffff
	acc = acc>>16 + acc&0xffff
	acc = acc>>16 + acc&0xffff
	return uint16(acc)
}

// checksum is what goes into the field: for all whose fields were summed with zero,
// or with the pseudo header's sum, in the checksum's place.
func checksum(acc uint64) uint16 { return ^fold(acc) }

// mangled is a checksum for a field in which 0 says that there is none (RFC 768); all ones
// are the same number. The kernel's skb_checksum_help writes it for every protocol.
func mangled(sum uint16) uint16 {
	if sum == 0 {
		return 0xffff
	}
	return sum
}

// putSum writes a sum or a checksum in the order in which it was read.
func putSum(b []byte, sum uint16) { binary.LittleEndian.PutUint16(b, sum) }

func getSum(b []byte) uint64 { return uint64(binary.LittleEndian.Uint16(b)) }

// sctp tells whether what NeedsCsum asks for is SCTP's CRC32c. The header cannot say so: the
// kernel knows by a bit of its own (csum_not_inet), and a veth leaves it to its peer
// (NETIF_F_SCTP_CRC). But no other protocol has its checksum at that place.
func (h Header) sctp() bool { return h.Flags&NeedsCsum != 0 && h.CsumOffset == sctpCsum }

// sctpChecksum is the CRC32c of an SCTP packet (RFC 9260, 6.8) in two pieces, whose checksum
// field lies in the first and is zero.
func sctpChecksum(head, rest []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	return crc32.Update(crc32.Checksum(head, table), table, rest)
}
