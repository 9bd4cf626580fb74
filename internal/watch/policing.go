package watch

import (
	"context"
	"time"
)

// policingRest is the pause after a look at the filters of all NICs, as a multiple of the time that
// it took: other programs may change filters all the time.
const policingRest = 10

// keepPolicing has the kernel check, filter and limit frames again where somebody has removed that,
// such as by `tc qdisc del dev TAP clsact`. It looks once when it begins, and then after changes of
// qdiscs and filters.
func (w *watcher) keepPolicing(ctx context.Context) {
	told := map[string]bool{}
	for {
		start := time.Now()
		actions, err := w.Manager.KeepPoliced(ctx)
		if ctx.Err() != nil {
			return
		}
		failed := false
		for i, a := range actions {
			failed = failed || a.Error != ""
			if text := a.Interface + a.Error; a.Error != "" && told[text] {
				actions[i].Error, actions[i].Changed = "", false // the same failure is reported once
			} else if a.Error != "" {
				told[text] = true
			}
		}
		failed = w.did(actions, err) || failed
		var again <-chan time.Time
		if failed {
			again = time.After(retryRoutes)
		} else {
			clear(told)
		}
		select {
		case <-ctx.Done():
			return
		case <-again:
		case <-w.filters.C:
			if !sleep(ctx, max(settleTime, policingRest*time.Since(start))) {
				return
			}
		}
	}
}
