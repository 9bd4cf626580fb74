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
// in batches and one at a time, without the guests' drivers. All is in the cache of one processor.
func BenchmarkVhostUser(b *testing.B) {
	for _, size := range []int{60, 590, 1514, 65550} {
		b.Run(fmt.Sprint(size), func(b *testing.B) { guestToGuest(b, size, batchSize) })
	}
	b.Run("one", func(b *testing.B) { guestToGuest(b, 60, 1) })
}

func guestToGuest(b *testing.B, size, batch int) {
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
	const ring = 256
	room := (size+frontend.Header+192)&^63 + 64 // an odd number of cache lines, as of a real driver
	from := connect(b, port, path, frontend.Config{Ring: ring, Room: room}).Pair[0]
	to := l.guest("to", vport.Config{MTU: 65535}, frontend.Config{Ring: 1024})
	to.sends(etherFrame(all, mac(2), nil, 60))
	w.queues[0] = q
	r := newReceiver(l.sw, port, 0)
	r.inPlace()
	var each []time.Duration // of a frame, by batches
	forward := func() (n int) {
		start := time.Now()
		n, err := q.receive(r.frames[:])
		if err != nil {
			b.Fatal(err)
		}
		r.handle(n)
		each = append(each, time.Since(start)/time.Duration(n))
		to.Pair[0].Ignore()
		return n
	}
	data := append(make([]byte, frontend.Header), etherFrame(mac(2), mac(1), nil, size-etherLen)...)
	for range ring {
		if from.Send(data) == 0 {
			b.Fatal("the ring is full")
		}
		forward()
	}
	each = make([]time.Duration, 0, b.N)
	for done := 0; done < b.N; {
		from.Again(batch)
		for left := batch; left > 0; {
			left -= forward()
		}
		done += batch
	}
	if drops := port.Stats().Drops; len(drops) > 0 {
		b.Error("dropped: ", drops)
	}
	slices.Sort(each)
	b.ReportMetric(float64(each[len(each)/2].Nanoseconds()), "ns/frame") // the median: others may run meanwhile
	b.ReportMetric(float64(each[len(each)/10].Nanoseconds()), "ns/frame-p10")
	b.ReportMetric(0, "ns/op")
}
