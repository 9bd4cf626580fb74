package tapmgr

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
	// silenceWait is for how long guests are waited for that do not answer, altogether: from
	// then on each has hastyWait. So those that answer at once are asked all the same.
	silenceWait = 3 * time.Second
	hastyWait   = 50 * time.Millisecond
	// allWait bounds how long guests are looked at in any case.
	allWait = 30 * time.Second
	// othersWait bounds that for guests that only their users' word makes ours: anybody can
	// run any number of processes that look like a guest and do not answer.
	othersWait = 10 * time.Second
)

// eachGuest looks at the NICs that each VMM holds, many at once, and returns what look has
// found in an order that does not depend on who answers first: that of the links, guests
// of other users' word last. The context reading is ctx with the time that the guest has to
// answer what it is asked.
func eachGuest[R any](ctx context.Context, held []inventory.Device, look func(ctx, reading context.Context, nics []inventory.Device) R) []R {
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
		atOnce(ctx, othersWait, "other users' guests have taken", others, look),
	)
}

// atOnce looks at groups of NICs, no longer than within.
func atOnce[R any](ctx context.Context, within time.Duration, taken string, groups [][]inventory.Device, look func(ctx, reading context.Context, nics []inventory.Device) R) []R {
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
			wait := min(monitorWait, max(hastyWait, silenceWait-time.Since(start)))
			reading, cancel := context.WithTimeoutCause(asking, wait, noAnswer(wait))
			defer cancel()
			found[i] = look(ctx, reading, nics)
		})
	}
	all.Wait()
	return found
}

// byVMM groups links by the QEMU that holds them and the way in which it got them, each group in
// the order of links.
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
