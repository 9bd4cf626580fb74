package declare

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"vmnet/internal/guestfile"
	"vmnet/internal/kernel/procview"
	"vmnet/internal/vmm/qemu"
)

const (
	// listenEvery is how often the listening sockets are listed. A guest's monitor is one.
	listenEvery = 40 * time.Millisecond
	// lookEvery is how often all processes are looked at although no socket has begun to listen: a
	// VMM in another network namespace has its socket elsewhere.
	lookEvery = 2 * time.Second
	// lookPause is the pause after looking at the processes, as a multiple of the time that it
	// took: any user can make sockets listen all the time.
	lookPause = 10
	// A guest that could not be given its NICs is tried again, after pauses that double.
	firstRetry, slowestRetry = 50 * time.Millisecond, 10 * time.Second
	// atOnce bounds how many guests are worked on in parallel.
	atOnce = 8
)

// Watcher applies the files of a directory when guests start.
type Watcher struct {
	Applier *Applier
	// Read returns the declared guests, and the errors of broken files.
	Read func() ([]*guestfile.Guest, map[string]error, error)
	// Reload has the files read again.
	Reload <-chan struct{}
	// Applied receives the result for one guest, from one goroutine at a time. The plan is nil if
	// the error is about a file.
	Applied func(name string, p *Plan, err error)

	listeners func() (map[uint64]bool, error) // nil: procview.ListenerInodes
}

// Run watches until ctx ends.
func (w *Watcher) Run(ctx context.Context) {
	r := &round{Watcher: w, guests: map[string]*watched{}, done: make(chan outcome)}
	if r.listeners == nil {
		r.listeners = procview.ListenerInodes
	}
	r.run(ctx)
}

// watched is a guest with a file. Its fields belong to Run's goroutine.
type watched struct {
	guest   *guestfile.Guest
	applied string // the identity of the processes for which the file was applied
	busy    bool   // it is being applied
	again   bool   // its file was read again meanwhile
	retry   time.Duration
	at      time.Time // not before
	told    string    // the last error, which is not repeated
}

type outcome struct {
	name string
	w    *watched
	self string
	plan *Plan
	err  error
}

// round is a Watcher that runs.
type round struct {
	*Watcher
	guests map[string]*watched
	known  map[uint64]bool // sockets that listened last time
	rested time.Time       // when processes may be looked at again
	due    bool            // they are to be
	last   time.Time
	busy   int
	done   chan outcome
}

func (r *round) run(ctx context.Context) {
	r.read()
	tick := time.NewTicker(listenEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			for ; r.busy > 0; r.busy-- {
				<-r.done
			}
			return
		case <-r.Reload:
			r.read()
		case o := <-r.done:
			r.busy--
			r.finish(ctx, o)
		case now := <-tick.C:
			if len(r.guests) > 0 {
				r.tick(ctx, now)
			}
		}
	}
}

// read reads the files. Each guest's file is applied, to what runs as well.
func (r *round) read() {
	guests, broken, err := r.Read()
	if err != nil {
		r.Applied("", nil, err)
		return // nothing is known to have changed
	}
	for _, name := range slices.Sorted(maps.Keys(broken)) {
		r.Applied(name, nil, broken[name])
	}
	former := r.guests
	r.guests = map[string]*watched{}
	for _, g := range guests {
		w := &watched{guest: g}
		if was := former[g.VM]; was != nil && was.busy {
			w = was
			w.guest, w.again, w.told = g, true, ""
		}
		w.applied, w.at, w.retry = "", time.Time{}, 0
		r.guests[g.VM] = w
	}
	r.due = true
}

// tick looks at the processes if a socket has begun to listen, if it is time, or if a guest is to
// be tried again.
func (r *round) tick(ctx context.Context, now time.Time) {
	sockets, err := r.listeners()
	if err == nil {
		for inode := range sockets {
			r.due = r.due || !r.known[inode]
		}
		r.known = sockets
	}
	retry := slices.ContainsFunc(slices.Collect(maps.Values(r.guests)), func(w *watched) bool {
		return !w.busy && !w.at.IsZero() && !now.Before(w.at)
	})
	if !r.due && !retry && now.Sub(r.last) < lookEvery || now.Before(r.rested) {
		return
	}
	r.due, r.last = false, now
	r.look(ctx, now)
	r.rested = time.Now().Add(lookPause * time.Since(now))
}

// look applies the files of guests that were started since the last time.
func (r *round) look(ctx context.Context, now time.Time) {
	running, err := r.running()
	if err != nil {
		return // the next look finds them
	}
	for name, w := range r.guests {
		p, err := find(w.guest, running, r.Applier.caller())
		switch {
		case err != nil:
			r.tell(w, name, nil, err)
		case !p.Running:
			w.applied, w.at, w.retry, w.told = "", time.Time{}, 0, ""
		case w.busy || p.self == w.applied && w.at.IsZero() || now.Before(w.at):
		case r.busy < atOnce:
			r.start(ctx, name, w, p.self)
		default:
			r.due = true
		}
	}
}

func (r *round) running() (qemu.Running, error) {
	if r.Applier.look != nil {
		return r.Applier.look()
	}
	return qemu.Look()
}

func (r *round) start(ctx context.Context, name string, w *watched, self string) {
	w.busy, w.again = true, false
	r.busy++
	g := w.guest
	go func() {
		p, err := r.Applier.Apply(ctx, g)
		r.done <- outcome{name, w, self, p, err}
	}()
}

func (r *round) finish(ctx context.Context, o outcome) {
	w := o.w
	w.busy = false
	if ctx.Err() != nil {
		return
	}
	w.at = time.Time{}
	switch {
	case w.again: // the file that was applied is not the last one
		r.due = true
	case o.err != nil:
		w.applied = o.self
		w.retry = min(max(2*w.retry, firstRetry), slowestRetry)
		w.at = time.Now().Add(w.retry)
	default:
		w.applied, w.retry = o.self, 0
	}
	r.tell(w, o.name, o.plan, o.err)
}

// transient are the errors of a guest that is about to start or to end.
var transient = []error{qemu.ErrNotFound, qemu.ErrNoMonitor}

// tell reports a result; a failure once, and one that a guest causes that starts only when it
// stays.
func (r *round) tell(w *watched, name string, p *Plan, err error) {
	text := fmt.Sprint(err)
	for _, t := range transient {
		if errors.Is(err, t) && w.retry < time.Second {
			return
		}
	}
	if err != nil && text == w.told {
		return
	}
	if w.told = ""; err != nil {
		w.told = text
	}
	r.Applied(name, p, err)
}
