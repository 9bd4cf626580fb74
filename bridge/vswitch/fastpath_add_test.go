package vswitch

import (
	"encoding/binary"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/nstest"
)

// fastPortOf returns a port that may have a fast path, as far as its settings go.
func fastPortOf(sw *Switch, index int) *Port {
	p := newPort(sw, "p", index, &Wire{kind: "packet"}, vport.Config{})
	p.fast = &fastPort{joined: true, sources: map[Key]*fastEntry{}, targets: map[Key]*fastEntry{}}
	return p
}

// TestFastPathsDoNotWait has a receiver ask for a fast path, and the FDB lose an address, while the
// lock is taken.
func TestFastPathsDoNotWait(t *testing.T) {
	sw := New(Config{})
	defer sw.Close()
	p, to := fastPortOf(sw, 0), fastPortOf(sw, 1)
	src, dst, other := keyBehind(0, 1), keyBehind(1, 2), keyBehind(0, 3)
	sw.fdb.Learn(other, 0)
	sw.fast.mu.Lock()
	p.fast.targets[dst] = &fastEntry{to: to}
	sw.fast.hold(p, dst)
	done := make(chan struct{})
	go func() {
		sw.fast.add(p, to, src, dst)
		sw.fdb.Remove(other)
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(nstest.Patience(10 * time.Second)):
		t.Error("it waits for the lock")
	}
	sw.fast.mu.Unlock()
	<-done
}

// TestFastPathIsAskedForOnce: frames that the kernel leaves to the switch do not ask again at once.
func TestFastPathIsAskedForOnce(t *testing.T) {
	sw := New(Config{})
	defer sw.Close()
	p, to := fastPortOf(sw, 0), fastPortOf(sw, 1)
	p.wire.queues = []queue{&packetQueue{}}
	r := &receiver{sw: sw, port: p, queue: p.wire.queues[0]}
	f := &frame{src: 2<<40 | 1, dst: 2<<40 | 2, vid: defaultVLAN}
	for _, c := range []struct {
		at   time.Duration
		want int
	}{{time.Millisecond, 1}, {2 * time.Millisecond, 0}, {20 * time.Millisecond, 1}} {
		r.clock = clock{sw, int64(c.at)}
		r.shorten(f, to)
		if r.shortcuts.n != c.want {
			t.Errorf("after %v: it asks for %d", c.at, r.shortcuts.n)
		}
		r.takeShortcuts()
	}
}

// TestFastPathWaitsForTheRing: frames in the port's ring would be overtaken, also when a frame of
// its lane asks.
func TestFastPathWaitsForTheRing(t *testing.T) {
	sw := New(Config{})
	defer sw.Close()
	ring := &arrivals{ring: make([]byte, arrivalSlots*arrivalSlot)}
	binary.NativeEndian.PutUint32(ring.ring[slotStatus:], unix.TP_STATUS_USER)
	p, to := fastPortOf(sw, 0), fastPortOf(sw, 1)
	packet := &packetQueue{ring: ring}
	p.wire.queues = []queue{packet, &laneQueue{packet: packet}}
	for _, q := range p.wire.queues {
		r := &receiver{sw: sw, port: p, queue: q, clock: clock{sw: sw}}
		r.shorten(&frame{src: 2<<40 | 1, dst: 2<<40 | 2, vid: defaultVLAN}, to)
		if r.takeShortcuts(); r.shortcuts.n != 1 {
			t.Errorf("%T: it asks while frames wait", q)
		}
	}
}
