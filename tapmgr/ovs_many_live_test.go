package tapmgr_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"vmnet/internal/nstest"
	"vmnet/internal/ovs"
	"vmnet/internal/vmm/qmptest"
	"vmnet/tapmgr/nic"
)

// TestLiveOVSManyGuests attaches 200 guests to one bridge at the same time. Each has its row, its
// tap and its own OpenFlow number. They are killed at the same time, and one reconcile removes what
// is left.
func TestLiveOVSManyGuests(t *testing.T) {
	const guests = 200
	h := newOVSHost(t)
	running := map[string]*fakeGuest{} // by the interface's name
	var all, deaths jobs
	for range guests {
		g := h.fake(qmptest.Config{})
		running[g.link("net0")] = g
		all.add(func() error {
			_, err := h.Attach(h.context(2*time.Minute), h.spec(g, "net0"))
			return err
		})
		deaths.add(func() error { g.Kill(); return nil })
	}
	t.Logf("%d attaches at once took %v", guests, all.run(t))
	rows := strings.Split(h.Vsctl("--bare", "--format=csv", "--no-headings",
		"--columns=name,ofport,error,external_ids", "list", "Interface"), "\n")
	numbers := map[string]string{}
	for _, row := range rows {
		name, rest, _ := strings.Cut(row, ",")
		g := running[name]
		if g == nil {
			continue // br-int's own
		}
		number, rest, _ := strings.Cut(rest, ",")
		if other := numbers[number]; other != "" || !strings.HasPrefix(rest, ",") || // an error, which is empty
			!strings.Contains(rest, "iface-id="+nic.DefaultIfaceID(g.Name, "net0")) {
			t.Errorf("row %q; %q has its number", row, other)
		}
		numbers[number] = name
	}
	if len(numbers) != guests {
		t.Errorf("%d of %d guests have rows", len(numbers), guests)
	}
	h.allForward(guests)

	deaths.run(t)
	h.noTapsBut(2) // br-int's, and the datapath's
	if left := len(h.ports()); left != guests {
		t.Fatalf("%d rows: this test is about rows that are left", left)
	}
	start := time.Now()
	actions, err := h.Reconcile(h.context(60*time.Second), false)
	t.Logf("%d rows were removed within %v", len(actions), time.Since(start))
	if err != nil || len(actions) != guests {
		t.Errorf("reconcile: %d actions, %v", len(actions), err)
	}
	h.noRows("after the guests' end")
}

// noTapsBut demands that soon only so many taps are there.
func (h *ovsHost) noTapsBut(want int) {
	h.Helper()
	nstest.Eventually(h, 60*time.Second, fmt.Sprintf("%d taps are left", want), func() bool {
		taps, err := h.nl.Links("tun", 0)
		return err == nil && len(taps) == want
	})
}

// TestLiveOVSManyStaleRows: one reconcile removes a thousand rows of NICs that have gone, within a
// second on a quiet machine.
func TestLiveOVSManyStaleRows(t *testing.T) {
	const rows = 1000
	h := newOVSHost(t)
	inode, err := h.ns.Inode()
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"--no-wait"}
	for i := range rows {
		name := fmt.Sprint("gone", i)
		owner := ovs.Owner{VM: fmt.Sprint("P", i), NIC: "net0", Place: ovs.Here(inode), Link: 1e6 + i}
		args = append(args, "--", "add-port", "br-int", name, "--", "set", "Port", name,
			fmt.Sprintf("external_ids:vmnet=%q", owner))
	}
	h.Vsctl(args...)
	start := time.Now()
	actions, err := h.Reconcile(h.context(60*time.Second), false)
	took := time.Since(start)
	t.Logf("%d rows were removed within %v", len(actions), took)
	failed := slices.ContainsFunc(actions, func(a nic.Action) bool { return a.Error != "" })
	if err != nil || failed || len(actions) != rows {
		t.Errorf("reconcile: %d actions, %v", len(actions), err)
	}
	if took > nstest.Patience(20*time.Second) {
		t.Errorf("it took %v", took)
	}
	h.noRows("after reconcile")
}
