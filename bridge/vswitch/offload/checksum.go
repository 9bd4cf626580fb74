package offload

import (
	"encoding/binary"
	"hash/crc32"
	"math/bits"
)

// The internet checksum (RFC 1071) works with any byte order, as long as its words are read and the
// result is written in the same one. All sums here are of little-endian words, eight bytes at a
// time, with the carry added back.

// add adds b to a sum. b must begin at an even offset in the summed data. Two chains of additions
// run in parallel, since each has to wait for its carries: one chain alone is half as fast.
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

// addTail adds the last 0 to 7 bytes, padded with a zero if their number is odd.
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

// addCarry adds v and then the carry, which cannot overflow a second time.
func addCarry(acc, v uint64) uint64 {
	acc, carry := bits.Add64(acc, v, 0)
	return acc + carry
}

// addWord adds a number that the frame has in big endian.
func addWord(v uint16, acc uint64) uint64 { return addCarry(acc, uint64(bits.ReverseBytes16(v))) }

// fold folds a sum into 16 bits.
func fold(acc uint64) uint16 {
	acc = acc>>32 + acc&0xffffffff
	acc = acc>>32 + acc&0xffffffff
	acc = acc>>16 + acc&0xffff
	acc = acc>>16 + acc&0xffff
	return uint16(acc)
}

// checksum returns the value of the checksum field. The sum must include the field as zero or as
// the pseudo header's sum.
func checksum(acc uint64) uint16 { return ^fold(acc) }

// mangled replaces the checksum 0, which means "no checksum" in some fields (RFC 768), by all ones,
// which is the same number. The kernel's skb_checksum_help does it for every protocol.
func mangled(sum uint16) uint16 {
	if sum == 0 {
		return 0xffff
	}
	return sum
}

// putSum writes a sum or a checksum in the byte order in which words are read.
func putSum(b []byte, sum uint16) { binary.LittleEndian.PutUint16(b, sum) }

func getSum(b []byte) uint64 { return uint64(binary.LittleEndian.Uint16(b)) }

// sctp reports whether NeedsCsum asks for SCTP's CRC32c. The vnet header cannot say so: the kernel
// uses a bit of its own (csum_not_inet), and a veth leaves the CRC to its peer (NETIF_F_SCTP_CRC).
// But no other protocol has its checksum at that offset.
func (h Header) sctp() bool { return h.Flags&NeedsCsum != 0 && h.CsumOffset == sctpCsum }

// sctpChecksum returns the CRC32c of an SCTP packet (RFC 9260, 6.8) in two pieces. The checksum
// field is in the first piece and is zero.
func sctpChecksum(head, rest []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	return crc32.Update(crc32.Checksum(head, table), table, rest)
}
