package vswitch

import (
	"fmt"
	"slices"
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
// in batches, without the guests' drivers. All is in the cache of one processor.
func BenchmarkVhostUser(b *testing.B) {
	for _, size := range []int{60, 590, 1514, 65550} {
		b.Run(fmt.Sprint(size), func(b *testing.B) { guestToGuest(b, size) })
	}
}

func guestToGuest(b *testing.B, size int) {
	l := newLAN(b, nil)
	path := b.TempDir() + "/from"
	f, err := endpoint.ListenStream(path)
	if err != nil {
		b.Fatal(err)
	}
	w, err := OpenVhostUser(f, "", 1)
	_ = f.Close()
	if err != nil {
		b.Fatal(err)
	}
	q := w.queues[0].(*vhostQueue)
	q.gathered = true
	w.queues[0] = idle{q}
	port, err := l.sw.AddPort("from", w, vport.Config{MTU: 65535})
	if err != nil {
		b.Fatal(err)
	}
	from := connect(b, port, path, frontend.Config{Ring: 256})
	to := l.guest("to", vport.Config{MTU: 65535}, frontend.Config{Ring: 1024})
	to.sends(etherFrame(all, mac(2), nil, 60))
	w.queues[0] = q
	r := newReceiver(l.sw, port, 0)
	r.inPlace()
	data := append(make([]byte, frontend.Header), etherFrame(mac(2), mac(1), nil, size-etherLen)...)
	var each []time.Duration // of a frame, by batches
	for done := 0; done < b.N; {
		for range min(batchSize, b.N-done) {
			if from.Pair[0].Send(data) == 0 {
				b.Fatal("the ring is full")
			}
		}
		for from.Pair[0].InFlight() > 0 {
			start := time.Now()
			n, err := q.receive(r.frames[:])
			if err != nil {
				b.Fatal(err)
			}
			r.handle(n)
			each = append(each, time.Since(start)/time.Duration(n))
			done += n
			for n > 0 {
				if _, ok := to.Pair[0].Receive(); !ok {
					b.Fatal("a frame was lost")
				}
				n--
			}
		}
	}
	slices.Sort(each)
	b.ReportMetric(float64(each[len(each)/2].Nanoseconds()), "ns/frame") // the median: others may run meanwhile
	b.ReportMetric(0, "ns/op")
}
