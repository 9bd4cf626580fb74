package offload

import (
	"slices"
	"testing"
)

// BenchmarkFinish segments 64 KiB for an MTU of 1500.
func BenchmarkFinish(b *testing.B) {
	for _, bb := range []struct {
		name string
		s    shape
		l    Limits
	}{
		{"TCPv4", shape{payload: 65000, gso: 1448, tcpOptions: 12}, Limits{}},
		{"TCPv6", shape{v6: true, payload: 65000, gso: 1428, tcpOptions: 12}, Limits{}},
		{"UDP", shape{udp: true, payload: 65000, gso: 1472}, Limits{}},
		{"TCPv4-partial", shape{payload: 65000, gso: 1448, tcpOptions: 12}, Limits{CSum: true, VnetHdr: HeaderLen}},
		{"checksum-1500", shape{payload: 1448, tcpOptions: 12}, Limits{}},
	} {
		b.Run(bb.name, func(b *testing.B) {
			h, frame := bb.s.build()
			f := new(Finisher)
			b.SetBytes(int64(len(frame)))
			b.ReportAllocs()
			for b.Loop() {
				if why := f.Start(h, frame, bb.l); why != OK {
					b.Fatal(why)
				}
				for len(f.Next()) > 0 {
				}
			}
		})
	}
}

// BenchmarkFits measures Fits and Check for a super-frame that passes through.
func BenchmarkPassThrough(b *testing.B) {
	h, frame := shape{payload: 65000, gso: 1448, tcpOptions: 12}.build()
	l := Limits{CSum: true, TSO4: true, MTU: 1500, VnetHdr: HeaderLen}
	for b.Loop() {
		if Check(h, frame) != OK || !Fits(h, frame, l) {
			b.Fatal("does not fit")
		}
	}
}

func TestNoAllocation(t *testing.T) {
	h, frame := shape{payload: 65000, gso: 1000}.build()
	bad := slices.Clone(frame)
	bad[14] = 0x44
	f := new(Finisher)
	n := testing.AllocsPerRun(100, func() {
		_, _ = Parse(frame)
		_ = Fits(h, frame, Limits{})
		_ = f.Start(h, bad, Limits{}).String()
		_ = f.Start(h, frame, Limits{})
		for len(f.Next()) > 0 {
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}
