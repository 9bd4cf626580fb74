package vswitch

import (
	"sync/atomic"
	"time"
)

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
	return b.step == 0 || b.pass(now, int64(n)*b.step)
}

// pass reports whether what takes that many nanoseconds may pass, as take does.
func (b *bucket) pass(now, cost int64) bool {
	for {
		full := b.full.Load()
		next := max(full, now) + cost
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
	return b.owe(now, int64(n)*b.step, maxThrottle)
}

// owe is spend for what takes that many nanoseconds, with a cap of its own.
func (b *bucket) owe(now, cost int64, most time.Duration) time.Duration {
	for {
		full := b.full.Load()
		next := min(max(full, now)+cost, now+b.depth+int64(most))
		if b.full.CompareAndSwap(full, next) {
			return time.Duration(max(0, next-now-b.depth))
		}
	}
}

// maxThrottle limits how long a port is not read.
const maxThrottle = time.Second

// throttle makes the receiver wait after a batch if the port is over its limit of refused frames.
func (r *receiver) throttle(refused int) {
	if wait := r.port.set.Load().refused.spend(r.sw.now(), refused); wait > 0 {
		r.pause(wait)
	}
}

// pause waits, and reports whether the port is still there.
func (r *receiver) pause(wait time.Duration) bool {
	if r.throttling == nil {
		r.throttling = time.NewTimer(0)
	}
	r.throttling.Reset(wait)
	select {
	case <-r.throttling.C:
		return true
	case <-r.port.ended:
		r.throttling.Stop()
		return false
	}
}
