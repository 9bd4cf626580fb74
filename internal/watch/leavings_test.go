package watch

import (
	"testing"
	"time"
)

// TestLeavings has a guest that never releases its NIC: it is checked for about a minute, at
// growing intervals.
func TestLeavings(t *testing.T) {
	l, start := newLeavings(), time.Now()
	if l.next(start) != nil {
		t.Error("somebody is due at first")
	}
	now, looks := start, 0
	for l.later("web", now); len(l.guests) > 0; l.later("web", now) {
		if due := l.due(now); len(due) > 0 {
			t.Fatalf("%v is due at once", due)
		}
		now = l.guests["web"].at
		if due := l.due(now); len(due) != 1 || due[0] != "web" {
			t.Fatalf("%v is due at its time", due)
		}
		looks++
	}
	if took := now.Sub(start); looks < 8 || looks > 12 || took < 20*time.Second || took > 2*time.Minute {
		t.Errorf("%d looks in %v", looks, took)
	}
	l.later("web", now)
	if l.guests["web"].wait != firstRevisit {
		t.Errorf("the next time begins with %v", l.guests["web"].wait)
	}
	if l.next(l.guests["web"].at.Add(time.Second)) == nil {
		t.Error("nothing delivers what is overdue")
	}
}
