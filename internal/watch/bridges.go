package watch

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"
)

// Taps are put back at once, and after a failure again for almost a minute: a bridge is often made
// first and set up then, for example to filter VLANs.
const (
	firstRetry = 100 * time.Millisecond
	retries    = 9 // each after twice the pause
)

// bridges tracks the existing bridges. A new or renamed one may be the bridge that taps have lost.
type bridges struct {
	// putBack puts taps back on the bridges of these names; last means that it is not tried again.
	// It reports whether anything failed.
	putBack func(ctx context.Context, names []string, last bool) (failed bool)
	wake    chan struct{}

	mu    sync.Mutex
	known map[int]string // names by interface index
	due   map[string]due
}

// due says when a bridge is checked, and how many times it was.
type due struct {
	at  time.Time
	try int
}

func newBridges(putBack func(ctx context.Context, names []string, last bool) bool) *bridges {
	return &bridges{putBack: putBack, wake: make(chan struct{}, 1), known: map[int]string{}, due: map[string]due{}}
}

// seen records a bridge, and schedules a check if it is new.
func (b *bridges) seen(index int, name string) {
	b.mu.Lock()
	before := b.known[index]
	b.known[index] = name
	if before != name {
		b.due[name] = due{at: time.Now()}
	}
	b.mu.Unlock()
	if before != name {
		b.rouse()
	}
}

// all schedules a check of all bridges.
func (b *bridges) all() {
	b.mu.Lock()
	for _, name := range b.known {
		b.due[name] = due{at: time.Now()}
	}
	b.mu.Unlock()
	b.rouse()
}

func (b *bridges) rouse() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

func (b *bridges) gone(index int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.due, b.known[index])
	delete(b.known, index)
}

// keep forgets all links except these.
func (b *bridges) keep(there map[int]bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for index, name := range b.known {
		if !there[index] {
			delete(b.known, index)
			delete(b.due, name)
		}
	}
}

// work checks the bridges that are due, as many as there are in one go.
func (b *bridges) work(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-b.wake:
		case <-timer.C:
		}
		batch := b.take(time.Now())
		if len(batch) > 0 {
			names := slices.Sorted(maps.Keys(batch))
			last := slices.Max(slices.Collect(maps.Values(batch))) == retries
			if b.putBack(ctx, names, last) {
				b.again(batch)
			}
		}
		timer.Reset(b.next(time.Now()))
	}
}

// take returns the bridges that are due and how often they were tried.
func (b *bridges) take(now time.Time) map[string]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	batch := map[string]int{}
	for name, d := range b.due {
		if !d.at.After(now) {
			batch[name] = d.try
			delete(b.due, name)
		}
	}
	return batch
}

// again schedules another check of bridges, later.
func (b *bridges) again(batch map[string]int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, name := range b.known {
		try, tried := batch[name]
		if _, newer := b.due[name]; tried && !newer && try < retries {
			b.due[name] = due{time.Now().Add(firstRetry << try), try + 1}
		}
	}
}

// next returns the time until a bridge is due.
func (b *bridges) next(now time.Time) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	wait := time.Hour
	for _, d := range b.due {
		wait = min(wait, d.at.Sub(now))
	}
	return max(wait, 0)
}
