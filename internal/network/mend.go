package network

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"vmnet/internal/network/config"
)

// Times of Watch.
const (
	// settle follows a change: others often come with it.
	settle = 100 * time.Millisecond
	// confirm is how long a network must differ before it is mended: a verb that is at work makes
	// and replaces its parts one after the other.
	confirm = 400 * time.Millisecond
	// slow is the time between two looks without a change.
	slow = time.Minute
	// retryFirst, doubled after each failure up to slow, follows one.
	retryFirst = time.Second
)

// Mended reports that Watch has mended a network, or could not.
type Mended struct {
	Network string
	What    []string // what differed: "rules", "server"
	Err     error    // why it failed; nil if it is mended
}

// Watch mends networks that differ from their files, until ctx ends: those that are up, or were
// when it has looked before. changed announces that something may differ. Networks on an uplink are
// left to people, since a mistake would disconnect the host. But a move that nobody has confirmed,
// and whose guard was killed, is taken back when its time has come.
func (m *Manager) Watch(ctx context.Context, changed <-chan struct{}, report func(Mended)) {
	w := &mender{m: m, report: report, up: map[string]bool{}, differs: map[string]*differing{}}
	timer := time.NewTimer(0)
	defer timer.Stop()
	due := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
			if soon := time.Now().Add(settle); soon.Before(due) {
				due = soon
				timer.Reset(settle)
			}
			continue
		case <-timer.C:
		}
		wait := w.look(ctx)
		due = time.Now().Add(wait)
		timer.Reset(wait)
	}
}

// mender is what Watch remembers.
type mender struct {
	m       *Manager
	report  func(Mended)
	up      map[string]bool // networks that have been seen
	differs map[string]*differing
	failed  string // why nothing could be compared, as last reported
}

// differing is a network that is not as its file says.
type differing struct {
	what     string
	failures int
	next     time.Time // when it is mended, if it still differs then
	told     string    // the error that was reported
}

// look compares all networks, mends those that have differed for a while, and returns when to look
// again.
func (w *mender) look(ctx context.Context) time.Duration {
	differ, err := w.compare(ctx)
	if err != nil {
		if text := err.Error(); text != w.failed && ctx.Err() == nil {
			w.failed = text
			w.report(Mended{Err: err})
		}
		return slow
	}
	w.failed = ""
	maps.DeleteFunc(w.differs, func(name string, _ *differing) bool { return differ[name] == nil })
	wait := slow
	for _, name := range slices.Sorted(maps.Keys(differ)) {
		what := strings.Join(differ[name], ", ")
		d := w.differs[name]
		if d == nil || d.what != what {
			d = &differing{what: what, next: time.Now().Add(confirm)}
			w.differs[name] = d
		}
		if !time.Now().Before(d.next) && ctx.Err() == nil {
			w.mend(ctx, name, differ[name], d)
		}
		wait = min(wait, max(0, time.Until(d.next)))
	}
	return wait
}

// compare returns what differs of the networks that Watch mends.
func (w *mender) compare(ctx context.Context) (map[string][]string, error) {
	all, _, err := w.m.Dir.All() // a broken file is for check
	differ := map[string][]string{}
	networks := slices.DeleteFunc(all, func(n *config.Network) bool {
		if n.Uplink != nil && w.m.overdue(n.Name) {
			differ[n.Name] = []string{"move"}
		}
		return n.Uplink != nil
	})
	if err != nil || len(networks) == 0 {
		return differ, err
	}
	records, err := w.m.bridges()
	if err != nil {
		return nil, err
	}
	for _, r := range records {
		w.up[r.network] = true
	}
	found, err := w.m.compare(ctx, networks)
	for _, d := range found {
		if d.Mend != mendByApply(d.Network) || !w.up[d.Network] || w.leftToSystemd(d) {
			continue
		}
		if !slices.Contains(differ[d.Network], d.What) {
			differ[d.Network] = append(differ[d.Network], d.What)
		}
	}
	return differ, err
}

// leftToSystemd reports whether the difference is a server that does not run: systemd starts it
// again, unless somebody has stopped it.
func (w *mender) leftToSystemd(d Difference) bool {
	_, systemd := w.m.Service.(Systemd)
	return systemd && d.What == "server" && d.Found == ""
}

func (w *mender) mend(ctx context.Context, name string, what []string, d *differing) {
	var err error
	if s, ok := w.m.Service.(Systemd); ok {
		// Its unit has the privileges and directories for that; this process may have less.
		err = s.Reload(ctx, name)
	} else {
		_, _, err = w.m.Apply(ctx, name)
	}
	if err == nil {
		delete(w.differs, name)
		d.next = time.Now().Add(confirm) // when it should not differ any more
		w.report(Mended{Network: name, What: what})
		return
	}
	d.next = time.Now().Add(min(slow, retryFirst<<min(d.failures, 6)))
	d.failures++
	if errors.Is(err, errStopped) || ctx.Err() != nil {
		return
	}
	if text := err.Error(); text != d.told {
		d.told = text
		w.report(Mended{Network: name, What: what, Err: err})
	}
}
