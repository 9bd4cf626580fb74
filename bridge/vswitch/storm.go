package vswitch

import (
	"fmt"
	"sync/atomic"
	"time"
)

// Storm limits what a port may have flooded, in frames per second, each kind on its own; 0 is no limit. A tenth of
// a second's worth may come at once. A super-frame counts as its segments. A flooded frame costs a system call for each port: without
// a limit, one guest can keep a switch of many ports busy.
type Storm struct {
	Broadcast int `json:"broadcast,omitempty"`
	Multicast int `json:"multicast,omitempty"`
	Unknown   int `json:"unknown,omitempty"` // unicast to addresses that nobody was seen with

	// Refused is how many frames the port may send that go nowhere: beyond the other limits, from a source or in a VLAN that it may
	// not have, to a destination behind the port itself, or no frames at all; not those to another isolated port. Beyond it the port is not read for a
	// while. Then who sends them waits, which costs the others no time; but what else comes by the port
	// waits, too, so it is not for an uplink.
	Refused int `json:"refused,omitempty"`
}

// GuestFrames is what to limit a guest to that nobody vouches for: whatever it does leaves the others on a switch of 64 ports
// nine tenths of their rate (BenchmarkLiveHostileGuest).
const GuestFrames = 1000

// GuestStorm limits a guest to that many frames of each kind; 0 is no limit.
func GuestStorm(frames int) Storm {
	return Storm{Broadcast: frames, Multicast: frames, Unknown: frames, Refused: frames}
}

// maxStorm is more than any port can send.
const maxStorm = 1e9

func (s Storm) validate() error {
	for _, n := range []int{s.Broadcast, s.Multicast, s.Unknown, s.Refused} {
		if n < 0 || n > maxStorm {
			return fmt.Errorf("storm limit of %d frames per second: want 0 to %d", n, int(maxStorm))
		}
	}
	return nil
}

// A bucket lets through what keeps to a rate. It is shared by a port's queues, without a lock: it holds but one number,
// the time at which it would be full again (the generic cell rate algorithm of ITU-T I.371).
type bucket struct {
	step  int64 // nanoseconds for each frame; 0 is no limit
	depth int64 // nanoseconds of frames that may come at once
	full  atomic.Int64
}

func (b *bucket) limit(perSecond int) {
	if perSecond > 0 {
		b.step = max(1, int64(time.Second)/int64(perSecond))
		b.depth = max(b.step, int64(time.Second/10))
	}
}

// take tells whether n frames may pass at that time. More than may ever come at once pass alone.
func (b *bucket) take(now int64, n int) bool {
	if b.step == 0 {
		return true
	}
	for {
		full := b.full.Load()
		next := max(full, now) + int64(n)*b.step
		if next-now > b.depth && full > now {
			return false
		}
		if b.full.CompareAndSwap(full, next) {
			return true
		}
	}
}

// spend takes what n frames cost, whether it is there or not, and tells how long to wait until it is: at most maxRest. What is beyond
// that is let off, for a port that has misbehaved once is not to pay for it a day.
func (b *bucket) spend(now int64, n int) time.Duration {
	if b.step == 0 {
		return 0
	}
	for {
		full := b.full.Load()
		next := min(max(full, now)+int64(n)*b.step, now+b.depth+int64(maxRest))
		if b.full.CompareAndSwap(full, next) {
			return time.Duration(max(0, next-now-b.depth))
		}
	}
}

// maxRest is the longest that a port is not read at a time.
const maxRest = time.Second

// rest has the port's queue wait after a batch of which frames were refused, if these were too many.
func (r *receiver) rest(refused int) {
	wait := r.port.refused.spend(r.sw.now(), refused)
	if wait == 0 {
		return
	}
	if r.resting == nil {
		r.resting = time.NewTimer(0)
	}
	r.resting.Reset(wait)
	select {
	case <-r.resting.C:
	case <-r.port.ended:
		r.resting.Stop()
	}
}
