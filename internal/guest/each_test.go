package guest

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"vmnet/internal/inventory"
	"vmnet/internal/kernel/rtnl"
)

// guestsHeld are links that as many processes hold, one each.
func guestsHeld(count int) (held []inventory.Device) {
	for i := range count {
		held = append(held, inventory.Device{Link: &rtnl.Link{Index: i}})
	}
	return held
}

// TestManySilentGuests: 500 guests that do not answer cost seconds, and those among them that do
// are asked.
func TestManySilentGuests(t *testing.T) {
	var groups [][]inventory.Device
	for _, dev := range guestsHeld(500) {
		groups = append(groups, []inventory.Device{dev})
	}
	answers := func(i int) bool { return i%50 == 49 }
	var now, most atomic.Int64
	look := func(_, reading context.Context, nics []inventory.Device) string {
		defer now.Add(-1)
		for n := now.Add(1); ; {
			old := most.Load()
			if n <= old || most.CompareAndSwap(old, n) {
				break
			}
		}
		if reading.Err() != nil {
			return "not asked"
		}
		if answers(nics[0].Index) {
			return "answered"
		}
		<-reading.Done()
		if !errors.Is(context.Cause(reading), context.DeadlineExceeded) {
			t.Errorf("cause %v", context.Cause(reading))
		}
		return "silent"
	}
	start := time.Now()
	found := atOnce(t.Context(), allWait, "guests have taken", groups, look)
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("took %v", took)
	}
	for i, got := range found {
		want := "silent"
		if answers(i) {
			want = "answered"
		}
		if got != want {
			t.Errorf("guest %d: %q, want %q", i, got, want)
		}
	}
	if most.Load() != guestsAtOnce {
		t.Errorf("%d at once, want %d", most.Load(), guestsAtOnce)
	}
}

// TestGuestsAreAskedNoLongerThan the bound, nor after an interrupt.
func TestGuestsAreAskedNoLongerThan(t *testing.T) {
	interrupted := errors.New("interrupted")
	for name, tc := range map[string]struct {
		within, interrupt time.Duration
		want              error
	}{
		"the bound":    {100 * time.Millisecond, time.Hour, context.DeadlineExceeded},
		"an interrupt": {time.Hour, 100 * time.Millisecond, interrupted},
	} {
		ctx, cancel := context.WithCancelCause(t.Context())
		stop := time.AfterFunc(tc.interrupt, func() { cancel(interrupted) })
		start := time.Now()
		found := atOnce(ctx, tc.within, "guests have taken", slices.Collect(slices.Chunk(guestsHeld(100), 1)),
			func(_, reading context.Context, _ []inventory.Device) error {
				<-reading.Done()
				return errors.Join(reading.Err(), context.Cause(reading))
			})
		if took := time.Since(start); took > 20*time.Second {
			t.Errorf("%s: took %v", name, took)
		}
		for _, err := range found {
			if !errors.Is(err, tc.want) {
				t.Errorf("%s: %v", name, err)
				break
			}
		}
		stop.Stop()
		cancel(nil)
	}
}
