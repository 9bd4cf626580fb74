package watch

import (
	"context"
	"time"

	"vmnet/libvirt"
)

// What a guest has left may still be held when libvirt tells that it has ended, or that it has let go of a NIC: a process
// that ends closes its files one after the other. It is looked at again after pauses that double, for a minute in all.
const (
	firstRevisit   = 100 * time.Millisecond
	slowestRevisit = 30 * time.Second
)

// everybody stands for all guests, where what ended meanwhile is not known.
const everybody = ""

// leavings knows which guests have left what is to be looked at again. It is for one goroutine.
type leavings struct {
	guests map[string]revisit // by name
	alarm  *time.Timer
}

// revisit is when a guest is looked at again, and how long after the last time.
type revisit struct {
	at   time.Time
	wait time.Duration
}

func newLeavings() *leavings {
	return &leavings{guests: map[string]revisit{}, alarm: time.NewTimer(time.Hour)}
}

// later has a guest looked at again, unless that was done for long enough. Everybody is looked at once, and not soon:
// where events are lost once, they are lost again.
func (l *leavings) later(guest string, now time.Time) {
	wait := max(2*l.guests[guest].wait, firstRevisit)
	if guest == everybody {
		wait = slowestRevisit
	}
	if wait > slowestRevisit {
		l.forget(guest)
		return
	}
	l.guests[guest] = revisit{now.Add(wait), wait}
}

func (l *leavings) forget(guest string) { delete(l.guests, guest) }

// due are the guests whose time has come.
func (l *leavings) due(now time.Time) (guests []string) {
	for name, r := range l.guests {
		if !r.at.After(now) {
			guests = append(guests, name)
		}
	}
	return guests
}

// next delivers when the next guest is due; nil, which never does, where there is none.
func (l *leavings) next(now time.Time) <-chan time.Time {
	if len(l.guests) == 0 {
		return nil
	}
	first := slowestRevisit // none is later than that
	for _, r := range l.guests {
		first = min(first, r.at.Sub(now))
	}
	l.alarm.Reset(first)
	return l.alarm.C
}

// ended removes what a domain has left: a macvtap that was handed over by its name stays.
func (w *watcher) ended(ctx context.Context, dom libvirt.Domain) {
	w.left.forget(dom.Name)
	w.removeLeft(ctx, dom.Name)
}

// removeLeft does so once, and again later where somebody has not let go of something yet.
func (w *watcher) removeLeft(ctx context.Context, guest string) {
	actions, remain, err := w.Manager.Ended(ctx, guest)
	if ctx.Err() != nil {
		return
	}
	failed := w.did(actions, err)
	if guest != everybody && (remain || failed) {
		w.left.later(guest, time.Now())
		return
	}
	w.left.forget(guest)
}
