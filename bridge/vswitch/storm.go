package vswitch

import (
	"fmt"
	"sync/atomic"
	"time"
)

// Storm limits what a port may have flooded, in frames per second, each kind on its own; 0 is no limit. A tenth of
// a second's worth may come at once. A flooded frame costs a system call for each port: without a limit, one
// guest can keep a switch of many ports busy.
type Storm struct {
	Broadcast int `json:"broadcast,omitempty"`
	Multicast int `json:"multicast,omitempty"`
	Unknown   int `json:"unknown,omitempty"` // unicast to addresses that nobody was seen with
}

// maxStorm is more than any port can send.
const maxStorm = 1e9

func (s Storm) validate() error {
	for _, n := range []int{s.Broadcast, s.Multicast, s.Unknown} {
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

// take tells whether a frame may pass at that time.
func (b *bucket) take(now int64) bool {
	if b.step == 0 {
		return true
	}
	for {
		full := b.full.Load()
		next := max(full, now) + b.step
		if next-now > b.depth {
			return false
		}
		if b.full.CompareAndSwap(full, next) {
			return true
		}
	}
}
