package vswitch

import "time"

// shortcuts are the fast paths that a receiver wants for the frames of its batch.
type shortcuts struct {
	list  [8]shortcut
	n     int
	since int64 // when the first one was wanted, in nanoseconds since the switch's start
	asked [1 << askedBits]asked
}

// An asked is a pair of addresses for which the receiver has asked lately. Its place is their hash.
type asked struct {
	src, dst Key
	at       int64 // in nanoseconds since the switch's start
}

const askedBits = 6

type shortcut struct {
	to       *Port
	src, dst Key
}

// fastWait is how long a receiver that always finds frames puts a fast path off.
const fastWait = 10 * time.Millisecond

// fastAgain is after how long a receiver asks again for a fast path. Frames that the kernel leaves
// to the switch, such as tagged ones, would ask for it with each batch.
const fastAgain = 10 * time.Millisecond

// shorten notes that frames like this one may take the fast path.
func (r *receiver) shorten(f *frame, to *Port) {
	s := shortcut{to, keyOf(f.src, f.vid), keyOf(f.dst, f.vid)}
	w := &r.shortcuts
	for i := range w.n {
		if w.list[i] == s {
			return
		}
	}
	if a := w.askedFor(&s); a.src == s.src && a.dst == s.dst && r.clock.now()-a.at < int64(fastAgain) {
		return
	}
	if w.n == 0 {
		w.since = r.clock.now()
	}
	if w.n < len(w.list) {
		w.list[w.n] = s
		w.n++
	}
}

func (w *shortcuts) askedFor(s *shortcut) *asked { return &w.asked[(s.src ^ s.dst<<1).hash(askedBits)] }

// takeShortcuts adds the fast paths that are wanted. Frames that have arrived before would be
// overtaken by those that the kernel forwards, so it waits for a moment when there are none. They
// are in the ring, also if this is the receiver of the port's lane.
func (r *receiver) takeShortcuts() {
	w := &r.shortcuts
	if q, ok := r.port.wire.queues[0].(*packetQueue); ok && q.waiting() && r.sw.now()-w.since < int64(fastWait) {
		return
	}
	for i := range w.n {
		s := &w.list[i]
		*w.askedFor(s) = asked{s.src, s.dst, r.clock.now()}
		r.sw.fast.add(r.port, s.to, s.src, s.dst)
		*s = shortcut{} // keeps no removed port alive
	}
	w.n = 0
}

// waiting reports whether frames wait in the ring.
func (q *packetQueue) waiting() bool {
	if q.ring == nil {
		return false
	}
	q.ring.mu.Lock()
	defer q.ring.mu.Unlock()
	if q.ring.ring == nil {
		return false
	}
	_, ok := q.ring.at(0)
	return ok
}
