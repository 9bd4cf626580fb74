package watch

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// looks runs bridges whose ports cannot be put back in the first attempts; failures is their
// number.
func looks(t *testing.T, failures int, use func(b *bridges)) (looked []string, lasts []bool) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		b := newBridges(func(_ context.Context, names []string, last bool) bool {
			mu.Lock()
			defer mu.Unlock()
			looked, lasts = append(looked, fmt.Sprint(names)), append(lasts, last)
			return len(looked) <= failures
		})
		ctx, cancel := context.WithCancel(t.Context())
		var work sync.WaitGroup
		work.Go(func() { b.work(ctx) })
		use(b)
		time.Sleep(10 * time.Minute)
		cancel()
		work.Wait()
	})
	return looked, lasts
}

func TestBridgesAreLookedAtWhenTheyAreNew(t *testing.T) {
	looked, _ := looks(t, 0, func(b *bridges) {
		b.seen(3, "br0")
		synctest.Wait()
		b.seen(3, "br0") // changed
		synctest.Wait()
		b.seen(3, "br1") // renamed
		synctest.Wait()
		b.gone(3)
		b.seen(4, "br1")
		b.seen(5, "gone")
		b.gone(5)
		synctest.Wait()
		b.seen(6, "a")
		b.keep(map[int]bool{6: true})
		synctest.Wait()
		b.all()
	})
	if want := []string{"[br0]", "[br1]", "[br1]", "[a]", "[a]"}; !slices.Equal(looked, want) {
		t.Errorf("looked at %q, want %q", looked, want)
	}
}

func TestBridgesAreLookedAtAgainForAMinute(t *testing.T) {
	looked, lasts := looks(t, 3, func(b *bridges) { b.seen(3, "br0") })
	if len(looked) != 4 || slices.Contains(lasts, true) {
		t.Errorf("after 3 failures: looked %d times, the last one: %v", len(looked), lasts)
	}
	looked, lasts = looks(t, 1000, func(b *bridges) { b.seen(3, "br0") })
	if len(looked) != 1+retries || slices.Index(lasts, true) != retries {
		t.Errorf("with failures only: looked %d times, the last one: %v", len(looked), lasts)
	}
	looked, _ = looks(t, 1000, func(b *bridges) {
		b.seen(3, "br0")
		time.Sleep(firstRetry / 2)
		b.gone(3)
	})
	if len(looked) != 1 {
		t.Errorf("a bridge that is gone was looked at %d times", len(looked))
	}
}
