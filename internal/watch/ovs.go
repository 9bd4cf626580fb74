package watch

import (
	"context"
	"sync"
	"time"

	"vmnet/internal/access/plaintap"
	"vmnet/internal/kernel/rtnl"
	"vmnet/tapmgr/nic"
)

const (
	// gatherGone is how long to wait for more taps to go: a guest has several, and a host many.
	gatherGone = 10 * time.Millisecond
	// retryRows is the pause after a failure, and bounds an attempt.
	retryRows = 5 * time.Second
)

// rows removes the ports of NICs from Open vSwitch's databases when their taps have gone. OVN would
// have a guest that moves to another host wait for a port that the former host still claims.
type rows struct {
	// tidy removes the rows of devices that have gone from the databases with these sockets;
	// without any, from those of all NICs that are there.
	tidy func(ctx context.Context, paths ...string) error
	wake chan struct{}

	mu      sync.Mutex
	pending map[string]bool // sockets for the taps that have gone
}

func newRows(tidy func(context.Context, ...string) error) *rows {
	return &rows{tidy: tidy, wake: make(chan struct{}, 1), pending: map[string]bool{}}
}

// gone is about a link that has gone: the kernel's last message says what its alias was.
func (r *rows) gone(l *rtnl.Link) {
	record, ok := nic.ParseRecord(l.Alias)
	ok, path := ok && record.Type == nic.TypeOVS, record.OVSDB
	if t, plain := plaintap.Parse(l.Alias); plain {
		ok, path = t.OVS, t.OVSDB
	}
	if !ok {
		return
	}
	r.mu.Lock()
	r.pending[path] = true
	r.mu.Unlock()
	r.rouse()
}

func (r *rows) rouse() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// work tidies until ctx ends, and reports a failure once, until it has succeeded again.
func (r *rows) work(ctx context.Context, report func(error)) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		}
		failed, pause := false, gatherGone
		for sleep(ctx, pause) {
			err := r.once(ctx)
			if err == nil || ctx.Err() != nil {
				break
			}
			if !failed {
				report(err)
			}
			failed, pause = true, retryRows
		}
	}
}

// once tidies the databases of taps that have gone. Those of a failure are tried again.
func (r *rows) once(ctx context.Context) error {
	r.mu.Lock()
	var paths []string
	for path := range r.pending {
		paths = append(paths, path)
	}
	r.pending = map[string]bool{}
	r.mu.Unlock()
	err := r.tidy(ctx, paths...)
	if err != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, path := range paths {
			r.pending[path] = true
		}
	}
	return err
}

func (w *watcher) tidyRows(ctx context.Context, paths ...string) error {
	ctx, cancel := context.WithTimeout(ctx, retryRows)
	defer cancel()
	actions, err := w.Manager.TidyOVS(ctx, paths...)
	w.did(actions, nil)
	return err
}
