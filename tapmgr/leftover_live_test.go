package tapmgr_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"vmnet/internal/bench"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// persistentTaps makes taps as ip(8) does; nobody holds them.
func (h *host) persistentTaps(names ...string) {
	h.Helper()
	var lines strings.Builder
	for _, name := range names {
		fmt.Fprintf(&lines, "tuntap add %s mode tap\n", name)
	}
	batch := filepath.Join(h.TempDir(), "batch")
	if err := os.WriteFile(batch, []byte(lines.String()), 0o600); err != nil {
		h.Fatal(err)
	}
	h.ip("-batch", batch)
}

// namedMacvtap makes a macvtap on eth0 in the host's own netns, as for a hand-over by name.
func (h *host) namedMacvtap(name string) {
	h.Helper()
	lower, err := h.nl.Link("eth0")
	if err == nil {
		const modeBridge = 4 // MACVLAN_MODE_BRIDGE
		err = h.nl.Create("macvtap", rtnl.Name(name), rtnl.Lower(lower.Index), rtnl.MacvlanMode(modeBridge))
	}
	if err != nil {
		h.Fatalf("make macvtap %s: %v", name, err)
	}
}

// markOurs gives links the alias of a NIC of a guest that is dead.
func (h *host) markOurs(names ...string) {
	h.Helper()
	for _, name := range names {
		l, err := h.nl.Link(name)
		if err == nil {
			side := "type=tap source=br0"
			if l.Kind == "macvtap" {
				side = "type=macvtap source=eth0 mode=bridge rx=allmulti"
			}
			nic := strings.ReplaceAll(name, "-", "_")
			err = h.nl.Set(l.Index,
				rtnl.Alias("vmnet vm=dead nic="+nic+" "+side+" mac=52:54:00:00:00:01 model=virtio-net-pci queues=1"))
		}
		if err != nil {
			h.Fatal(err)
		}
	}
}

// leftOvers makes so many links of each kind that nobody holds, and returns their names.
func (h *host) leftOvers(each int) []string {
	h.Helper()
	var taps, macvtaps []string
	for i := range each {
		taps, macvtaps = append(taps, fmt.Sprintf("dead-t%02d", i)), append(macvtaps, fmt.Sprintf("dead-m%02d", i))
		h.namedMacvtap(macvtaps[i])
	}
	h.persistentTaps(taps...)
	h.markOurs(append(taps, macvtaps...)...)
	return append(macvtaps, taps...)
}

