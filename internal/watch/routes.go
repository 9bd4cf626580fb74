package watch

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"vmnet/internal/kernel/rtnl"
	"vmnet/tapmgr/nic"
)

const (
	// settleTime is how long to wait for more changes of links: an uplink that comes up reports
	// several.
	settleTime = 50 * time.Millisecond
	// retryRoutes is the pause after a failure.
	retryRoutes = 5 * time.Second
)

// routes keeps what routed NICs need of the host, and removes what NICs leave there. The entries by
// which the host answers for a guest outlive the guest's tap, as the shaper of a shaped NIC does,
// and an uplink that goes down loses the entries.
type routes struct {
	// restore restores and removes, and reports whether anything failed.
	restore func(context.Context) (failed bool)
	wake    chan struct{}

	mu   sync.Mutex
	nics map[int]bool // those that leave something, by interface index: whether they are routed
}

func newRoutes(restore func(context.Context) bool) *routes {
	return &routes{restore: restore, wake: make(chan struct{}, 1), nics: map[int]bool{}}
}

// device notes the device of a NIC that leaves something on the host.
func (r *routes) device(l *rtnl.Link) {
	if record, ok := nic.ParseRecord(l.Alias); ok && record.LeavesTraces() {
		r.mu.Lock()
		r.nics[l.Index] = record.Type == nic.TypeRouted
		r.mu.Unlock()
	}
}

// link is about a link that may be the uplink of a routed NIC.
func (r *routes) link() {
	r.mu.Lock()
	any := slices.Contains(slices.Collect(maps.Values(r.nics)), true)
	r.mu.Unlock()
	if any {
		r.rouse()
	}
}

func (r *routes) gone(index int) {
	r.mu.Lock()
	_, known := r.nics[index]
	delete(r.nics, index)
	r.mu.Unlock()
	if known {
		r.rouse()
	}
}

// keep forgets all NICs except these, and looks at what there is.
func (r *routes) keep(there map[int]bool) {
	r.mu.Lock()
	maps.DeleteFunc(r.nics, func(index int, _ bool) bool { return !there[index] })
	r.mu.Unlock()
	r.rouse()
}

func (r *routes) rouse() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *routes) work(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		}
		pause := settleTime
		for sleep(ctx, pause) && r.restore(ctx) {
			pause = retryRoutes
		}
	}
}

// keepRouted restores what routed NICs need, and reports whether that failed.
func (w *watcher) keepRouted(ctx context.Context) (failed bool) {
	actions, err := w.Manager.KeepRouted(ctx)
	if ctx.Err() != nil {
		return false
	}
	return w.did(actions, err)
}
