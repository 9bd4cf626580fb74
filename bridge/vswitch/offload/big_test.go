package offload

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
)

// big is a super-frame of BIG TCP, whose IP length is 0. With jumbo it has the hop-by-hop header
// that Linux before 7.0 puts in front of TCP.
func big(s shape, jumbo bool) (Header, []byte) {
	h, frame := s.build()
	_, at := etherType(frame)
	if !s.v6 {
		ip := frame[at : at+ipv4Len+s.ipOptions]
		clear(ip[2:4])
		clear(ip[10:12])
		binary.BigEndian.PutUint16(ip[10:], ^plainSum(ip, 0))
		return h, frame
	}
	clear(frame[at+4 : at+6])
	if jumbo {
		option := binary.BigEndian.AppendUint32([]byte{frame[at+6], 0, 0xc2, 4}, uint32(len(frame)-at-ipv6Len+jumboLen))
		frame[at+6] = protoHopByHop
		frame = slices.Insert(frame, at+ipv6Len, option...)
		h.CsumStart += jumboLen
	}
	return h, frame
}

func TestBigTCP(t *testing.T) {
	all := Limits{CSum: true, TSO4: true, TSO6: true, TSOECN: true, USO: true, VnetHdr: HeaderLen, MTU: 1500}
	var f Finisher
	for i, s := range []shape{
		{payload: 180000, gso: 1448, tcpOptions: 12, flags: 0x99, ecn: true},
		{payload: 65536, gso: 1448},
		{payload: 500000, gso: 1000, tags: []uint16{typeVLAN}},
		{v6: true, payload: 180000, gso: 1428, tcpOptions: 12, flags: 0x19},
		{v6: true, payload: 180000, gso: 1428, seed: 2, flags: 0x98, ecn: true},
	} {
		for _, jumbo := range []bool{false, true} {
			if jumbo && !s.v6 {
				continue
			}
			t.Run(fmt.Sprint(i, jumbo), func(t *testing.T) {
				h, frame := big(s, jumbo)
				if why := Check(h, frame); why != OK {
					t.Fatal(why)
				}
				if Fits(h, frame, all) {
					t.Error("it fits a target of 64 KiB")
				}
				segments, _, why := finish(&f, h, frame, Limits{MTU: 1500})
				if why != OK {
					t.Fatal(why)
				}
				pieces, heads, why := finish(&f, h, frame, all)
				if why != OK {
					t.Fatal(why)
				}
				if most := s.payload/60000 + 2; len(pieces) > most {
					t.Errorf("%d pieces", len(pieces))
				}
				var again [][]byte
				for i, p := range pieces {
					if i < len(pieces)-1 && !Fits(heads[i], p, all) {
						t.Errorf("piece %d of %d bytes: %+v", i, len(p), heads[i])
					}
					if got := heads[i].GSOType&GSOECN != 0; got != (s.ecn && i == 0) {
						t.Errorf("piece %d has ECN: %v", i, got)
					}
					cut, _, why := finish(&f, heads[i], p, Limits{MTU: 1500})
					if why != OK {
						t.Fatal(why)
					}
					again = append(again, cut...)
				}
				if !slices.EqualFunc(segments, again, slices.Equal) {
					t.Error("segmented in two steps, the segments differ")
				}
				l4 := int(h.CsumStart)
				seq, id := binary.BigEndian.Uint32(frame[l4+4:]), binary.BigEndian.Uint16(frame[l4-16-s.ipOptions:])
				var payload []byte
				for i, seg := range segments {
					got, err := look(seg, false)
					if err != nil || got.seq != seq+uint32(len(payload)) || !s.v6 && got.id != id+uint16(i) {
						t.Fatalf("segment %d: %+v, seq of the first %d, id %d, %v", i, got, seq, id, err)
					}
					payload = append(payload, seg[got.payload:]...)
				}
				if !slices.Equal(payload, frame[len(frame)-s.payload:]) {
					t.Error("the payload differs")
				}
			})
		}
	}
}

// TestUDPWithoutPartialChecksum has super-frames that a NIC's GRO makes of datagrams (rx-gro-list):
// the checksums are complete in the first datagram, or absent.
func TestUDPWithoutPartialChecksum(t *testing.T) {
	var f Finisher
	for _, s := range []shape{
		{udp: true, full: true, payload: 9000, gso: 1000},
		{v6: true, udp: true, full: true, payload: 9000, gso: 1000},
	} {
		for _, none := range []bool{false, true} {
			h, frame := s.build()
			at := len(frame) - s.payload - udpLen + udpCsum
			if none {
				clear(frame[at : at+2])
			}
			for _, l := range []Limits{{}, {CSum: true, USO: true, VnetHdr: HeaderLen}} {
				if Fits(h, frame, l) {
					t.Error("it fits")
				}
				out, heads, why := finish(&f, h, frame, l)
				// With a partial checksum, it does fit.
				if whole := l.USO && !none; whole && len(out) == 1 {
					out, heads, why = finish(&f, heads[0], out[0], Limits{CSum: true, VnetHdr: HeaderLen})
				}
				if why != OK || len(out) != 9 {
					t.Fatalf("%v, %d datagrams", why, len(out))
				}
				if err := verify(frame, s.gso, out, l.CSum && heads[0].Flags&NeedsCsum != 0); err != nil {
					t.Errorf("%+v, no checksum %v: %v", s, none, err)
				}
				for _, o := range out {
					if got := binary.BigEndian.Uint16(o[at:]) == 0; got != none {
						t.Errorf("no checksum: %v, want %v", got, none)
					}
				}
			}
		}
	}
}