// holdTap opens a tap that is there already.
func (h *host) holdTap(name string) {
	h.Helper()
	err := h.ns.Do(func() error {
		f, err := os.OpenFile(tun.Device, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		h.Cleanup(func() { _ = f.Close() })
		ifr, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		return unix.IoctlIfreq(int(f.Fd()), unix.TUNSETIFF, ifr)
	})
	if err != nil {
		h.Fatalf("hold %s: %v", name, err)
	}
}

// holdMacvtap opens a macvtap until the test ends.
func (h *host) holdMacvtap(name string) {
	h.Helper()
	h.openMacvtap(name)
}

// groups tells the group number of every link but lo.
func (h *host) groups() map[string]uint32 {
	h.Helper()
	all, err := h.nl.Groups()
	if err != nil {
		h.Fatal(err)
	}
	found := map[string]uint32{}
	for number, links := range all {
		for _, l := range links {
			found[l.Name] = number
		}
	}
	return found
}

// reconcileNamed reconciles and returns the actions by interface.
func (h *host) reconcileNamed(ctx context.Context) map[string]nic.Action {
	h.Helper()
	actions, err := h.Reconcile(ctx, false)
	if err != nil && ctx.Err() == nil {
		h.Fatal(err)
	}
	byName := map[string]nic.Action{}
	for _, a := range actions {
		byName[a.Interface] = a
	}
	if len(byName) != len(actions) {
		h.Errorf("%d actions for %d links: %+v", len(actions), len(byName), actions)
	}
	return byName
}

func TestLiveAllPIDsManyLeftOversGoAtOnceAndNothingElse(t *testing.T) {
	nstest.RequireFirstPIDNS(t)
	h := newHost(t)
	h.wire()
	h.strangers()
	before := h.groups()
	left := h.leftOvers(50)
	h.ip("link", "set", left[0], "group", "7") // that somebody has grouped it does not save it
	h.ip("link", "set", "dead-t00", "master", "br0", "up")

	states := map[nic.State]int{}
	list, err := h.List("")
	for _, nic := range list {
		states[nic.State]++
	}
	if err != nil || states[nic.LeftOver] != len(left) || len(list) != len(left)+3 {
		t.Errorf("list: %v, %v: want %d left over of %d", states, err, len(left), len(left)+3)
	}
	dry, err := h.Reconcile(t.Context(), true)
	if err != nil || len(dry) != len(left)+3 || len(h.groups()) != len(before)+len(left) {
		t.Errorf("dry run: %d actions, %v, %d links: want nothing changed", len(dry), err, len(h.groups()))
	}

	grouped := h.grouped()
	start := time.Now()
	actions := h.reconcileNamed(h.context(20 * time.Second))
	took := time.Since(start)
	t.Logf("%d left-overs went in %v", len(left), took)
	if took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	if err := grouped(); err != nil {
		t.Errorf("not as a group: %v", err)
	}
	for _, name := range left {
		if a := actions[name]; a.Action != "removed: nobody holds it" || !a.Changed || a.Error != "" {
			t.Errorf("%s: %+v", name, a)
		}
		delete(actions, name)
	}
	for _, name := range []string{"held", "held-persist", "held-macvtap"} {
		if want := fmt.Sprintf("left alone: process %d holds it", os.Getpid()); actions[name].Action != want ||
			actions[name].Changed {
			t.Errorf("%s: %+v: want %s", name, actions[name], want)
		}
		delete(actions, name)
	}
	if len(actions) > 0 {
		t.Errorf("more actions: %+v", actions)
	}
	if after := h.groups(); !maps.Equal(before, after) {
		t.Errorf("links and groups %v, want %v", after, before)
	}
}

// strangers are links that nothing may happen to: held ones of ours, and other people's.
func (h *host) strangers() {
	h.Helper()
	h.persistentTaps("plain", "in-group", "held-persist")
	h.ip("link", "set", "in-group", "group", "7")
	tap, err := tun.Create(h.ns, "held", false)
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { _ = tap.Close() })
	h.holdTap("held-persist")
	h.namedMacvtap("other-macvtap")
	h.ip("link", "set", "other-macvtap", "alias", "somebody else's")
	h.namedMacvtap("held-macvtap")
	h.holdMacvtap("held-macvtap")
	h.markOurs("held", "held-persist", "held-macvtap")
}

// grouped watches the steps that are run, and tells how they went.
func (h *host) grouped() (result func() error) {
	err := errors.New("no steps were run")
	h.Run = func(ctx context.Context, list []step.Step) error {
		err = step.Run(ctx, list, nil)
		return err
	}
	return func() error { return err }
}

func TestLiveAllPIDsLeftOversThatAreGrabbedMeanwhileStay(t *testing.T) {
	nstest.RequireFirstPIDNS(t)
	h := newHost(t)
	h.wire()
	left := h.leftOvers(3)
	before := h.groups()
	h.at("delete group", func(do func() error) error {
		if number := h.groups()["dead-t01"]; number == 0 || number != h.groups()["dead-m01"] {
			t.Errorf("group %d: the test comes too early", number)
		}
		h.holdTap("dead-t01")
		h.holdMacvtap("dead-m01")
		return do()
	})
	actions := h.reconcileNamed(h.context(20 * time.Second))
	after := h.groups()
	for _, name := range left {
		grabbed := strings.HasSuffix(name, "01")
		if number, there := after[name]; there != grabbed || number != before[name] {
			t.Errorf("%s: there %v, in group %d; want %v, in its former one", name, there, number, grabbed)
		}
		if failed := strings.Contains(actions[name].Error, nic.ErrInUse.Error()); failed != grabbed {
			t.Errorf("%s: %+v", name, actions[name])
		}
	}
}

