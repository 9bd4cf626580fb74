package vswitch

import (
	"fmt"
	"sync/atomic"
	"time"
)

// Storm limits the frames of a port that are flooded, in frames per second for each kind; 0 means
// no limit. A burst may have the frames of a tenth of a second. A super-frame counts as its
// segments. A flooded frame costs a system call for each port: without a limit, one guest can keep
// a switch with many ports busy.
type Storm struct {
	Broadcast int `json:"broadcast,omitempty"`
	Multicast int `json:"multicast,omitempty"`
	Unknown   int `json:"unknown,omitempty"` // unicast to addresses that are not in the FDB

	// Refused limits the frames of the port that the switch refuses: frames over the other
	// limits, from a source or in a VLAN that the port may not use, to a destination behind the
	// port itself, and invalid frames. Frames to another isolated port do not count. A port
	// over the limit is not read for a while. Its sender then has to wait, which costs the
	// other ports no time. All frames of the port wait too, so this limit is not for an uplink.
	Refused int `json:"refused,omitempty"`
}

// GuestFrames is the limit for untrusted guests, in frames per second. With it, whatever one guest
// does leaves the others on a switch of 64 ports nine tenths of their rate
// (BenchmarkLiveHostileGuest).
const GuestFrames = 1000

// GuestStorm limits a guest to that many frames per second of each kind; 0 means no limit.
func GuestStorm(frames int) Storm {
	return Storm{Broadcast: frames, Multicast: frames, Unknown: frames, Refused: frames}
}

// maxStorm is the largest valid limit, which is more than any port can send.
const maxStorm = 1e9

func (s Storm) validate() error {
	for _, n := range []int{s.Broadcast, s.Multicast, s.Unknown, s.Refused} {
		if n < 0 || n > maxStorm {
			return fmt.Errorf("storm limit of %d frames per second: want 0 to %d", n, int(maxStorm))
		}
	}
	return nil
}

// A bucket limits the rate of frames. A port's queues share it without a lock, since its state is
// only one number: the time at which it would be full again (the generic cell rate algorithm of
// ITU-T I.371).
type bucket struct {
	step  int64 // nanoseconds for each frame; 0 means no limit
	depth int64 // size of a burst in nanoseconds
	full  atomic.Int64
}

func (b *bucket) limit(perSecond int) {
	if perSecond > 0 {
		b.step = max(1, int64(time.Second)/int64(perSecond))
		b.depth = max(b.step, int64(time.Second/10))
	}
}

// take reports whether n frames may pass at that time. More frames than a burst may have can pass
// only if the bucket is full.
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

// spend charges the bucket for n frames, even if that overdraws it, and returns how long to wait
// until it is balanced again. The debt is capped at maxThrottle, so that one burst cannot block a
// port for long.
func (b *bucket) spend(now int64, n int) time.Duration {
	if b.step == 0 {
		return 0
	}
	for {
		full := b.full.Load()
		next := min(max(full, now)+int64(n)*b.step, now+b.depth+int64(maxThrottle))
		if b.full.CompareAndSwap(full, next) {
			return time.Duration(max(0, next-now-b.depth))
		}
	}
}

// maxThrottle limits how long a port is not read.
const maxThrottle = time.Second

// throttle makes the receiver wait after a batch if the port is over its limit of refused frames.
func (r *receiver) throttle(refused int) {
	wait := r.port.refused.spend(r.sw.now(), refused)
	if wait == 0 {
		return
	}
	if r.throttling == nil {
		r.throttling = time.NewTimer(0)
	}
	r.throttling.Reset(wait)
	select {
	case <-r.throttling.C:
	case <-r.port.ended:
		r.throttling.Stop()
	}
}
