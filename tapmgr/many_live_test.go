package tapmgr_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"vmnet/internal/nstest"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

// TestLiveManyNICsAtOnce attaches ten NICs to each of ten guests, all at the same time: nine
// of each by one Manager, one by a process of its own. Then half of the guests lose theirs by
// force, and the others die.
func TestLiveManyNICsAtOnce(t *testing.T) {
	const guests, perGuest = 10, 10
	h := newHost(t)
	running := make([]*guest, guests)
	for i := range running {
		running[i] = h.empty()
	}
	var all jobs
	for _, g := range running {
		process := h.command(order{Spec: g.spec("net0")})
		all.add(func() error {
			out, err := process.CombinedOutput()
			if err != nil {
				return fmt.Errorf("a process of its own: %w: %s", err, out)
			}
			return nil
		})
		for i := 1; i < perGuest; i++ {
			all.add(func() error {
				_, err := h.Attach(h.context(60*time.Second), g.spec(fmt.Sprintf("net%d", i)))
				return err
			})
		}
	}
	t.Logf("%d attaches to %d guests took %v", guests*perGuest, guests, all.run(t))
	h.allForward(guests * perGuest)

	for _, g := range running[:guests/2] {
		for i := range perGuest {
			all.add(func() error {
				nicID := fmt.Sprintf("net%d", i)
				_, err := h.Detach(h.context(60*time.Second),
					tapmgr.DetachSpec{Target: nic.Target{VM: g.name}, NIC: nicID, Force: true})
				return err
			})
		}
	}
	for _, g := range running[guests/2:] {
		all.add(g.Kill)
	}
	t.Logf("%d detaches, and the death of %d guests, took %v", guests*perGuest/2, guests/2, all.run(t))
	h.settled()
	for _, g := range running {
		_ = g.Kill() // if QEMU keeps the tap until the paused guest releases it, it goes now
	}
	h.noPorts()
	if list, err := h.List(""); err != nil || len(list) > 0 {
		t.Errorf("list %+v, %v: want nothing left", list, err)
	}
	h.reconciled()
}

// allForward demands of list and check that so many NICs are there and as they should be.
func (h *host) allForward(want int) {
	h.Helper()
	list, err := h.List("")
	wrong := slices.DeleteFunc(slices.Clone(list), func(nic nic.NIC) bool {
		return nic.State == "forwarding" && nic.PID != 0
	})
	if err != nil || len(list) != want || len(wrong) > 0 {
		h.Errorf("list: %d NICs, %v; these are wrong: %+v", len(list), err, wrong)
	}
	checked, err := h.Check(h.context(20 * time.Second))
	if err != nil || checked.NICs != want || len(checked.Differences) > 0 || len(checked.Notices) > 0 {
		h.Errorf("check: %+v, %v", checked, err)
	}
	h.reconciled()
}

// noPorts demands that soon no tap is there.
func (h *host) noPorts() {
	h.Helper()
	nstest.Eventually(h, 30*time.Second, "no tap is there", func() bool {
		taps, err := h.nl.Links("tun", 0)
		return err == nil && len(taps) == 0
	})
}

// jobs are functions that run at the same time.
type jobs []func() error

func (j *jobs) add(f func() error) { *j = append(*j, f) }

// run runs them, demands that all succeed, and tells how long that took.
func (j *jobs) run(t testing.TB) time.Duration {
	t.Helper()
	start := time.Now()
	var wg sync.WaitGroup
	for _, f := range *j {
		wg.Go(func() {
			if err := f(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	*j = nil
	return time.Since(start)
}
