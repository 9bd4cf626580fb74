package vswitch

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch/offload"
	"vmnet/bridge/vswitch/vport"
)

// BenchmarkForward sends batches of frames from one station to another, through the switch's
// goroutine and two socketpairs. It measures the time per frame, which includes the test's two
// system calls.
func BenchmarkForward(b *testing.B) {
	for _, size := range []int{64, 1514} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			l := newLAN(b, plain("a", "b"))
			l.send("b", etherFrame(all, mac(2), nil, 46))
			from, to := l.stations["a"], l.stations["b"]
			frame, buf := etherFrame(mac(2), mac(1), nil, size-etherLen), make([]byte, maxFrame)
			end := time.Now().Add(time.Minute)
			b.SetBytes(int64(size) * batchSize)
			b.ReportAllocs()
			for b.Loop() {
				for range batchSize {
					if _, err := unix.Write(from.fd, frame); err != nil {
						b.Fatal(err)
					}
				}
				for got := 0; got < batchSize; {
					if _, err := unix.Read(to.fd, buf); err == nil {
						got++
					} else if time.Now().After(end) {
						b.Fatalf("frames are missing: %+v", l.port("b").Stats())
					}
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/batchSize, "ns/frame")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkInput measures the switch's work for a batch without system calls: from a tap to ports
// of each kind.
func BenchmarkInput(b *testing.B) {
	for name, c := range inputCases() {
		b.Run(name, func(b *testing.B) {
			r := c.receiver(b)
			b.ReportAllocs()
			for b.Loop() {
				c.run(r)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/batchSize, "ns/frame")
			b.ReportMetric(0, "ns/op")
		})
	}
}

func TestInputDoesNotAllocate(t *testing.T) {
	for name, c := range inputCases() {
		r := c.receiver(t)
		if n := testing.AllocsPerRun(100, func() { c.run(r) }); n != 0 {
			t.Errorf("%s: %v allocations for a batch", name, n)
		}
	}
}

// An inputCase is a batch of one frame repeated, and the port "to" to which it goes.
type inputCase struct {
	data   []byte
	to     vport.Config
	limits offload.Limits
}

func inputCases() map[string]inputCase {
	small := append(make([]byte, vnetLen), etherFrame(mac(2), mac(1), nil, 50)...)
	inVLAN := append(make([]byte, vnetLen), etherFrame(mac(2), mac(1), tagged("8100:10"), 50)...)
	flooded := append(make([]byte, vnetLen), etherFrame(all, mac(1), nil, 50)...)
	return map[string]inputCase{
		"small":              {small, vport.Config{}, everything},
		"flooded":            {flooded, vport.Config{}, everything},
		"untagged":           {inVLAN, access(10), everything},
		"super":              {superFrame(60000, 1448), vport.Config{}, everything},
		"finished":           {superFrame(60000, 1448), vport.Config{}, offload.Limits{}},
		"finished, untagged": {superFrame(60000, 1448, "8100:10"), access(10), offload.Limits{}},
	}
}

// A sink is a queue that only counts frames.
type sink struct{ memory }

func memoryWire(limits offload.Limits) *Wire {
	return &Wire{kind: "memory", limits: limits, queues: []queue{&sink{memory{closed: make(chan struct{})}}}}
}

func (q *sink) send(s *sender) {
	for i := range s.n {
		s.note(i, 0)
	}
}

func (c inputCase) receiver(tb testing.TB) *receiver {
	sw := New(Config{})
	tb.Cleanup(func() { _ = sw.Close() })
	add := func(name string, cfg vport.Config, limits offload.Limits) *Port {
		p, err := sw.AddPort(name, memoryWire(limits), cfg)
		if err != nil {
			tb.Fatal(err)
		}
		return p
	}
	from := vport.Config{}
	if c.to.HasVLANs() {
		from = trunkAll(1)
	}
	add("from", from, everything)
	to := add("to", c.to, c.limits)
	for _, vid := range []uint16{defaultVLAN, 10} {
		if err := sw.fdb.AddStatic(KeyOf(mac(2), vid), to.index); err != nil {
			tb.Fatal(err)
		}
	}
	r := receiverOf(sw, "from")
	c.run(r)
	if sent := to.Stats().Total().TxFrames; sent < batchSize {
		tb.Fatalf("%d frames were sent", sent)
	}
	return r
}

func (c inputCase) run(r *receiver) {
	for i := range r.frames {
		r.frames[i] = frame{data: c.data}
	}
	r.port.path.Load().input(r, r.frames[:])
}