func TestLiveAllPIDsLeftOversBesideAStrangerInTheirGroup(t *testing.T) {
	nstest.RequireFirstPIDNS(t)
	h := newHost(t)
	h.wire()
	left := h.leftOvers(2)
	h.persistentTaps("plain")
	var number uint32
	h.at("delete group", func(do func() error) error {
		number = h.groups()[left[0]]
		h.ip("link", "set", "plain", "group", strconv.FormatUint(uint64(number), 10))
		return do()
	})
	for name, a := range h.reconcileNamed(h.context(20 * time.Second)) {
		if a.Error != "" {
			t.Errorf("%s, which should go alone: %+v", name, a)
		}
	}
	after := h.groups()
	if got, there := after["plain"]; !there || got != number {
		t.Errorf("the stranger: there %v, in group %d, want it untouched in %d", there, got, number)
	}
	for _, name := range left {
		if _, there := after[name]; there {
			t.Errorf("%s is still there", name)
		}
	}
}

func TestLiveAllPIDsLeftOversWhenReconcileIsInterrupted(t *testing.T) {
	nstest.RequireFirstPIDNS(t)
	h := newHost(t)
	h.wire()
	left := h.leftOvers(2)
	h.ip("link", "set", left[0], "group", "7")
	before := h.groups()
	ctx, cancel := context.WithCancel(t.Context())
	h.at("delete group", func(func() error) error { cancel(); return errFault })
	actions := h.reconcileNamed(ctx)
	for _, name := range left {
		if actions[name].Error == "" {
			t.Errorf("%s: %+v: want an error", name, actions[name])
		}
	}
	if after := h.groups(); !maps.Equal(before, after) {
		t.Errorf("links and groups %v, want them as before: %v", after, before)
	}
	h.Run = nil
	h.settled()
	if list, err := h.List(""); err != nil || len(list) > 0 {
		t.Errorf("list %+v, %v", list, err)
	}
}

// TestMacvtapIsNoLeftOverWhereHoldersAreUnseen reconciles in a PID namespace: the kernel
// reports that no process holds a tap, but of a macvtap only /proc shows it.
func TestMacvtapIsNoLeftOverWhereHoldersAreUnseen(t *testing.T) {
	h := newUserHost(t)
	h.wire()
	h.leftOvers(1)
	cmd := h.command(order{Reconcile: true})
	cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWPID | syscall.CLONE_NEWNS
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "cannot be seen from here") {
		t.Errorf("%v: %s", err, out)
	}
	h.gone("dead-t00")
	if _, err := h.nl.Link("dead-m00"); err != nil {
		t.Errorf("the macvtap, which somebody unseen may hold: %v", err)
	}
}

// BenchmarkLeftOvers removes 100 links that nobody holds, 50 taps and 50 macvtaps, in a group, as
// reconcile does where the kernel refuses that, and by nothing but one request each.
func BenchmarkLeftOvers(b *testing.B) {
	h := newHost(b)
	h.wire()
	group := &bench.Way{Name: "in a group", Do: func(int) (time.Duration, error) {
		h.leftOvers(50)
		h.Run = nil
		return h.timed(h.reconcileAll)
	}}
	single := &bench.Way{Name: "one by one", Do: func(int) (time.Duration, error) {
		h.leftOvers(50)
		h.Run = func(context.Context, []step.Step) error { return errFault }
		return h.timed(h.reconcileAll)
	}}
	bare := &bench.Way{Name: "bare requests", Do: func(int) (time.Duration, error) {
		names := h.leftOvers(50)
		return h.timed(func() error { return h.deleteEach(names) })
	}}
	bench.Turns(b, 5, group, single, bare)
	bench.Report(b, group, single, bare)
	b.ReportMetric(bench.Ratio(single, group), "single/group")
	b.ReportMetric(bench.Ratio(bare, group), "bare/group")
}

func (h *host) timed(f func() error) (time.Duration, error) {
	start := time.Now()
	err := f()
	return time.Since(start), err
}

// reconcileAll demands that nothing of ours is left.
func (h *host) reconcileAll() error {
	actions, err := h.Reconcile(h.context(30*time.Second), false)
	for _, a := range actions {
		if a.Error != "" {
			err = errors.Join(err, errors.New(a.Error))
		}
	}
	if len(actions) != 100 {
		err = errors.Join(err, fmt.Errorf("%d actions", len(actions)))
	}
	return err
}

func (h *host) deleteEach(names []string) error {
	for _, name := range names {
		l, err := h.nl.Link(name)
		if err == nil {
			err = h.nl.Delete(l.Index)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
