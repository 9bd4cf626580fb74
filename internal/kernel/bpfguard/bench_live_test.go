package bpfguard

import (
	"bytes"
	"encoding/binary"
	"math"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"vmnet/bridge/portsec/portsectest"
	"vmnet/internal/nstest"
)

// benchFrames are the cases of portsectest whose frames BenchmarkGuard runs the program for.
var benchFrames = []string{
	"mac only", "ipv4", "tcp4", "arp", "ipv6", "tcp6", "nd-ns", "network v6",
	"trunk, one tag", "trunk, double", "mac-spoof", "ip-spoof", "arp-spoof-ip",
}

const (
	guardFrames = 20_000 // in a run, between which other processes run
	guardRuns   = 100    // whose shortest one counts
)

// BenchmarkGuard reports what the program adds for a frame to what the kernel takes to run one that
// does nothing: BPF_PROG_TEST_RUN repeats both, in turns. The shortest of many runs is one in which
// nothing else has run on the processor, however busy the machine is.
func BenchmarkGuard(b *testing.B) {
	nstest.RequireRoot(b)
	var super portsectest.Case
	for _, c := range portsectest.Table() {
		if c.Name == "tcp4" && c.Config.Equal(portsectest.Config()) {
			super = c
		}
		for _, name := range benchFrames {
			if c.Name == name {
				b.Run(name, func(b *testing.B) { benchGuard(b, c, nil) })
			}
		}
	}
	// BPF_PROG_TEST_RUN takes no more than a page.
	super.Frame = append(bytes.Clone(super.Frame), make([]byte, 2*1448)...)
	binary.BigEndian.PutUint16(super.Frame[16:], uint16(len(super.Frame)-14))
	b.Run("tcp4, a super-frame", func(b *testing.B) { benchGuard(b, super, superContext(1448)) })
}

// superContext is a struct __sk_buff (include/uapi/linux/bpf.h) of a frame that is to be cut into
// segments.
func superContext(segment uint32) []byte {
	const size, gsoSize = 192, 176 // the latter an offset
	ctx := make([]byte, size)
	binary.NativeEndian.PutUint32(ctx[gsoSize:], segment)
	return ctx
}

func benchGuard(b *testing.B, c portsectest.Case, ctx []byte) {
	guard := newEngine(b, c.Config).program
	nothing, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm32(asm.R0, -1), asm.Return()},
	})
	if err != nil {
		b.Fatal(err)
	}
	defer nothing.Close()
	shortest := func(p *ebpf.Program, so time.Duration) time.Duration {
		opts := &ebpf.RunOptions{Data: c.Frame, Repeat: guardFrames}
		if ctx != nil {
			opts.Context = ctx
		}
		begin := time.Now()
		if _, err := p.Run(opts); err != nil {
			b.Fatal(err)
		}
		return min(so, time.Since(begin))
	}
	with, without := time.Duration(math.MaxInt64), time.Duration(math.MaxInt64)
	for range guardRuns * b.N {
		with, without = shortest(guard, with), shortest(nothing, without)
	}
	b.ReportMetric(float64(with.Nanoseconds())/guardFrames, "ns/frame")
	b.ReportMetric(float64((with-without).Nanoseconds())/guardFrames, "added-ns/frame")
	b.ReportMetric(float64(with)/float64(without), "x")
	b.ReportMetric(0, "ns/op")
}
