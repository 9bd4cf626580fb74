package guest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"vmnet/internal/inventory"
	"vmnet/tapmgr/nic"
)

const (
	// guestsAtOnce bounds how many guests are looked at in parallel.
	guestsAtOnce = 16
	// silenceWait bounds the wait for all guests that do not answer. After that, each guest has
	// only hastyWait, which suffices for those that answer at once.
	silenceWait = 3 * time.Second
	hastyWait   = 50 * time.Millisecond
	// allWait bounds the time for all guests.
	allWait = 30 * time.Second
	// OthersWait bounds the time for guests of which only other users' processes say that they have
	// NICs: a user can run any number of processes that look like guests and do not answer.
	OthersWait = 10 * time.Second
)

// Each calls look with the NICs that each VMM holds, for many VMMs in parallel. It returns the
// results in the order of the links, those of other users' untrusted guests last. The context
// reading is ctx with the time that the guest has for its answers.
func Each[R any](ctx context.Context, held []inventory.Device,
	look func(ctx, reading context.Context, nics []inventory.Device) R,
) []R {
	var own, others [][]inventory.Device
	for _, nics := range byVMM(held) {
		if slices.ContainsFunc(nics, func(dev inventory.Device) bool { return !dev.IsUntrusted() }) {
			own = append(own, nics)
		} else {
			others = append(others, nics)
		}
	}
	return slices.Concat(
		atOnce(ctx, allWait, "guests have taken", own, look),
		atOnce(ctx, OthersWait, "other users' guests have taken", others, look),
	)
}

// atOnce calls look for groups of NICs in parallel, for no longer than within.
func atOnce[R any](ctx context.Context, within time.Duration, taken string, groups [][]inventory.Device,
	look func(ctx, reading context.Context, nics []inventory.Device) R,
) []R {
	asking, cancel := context.WithTimeoutCause(ctx, within, fmt.Errorf("%s %v", taken, within))
	defer cancel()
	start := time.Now()
	found := make([]R, len(groups))
	slots := make(chan struct{}, guestsAtOnce)
	var all sync.WaitGroup
	for i, nics := range groups {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			wait := min(Wait, max(hastyWait, silenceWait-time.Since(start)))
			reading, cancel := context.WithTimeoutCause(asking, wait, noAnswer(wait))
			defer cancel()
			found[i] = look(ctx, reading, nics)
		})
	}
	all.Wait()
	return found
}

// byVMM groups links by the QEMU that holds them and the way in which they were handed over. Groups
// keep the order of the links.
func byVMM(links []inventory.Device) [][]inventory.Device {
	type way struct {
		pid int
		via nic.Via
	}
	var groups [][]inventory.Device
	at := map[way]int{}
	for _, dev := range links {
		w := way{dev.VMMPID(), dev.Want.Via}
		i, known := at[w]
		if !known {
			i = len(groups)
			at[w] = i
			groups = append(groups, nil)
		}
		groups[i] = append(groups[i], dev)
	}
	return groups
}

// Wait bounds how long reading verbs and reconcile wait for a guest's monitor.
const Wait = 2 * time.Second

// WithTimeout bounds by Wait how long a guest is waited for, with a cause that says so.
func WithTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, Wait, noAnswer(Wait))
}

func noAnswer(within time.Duration) error {
	return fmt.Errorf("no answer within %v: %w", within, context.DeadlineExceeded)
}
