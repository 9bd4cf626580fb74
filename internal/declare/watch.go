package declare

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"vmnet/internal/guest"
	"vmnet/internal/guestfile"
	"vmnet/internal/kernel/procview"
	"vmnet/internal/vmm/qemu"
)

const (
	// listenEvery is how often the listening sockets are listed. A guest's monitor is one.
	listenEvery = 40 * time.Millisecond
	// After a socket has begun to listen, all processes are looked at, again after pauses that
	// double from listenEvery: libvirt has the monitor listen before it executes QEMU. slowestLook
	// is the longest pause, since a VMM in another network namespace is not seen to listen.
	slowestLook = 2 * time.Second
	// lookPause is the shortest pause after looking at the processes, or listing the sockets, as a
	// multiple of the time that it took: any user can have many sockets, and make them listen all
	// the time.
	lookPause = 10
	// A guest that could not be given its NICs is tried again, after pauses that double.
	firstRetry, slowestRetry = 50 * time.Millisecond, 10 * time.Second
	// atOnce bounds how many guests are worked on in parallel.
	atOnce = 8
)

// Watcher applies the files of a directory when guests start. A file that changes counts for the
// next start of its guest, and for a guest that runs after a Reload.
type Watcher struct {
	Applier *Applier
	// Read returns the declared guests, and the errors of broken files.
	Read func() ([]*guestfile.Guest, map[string]error, error)
	// Stamp returns a text that differs after any change of the files.
	Stamp func() string
	// Reload has the files read again and applied to the guests that run.
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
	late    bool   // the file came without a Reload: it is not for processes that ran by then
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
	stamp  string          // of the files that were read
	known  map[uint64]bool // sockets that listened last time
	quiet  time.Time       // when they may be listed again
	pids   map[string]bool // identities of the processes of the last look
	next   time.Time       // when the processes are looked at
	pause  time.Duration   // from the last look to the next
	rested time.Time       // when they may be looked at again
	busy   int
	done   chan outcome
}

func (r *round) run(ctx context.Context) {
	r.read(true)
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
			r.read(true)
		case o := <-r.done:
			r.busy--
			r.finish(ctx, o)
		case now := <-tick.C:
			r.tick(ctx, now)
		}
	}
}

// read reads the files. With all, each guest's file is applied, to what runs as well.
func (r *round) read(all bool) {
	r.stamp = r.Stamp()
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
		w := former[g.VM]
		if w == nil {
			w = &watched{late: !all}
		}
		w.guest = g
		if all {
			w.again, w.late = w.busy, false
			w.applied, w.at, w.retry, w.told = "", time.Time{}, 0, ""
		}
		r.guests[g.VM] = w
	}
	r.soon()
}

// soon has the processes looked at at the next tick.
func (r *round) soon() { r.next, r.pause = time.Time{}, 0 }

// tick looks at the processes if a socket has begun to listen, if it is time, or if a guest is to
// be tried again.
func (r *round) tick(ctx context.Context, now time.Time) {
	if len(r.guests) == 0 && r.Stamp() != r.stamp || len(r.guests) > 0 && r.listens() {
		r.soon()
	}
	retry := slices.ContainsFunc(slices.Collect(maps.Values(r.guests)), func(w *watched) bool {
		return !w.busy && !w.at.IsZero() && !now.Before(w.at)
	})
	if now.Before(r.next) && !retry || now.Before(r.rested) {
		return
	}
	if r.Stamp() != r.stamp {
		r.read(false)
	}
	r.look(ctx, now)
	r.pause = min(max(2*r.pause, listenEvery), slowestLook)
	r.next, r.rested = now.Add(r.pause), time.Now().Add(lookPause*time.Since(now))
}

// listens reports whether a socket has begun to listen since the last time.
func (r *round) listens() bool {
	start := time.Now()
	if start.Before(r.quiet) {
		return false
	}
	sockets, err := r.listeners()
	r.quiet = time.Now().Add(min(lookPause*time.Since(start), slowestLook))
	if err != nil {
		return false
	}
	former := r.known
	r.known = sockets
	for inode := range sockets {
		if !former[inode] {
			return true
		}
	}
	return false
}

// look applies the files of guests that were started since the last time.
func (r *round) look(ctx context.Context, now time.Time) {
	running, err := r.Applier.running()
	if err != nil {
		return // the next look finds them
	}
	former := r.pids
	r.pids = map[string]bool{}
	for _, p := range running.All {
		r.pids[identity([]qemu.Process{p})] = true
	}
	for name, w := range r.guests {
		p, err := find(w.guest, running, os.Geteuid())
		if w.late && err == nil && p.Running && former[p.self] {
			w.applied = p.self
		}
		w.late = false
		switch {
		case err != nil:
			r.tell(w, name, p, err)
		case !p.Running:
			w.applied, w.at, w.retry, w.told = "", time.Time{}, 0, ""
		case w.busy || p.self == w.applied && w.at.IsZero() || now.Before(w.at):
		case r.busy < atOnce:
			r.start(ctx, name, w, p.self)
		default:
			w.at = now
		}
	}
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
		r.soon()
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
var transient = []error{qemu.ErrNotFound, qemu.ErrNoMonitor, guest.ErrNotArrived}

// tell reports a result, the same failure only once. It reports a failure of a guest that is about
// to start or to end only if the failure lasts.
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
