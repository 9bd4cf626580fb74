package vswitch

import (
	"math"
	"testing"
	"time"

	"vmnet/bridge/portsec"
	"vmnet/bridge/portsec/portsectest"
	"vmnet/bridge/vswitch/vport"
)

const (
	securityBatches = 500 // in a turn
	securityTurns   = 200 // whose shortest one counts
)

// securityFrames are the cases of portsectest whose frames a guest with port security sends.
var securityFrames = []string{"tcp4", "tcp6", "arp", "nd-ns"}

// securedCase is a batch of the frame of that name for the port "to".
func securedCase(tb testing.TB, name string) inputCase {
	tb.Helper()
	for _, c := range portsectest.Table() {
		if c.Name != name || c.Want != portsec.Pass || !c.Config.Equal(portsectest.Config()) {
			continue
		}
		data := append(make([]byte, vnetLen), c.Frame...)
		copy(data[vnetLen:], mac(2))
		data = append(data, make([]byte, max(0, vnetLen+minFrameLen-len(data)))...)
		return inputCase{data, vport.Config{}, everything}
	}
	tb.Fatalf("portsectest has no frame %s", name)
	return inputCase{}
}

// minFrameLen is the length of the shortest frame, without its checksum.
const minFrameLen = 60

// secure gives the port that sends port security.
func secure(tb testing.TB, r *receiver, cfg portsec.Config) {
	tb.Helper()
	if err := r.sw.SetPort("from", vport.Config{Security: cfg}); err != nil {
		tb.Fatal(err)
	}
}

// BenchmarkPortSecurity measures what port security adds to the switch's own work for a frame,
// without system calls, in turns. The shortest of many turns is one in which nothing else has run
// on the processor, however busy the machine is.
func BenchmarkPortSecurity(b *testing.B) {
	for _, name := range securityFrames {
		b.Run(name, func(b *testing.B) {
			c := securedCase(b, name)
			r := c.receiver(b)
			shortest := func(cfg portsec.Config, so time.Duration) time.Duration {
				secure(b, r, cfg)
				begin := time.Now()
				for range securityBatches {
					c.run(r)
				}
				return min(so, time.Since(begin))
			}
			with, without := time.Duration(math.MaxInt64), time.Duration(math.MaxInt64)
			for range securityTurns * b.N {
				with, without = shortest(portsectest.Config(), with), shortest(portsec.Config{}, without)
			}
			const frames = securityBatches * batchSize
			b.ReportMetric(float64(with.Nanoseconds())/frames, "ns/frame")
			b.ReportMetric(float64((with-without).Nanoseconds())/frames, "added-ns/frame")
			b.ReportMetric(float64(with)/float64(without), "x")
			b.ReportMetric(0, "ns/op")
		})
	}
}

func TestPortSecurityDoesNotAllocate(t *testing.T) {
	for _, name := range securityFrames {
		c := securedCase(t, name)
		r := c.receiver(t)
		secure(t, r, portsectest.Config())
		before := r.sw.table.Load().find("to").Stats().Total().TxFrames
		if n := testing.AllocsPerRun(100, func() { c.run(r) }); n != 0 {
			t.Errorf("%s: %v allocations for a batch", name, n)
		}
		if sent := r.sw.table.Load().find("to").Stats().Total().TxFrames - before; sent < 100*batchSize {
			t.Errorf("%s: %d frames have passed", name, sent)
		}
	}
}
