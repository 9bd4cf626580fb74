package vswitch

import (
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/endpoint"
	"vmnet/internal/vhostuser/frontend"
)

// An idle is a queue of a guest from which only the benchmark receives.
type idle struct{ *vhostQueue }

func (q idle) receive([]frame) (int, error) {
	<-q.frontends.port.ended
	return 0, errClosed
}

// BenchmarkVhostUser measures what the switch itself does for a frame from a guest to another one,
// in batches and one at a time, without the guests' drivers. All is in the cache of one processor.
func BenchmarkVhostUser(b *testing.B) {
	for _, size := range []int{60, 590, 1514, 65550} {
		b.Run(fmt.Sprint(size), func(b *testing.B) { guestToGuest(b, size, batchSize) })
	}
	b.Run("one", func(b *testing.B) { guestToGuest(b, 60, 1) })
}

func guestToGuest(b *testing.B, size, batch int) {
	f := newFlow(b, newLAN(b, nil), 0, size)
	f.run(b.N, batch)
	b.ReportMetric(f.quantile(0.5), "ns/frame") // the median: others may run meanwhile
	b.ReportMetric(f.quantile(0.1), "ns/frame-p10")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkTwoCores measures a frame of one of two flows that two goroutines forward at once,
// between four guests of one switch, and of the same flow alone. If they wrote to a cache line of
// both for each frame, that would take a multiple of the time: see BenchmarkSharedLine.
func BenchmarkTwoCores(b *testing.B) {
	l := newLAN(b, nil)
	flows := []*flow{newFlow(b, l, 0, 60), newFlow(b, l, 1, 60)}
	for _, f := range flows {
		f.run(b.N, batchSize)
	}
	alone := flows[0].quantile(0.1)
	var both sync.WaitGroup
	for _, f := range flows {
		both.Go(func() { f.run(b.N, batchSize) })
	}
	both.Wait()
	b.ReportMetric(alone, "ns/frame-alone")
	b.ReportMetric(flows[0].quantile(0.1), "ns/frame-both")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkSharedLine measures what two processors pay that write to one cache line.
func BenchmarkSharedLine(b *testing.B) {
	var line atomic.Uint64
	var both sync.WaitGroup
	for range 2 {
		both.Go(func() {
			for range b.N {
				line.Add(1)
			}
		})
	}
	both.Wait()
}

// A flow is frames from one guest to another one, which the caller forwards.
type flow struct {
	b    *testing.B
	port *Port
	q    *vhostQueue
	r    *receiver
	from *frontend.Pair
	to   *frontend.Pair
	each []time.Duration // of a frame, by batches
}

// newFlow makes two guests and has the switch learn their addresses.
func newFlow(b *testing.B, l *lan, n byte, size int) *flow {
	path := filepath.Join(b.TempDir(), "from")
	file, err := endpoint.ListenStream(path)
	if err != nil {
		b.Fatal(err)
	}
	w, err := OpenVhostUser(file, "", 1)
	_ = file.Close()
	if err != nil {
		b.Fatal(err)
	}
	q := w.queues[0].(*vhostQueue)
	q.gathered = true
	w.queues[0] = idle{q}
	port, err := l.sw.AddPort(fmt.Sprint("from", n), w, vport.Config{MTU: 65535})
	if err != nil {
		b.Fatal(err)
	}
	const ring = 256
	room := (size+frontend.Header+192)&^63 + 64 // an odd number of cache lines, as of a real driver
	from := connect(b, port, path, frontend.Config{Ring: ring, Room: room, Polls: true})
	to := l.guest(fmt.Sprint("to", n), vport.Config{MTU: 65535}, frontend.Config{Ring: 1024, Polls: true})
	a, c := mac(2*n+1), mac(2*n+2)
	to.sends(etherFrame(all, c, nil, 60))
	w.queues[0] = q
	f := &flow{b: b, port: port, q: q, r: newReceiver(l.sw, port, 0), from: from.Pair[0], to: to.Pair[0]}
	f.r.inPlace()
	data := append(make([]byte, frontend.Header), etherFrame(c, a, nil, size-etherLen)...)
	for range ring {
		if f.from.Send(data) == 0 {
			b.Fatal("the ring is full")
		}
		f.forward()
	}
	return f
}

// forward forwards a batch and returns its length.
func (f *flow) forward() (n int) {
	start := time.Now()
	n, ok := f.q.look(f.r.frames[:])
	if !ok || n == 0 {
		f.b.Error("the ring has no frames")
		runtime.Goexit()
	}
	f.r.handle(n)
	f.each = append(f.each, time.Since(start)/time.Duration(n))
	f.to.Ignore()
	return n
}

// run forwards frames, so many at a time.
func (f *flow) run(frames, batch int) {
	f.each = make([]time.Duration, 0, frames)
	for done := 0; done < frames; done += batch {
		f.from.Again(batch)
		for left := batch; left > 0; {
			left -= f.forward()
		}
	}
	if drops := f.port.Stats().Drops; len(drops) > 0 {
		f.b.Error("dropped: ", drops)
	}
	slices.Sort(f.each)
}

// quantile returns the nanoseconds of which that part of all frames has taken less.
func (f *flow) quantile(q float64) float64 {
	return float64(f.each[int(q*float64(len(f.each)-1))].Nanoseconds())
}
