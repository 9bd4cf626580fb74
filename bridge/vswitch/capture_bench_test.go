package vswitch

import (
	"testing"

	"vmnet/bridge/vswitch/capture"
	"vmnet/bridge/vswitch/vport"
)

// captureCases are the sets of ports that are captured while frames go from "from" to "to".
func captureCases() map[string][]string {
	return map[string][]string{"nobody": nil, "another port": {"idle"}, "both ports": {"from", "to"}}
}

// captured runs do while a reader reads as fast as it can.
func captured(tb testing.TB, sw *Switch, ports []string, do func()) {
	if len(ports) == 0 {
		do()
		return
	}
	c, done := startCapture(tb, sw, capture.Config{Ports: ports, Snaplen: 96}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			if _, err := c.Next(); err != nil {
				return
			}
		}
	}()
	do()
	_ = c.Stop()
	<-done
}

// BenchmarkCapture is BenchmarkInput with captures.
func BenchmarkCapture(b *testing.B) {
	for name, ports := range captureCases() {
		b.Run(name, func(b *testing.B) {
			c := inputCases()["small"]
			r := c.receiver(b)
			if _, err := r.sw.AddPort("idle", memoryWire(everything), vport.Config{}); err != nil {
				b.Fatal(err)
			}
			captured(b, r.sw, ports, func() {
				b.ReportAllocs()
				for b.Loop() {
					c.run(r)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/batchSize, "ns/frame")
				b.ReportMetric(0, "ns/op")
			})
		})
	}
}

// TestCaptureDoesNotAllocate checks batches with and without a capture, and with a reader that does
// not read.
func TestCaptureDoesNotAllocate(t *testing.T) {
	for name, c := range inputCases() {
		r := c.receiver(t)
		startCapture(t, r.sw, capture.Config{Ports: []string{"from", "to"}})
		startCapture(t, r.sw, capture.Config{Ports: []string{"to"}, Drops: true})
		c.run(r)
		if n := testing.AllocsPerRun(20, func() { c.run(r) }); n != 0 {
			t.Errorf("%s: %v allocations for a batch", name, n)
		}
	}
}
