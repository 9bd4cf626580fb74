package offload

import (
	"encoding/binary"
	"fmt"
	"testing"
)

func TestAddIsThePlainSum(t *testing.T) {
	r := rng(1)
	ones := make([]byte, 1000)
	for i := range ones {
		ones[i] = 0xff
	}
	for n := range 700 {
		for at := range 9 {
			for _, b := range [][]byte{random(r, n+at)[at:], ones[at : at+n], make([]byte, n)} {
				var got [2]byte
				putSum(got[:], fold(addWord(0xfffe, add(b, 0))))
				if want := plainSum(b, 0xfffe); binary.BigEndian.Uint16(got[:]) != want {
					t.Fatalf("%d bytes: %x, want %x", n, got, want)
				}
			}
		}
	}
}

// The largest sums: no carry may be lost, whatever the initial value.
func TestAddCarries(t *testing.T) {
	b := make([]byte, 4096)
	for i := range b {
		b[i] = 0xff
	}
	for n := 0; n <= len(b); n += 2 {
		for _, acc := range []uint64{0, 1, 1<<64 - 1, 1<<64 - 2, 0xffff} {
			want := fold(acc)
			if n > 0 && want == 0 {
				want = 0xffff // both are zero
			}
			if got := fold(add(b[:n], acc)); got != want {
				t.Fatalf("%d bytes of ones after %#x: %#x, want %#x", n, acc, got, want)
			}
		}
	}
}

// A partial checksum of SCTP is a CRC32c. Here it is computed bit by bit, as RFC 9260, appendix A
// defines it.
func TestSCTP(t *testing.T) {
	s := shape{payload: 301}
	h, frame := s.build()
	frame[14+9] = 132
	h.CsumOffset = sctpCsum
	l4 := int(h.CsumStart)
	copy(frame[l4+8:], []byte{1, 2, 3, 4}) // not zero before
	var f Finisher
	out, heads, why := finish(&f, h, frame, Limits{CSum: true, VnetHdr: 12})
	if why != OK || len(out) != 1 || heads[0] != (Header{}) {
		t.Fatalf("%v, %d frames, %+v", why, len(out), heads)
	}
	got := binary.LittleEndian.Uint32(out[0][l4+8:])
	clear(out[0][l4+8 : l4+12])
	if want := plainCRC(out[0][l4:]); got != want {
		t.Errorf("CRC %#x, want %#x", got, want)
	}
	if zeros := plainCRC(make([]byte, 32)); zeros != 0x8a9136aa { // RFC 3720, B.4
		t.Errorf("the test's own CRC of 32 zeros is %#x", zeros)
	}
}

func plainCRC(b []byte) uint32 {
	crc := ^uint32(0)
	for _, c := range b {
		crc ^= uint32(c)
		for range 8 {
			crc = crc>>1 ^ 0x82f63b78*(crc&1)
		}
	}
	return ^crc
}

// plainWords is the naive loop.
func plainWords(b []byte, acc uint64) uint64 {
	for ; len(b) >= 2; b = b[2:] {
		acc += uint64(binary.BigEndian.Uint16(b))
	}
	return acc
}

func BenchmarkChecksum(b *testing.B) {
	for _, n := range []int{20, 64, 256, 1448, 65536} {
		data := random(rng(1), n)
		for _, way := range []struct {
			name string
			add  func([]byte, uint64) uint64
		}{{"add", add}, {"plain", plainWords}} {
			b.Run(fmt.Sprintf("%s/%d", way.name, n), func(b *testing.B) {
				b.SetBytes(int64(n))
				var sum uint64
				for b.Loop() {
					sum = way.add(data, 0)
				}
				_ = sum
			})
		}
	}
}
