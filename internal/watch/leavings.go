package watch

import (
	"context"
	"time"

	"vmnet/libvirt"
)

// Leftovers of a guest may still be held when libvirt reports that the guest has ended or released
// a NIC: an exiting process closes its files one after the other. They are checked again after
// pauses that double, for almost a minute in all.
const (
	firstRevisit   = 100 * time.Millisecond
	slowestRevisit = 30 * time.Second
)

// everybody stands for all guests, when it is unknown which ones have ended.
const everybody = ""

// leavings tracks the guests whose leftovers must be checked again. It is for one goroutine.
type leavings struct {
	guests map[string]revisit // by name
	alarm  *time.Timer
}

// revisit says when a guest is checked again, and the pause since the last check.
type revisit struct {
	at   time.Time
	wait time.Duration
}

func newLeavings() *leavings {
	return &leavings{guests: map[string]revisit{}, alarm: time.NewTimer(time.Hour)}
}

// later schedules another check of a guest, unless it was checked long enough. Everybody is checked
// once, and not soon: if events are lost once, they will be lost again.
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

// due returns the guests that must be checked now.
func (l *leavings) due(now time.Time) (guests []string) {
	for name, r := range l.guests {
		if !r.at.After(now) {
			guests = append(guests, name)
		}
	}
	return guests
}

// next delivers when the next guest is due. It returns nil, which never delivers, if there is none.
func (l *leavings) next(now time.Time) <-chan time.Time {
	if len(l.guests) == 0 {
		return nil
	}
	first := slowestRevisit // no guest is due later
	for _, r := range l.guests {
		first = min(first, r.at.Sub(now))
	}
	l.alarm.Reset(first)
	return l.alarm.C
}

// ended removes a domain's leftovers: a macvtap that was handed over by its name outlives the
// guest.
func (w *watcher) ended(ctx context.Context, dom libvirt.Domain) {
	w.left.forget(dom.Name)
	w.removeLeft(ctx, dom.Name)
}

// removeLeft removes leftovers once, and again later if some are still held.
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
