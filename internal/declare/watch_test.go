package declare

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"vmnet/internal/guestfile"
	"vmnet/internal/nstest"
	"vmnet/internal/vmm/qemu"
	"vmnet/internal/vmm/qmptest"
	"vmnet/tapmgr/nic"
)

// declared is a directory of files that tests change.
type declared struct {
	mu     sync.Mutex
	guests []*guestfile.Guest
	broken map[string]error
	stamp  int
	told   []string
	reload chan struct{}
}

func (d *declared) read() ([]*guestfile.Guest, map[string]error, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.guests, d.broken, nil
}

func (d *declared) stampText() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return fmt.Sprint(d.stamp)
}

func (d *declared) applied(name string, p *Plan, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	text := name
	if p != nil {
		for _, c := range p.Changes {
			if c.Done {
				text += fmt.Sprintf(" %s %s", c.Action, c.NIC)
			}
		}
	}
	if err != nil {
		text += ": " + err.Error()
	}
	d.told = append(d.told, text)
}

func (d *declared) count(text string) (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, t := range d.told {
		if t == text {
			n++
		}
	}
	return n
}

// write replaces the files.
func (d *declared) write(guests []*guestfile.Guest, broken map[string]error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.guests, d.broken = guests, broken
	d.stamp++
}

// change replaces the files, and has them applied.
func (d *declared) change(guests []*guestfile.Guest, broken map[string]error) {
	d.write(guests, broken)
	d.reload <- struct{}{}
}

// watch runs a Watcher until the test ends.
func watch(t *testing.T, w *Watcher, d *declared) {
	d.reload = make(chan struct{})
	w.Read, w.Stamp, w.Applied, w.Reload = d.read, d.stampText, d.applied, d.reload
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); w.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
}

// until waits until a text was reported n times.
func (d *declared) until(t *testing.T, text string, n int) {
	t.Helper()
	nstest.Eventually(t, 30*time.Second, text, func() bool { return d.count(text) >= n })
}

// TestWatch: a guest gets its NICs at each start, and others when its file changes.
func TestWatch(t *testing.T) {
	l := newLab(t)
	d := &declared{guests: []*guestfile.Guest{guestOf(t, "P2", "{net0: {bridge: br0}}")}}
	watch(t, &Watcher{Applier: l.ap}, d)
	q := qmptest.Start(t, qmptest.Config{Name: "P2"})
	start := time.Now()
	d.until(t, "P2 attach net0", 1)
	t.Logf("attached %v after its monitor listened", time.Since(start).Round(time.Millisecond))
	l.are(q, "net0 br0 up")
	q.Kill()
	q = qmptest.Start(t, qmptest.Config{Name: "P2"})
	d.until(t, "P2 attach net0", 2)
	l.are(q, "net0 br0 up")

	d.change([]*guestfile.Guest{guestOf(t, "P2", "{net0: {bridge: br1}, net1: {bridge: br0}}")},
		map[string]error{"P3": errors.New("broken")})
	d.until(t, "P2 set net0 attach net1", 1)
	d.until(t, "P3: broken", 1)
	l.are(q, "net0 br1 up", "net1 br0 up")

	// A file that is broken or gone changes nothing of its guest.
	d.change(nil, map[string]error{"P2": errors.New("broken")})
	d.until(t, "P2: broken", 1)
	d.change([]*guestfile.Guest{guestOf(t, "P2", "{net0: {bridge: br1}, net1: {bridge: br0}}")}, nil)
	d.until(t, "P2", 1)
	l.are(q, "net0 br1 up", "net1 br0 up")
}

// TestWatchTriesAgain: a failure is reported once and tried again; a guest that hangs delays no
// other, and a file that is read meanwhile counts.
func TestWatchTriesAgain(t *testing.T) {
	var mu sync.Mutex
	tries := map[string]int{}
	hang := make(chan struct{})
	ap := &Applier{
		Manager: slow{attach: func(ctx context.Context, s nic.Spec) error {
			mu.Lock()
			tries[s.VM+s.Bridge]++
			n := tries[s.VM+s.Bridge]
			mu.Unlock()
			switch {
			case s.VM == "hangs" && s.Bridge == "br0":
				select {
				case <-hang:
				case <-ctx.Done():
				}
			case s.VM == "fails" && n < 4:
				return errors.New("not yet")
			}
			return nil
		}},
		AttachWait: time.Minute, DetachWait: time.Minute,
	}
	ap.look = func() (qemu.Running, error) {
		uid := os.Geteuid()
		return qemu.Running{All: []qemu.Process{process("hangs", 5, uid, false), process("fails", 6, uid, false)}}, nil
	}
	d := &declared{guests: []*guestfile.Guest{
		guestOf(t, "hangs", "{net0: {bridge: br0}}"), guestOf(t, "fails", "{net0: {bridge: br0}}"),
	}}
	watch(t, &Watcher{Applier: ap, listeners: func() (map[uint64]bool, error) { return nil, nil }}, d)
	d.until(t, "fails attach net0", 1)
	if n := d.count("fails attach net0: not yet"); n != 1 {
		t.Errorf("a failure was reported %d times, want once", n)
	}
	d.change([]*guestfile.Guest{guestOf(t, "hangs", "{net0: {bridge: br1}}")}, nil)
	close(hang)
	nstest.Eventually(t, 30*time.Second, "the new file is applied", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return tries["hangsbr1"] == 1
	})
}

// TestWatchReadsAtStart: without a Reload, a file that was written or changed counts when its guest
// starts, and changes nothing of one that runs.
func TestWatchReadsAtStart(t *testing.T) {
	l := newLab(t)
	d := &declared{}
	watch(t, &Watcher{Applier: l.ap}, d)
	q := qmptest.Start(t, qmptest.Config{Name: "P2"})
	nstest.Eventually(t, 30*time.Second, "it is seen to run", func() bool {
		running, err := qemu.Look()
		_, findErr := running.Find("P2")
		return err == nil && findErr == nil
	})
	d.write([]*guestfile.Guest{guestOf(t, "P3", "{net0: {bridge: br0}}")}, nil)
	other := qmptest.Start(t, qmptest.Config{Name: "P3"})
	d.until(t, "P3 attach net0", 1)
	l.have(map[*qmptest.QEMU][]string{q: nil, other: {"net0"}})

	d.write([]*guestfile.Guest{
		guestOf(t, "P2", "{net0: {bridge: br0}}"), guestOf(t, "P3", "{net0: {bridge: br1}}"),
		guestOf(t, "P4", "{net0: {bridge: br0}}"),
	}, nil)
	third := qmptest.Start(t, qmptest.Config{Name: "P4"})
	d.until(t, "P4 attach net0", 1)
	l.have(map[*qmptest.QEMU][]string{q: nil, other: {"net0"}, third: {"net0"}})
	if n := d.count("P3 set net0") + d.count("P2 attach net0"); n > 0 {
		t.Errorf("a guest that ran was changed without a reload: %q", d.told)
	}
	d.reload <- struct{}{}
	d.until(t, "P3 set net0", 1)
	d.until(t, "P2 attach net0", 1)
}

// have demands that guests have devices for these NICs.
func (l *lab) have(want map[*qmptest.QEMU][]string) {
	l.Helper()
	for q, ids := range want {
		var devices []string
		for _, id := range ids {
			devices = append(devices, nic.DeviceID(id))
		}
		if got := slices.Sorted(maps.Keys(q.State().Devices)); !slices.Equal(got, devices) {
			l.Errorf("a guest has %q, want %q", got, devices)
		}
	}
}

// TestWatchLooksAgain: a monitor that listens before QEMU is executed, as libvirt's does, is
// QEMU's a moment later.
func TestWatchLooksAgain(t *testing.T) {
	var mu sync.Mutex
	sockets := map[uint64]bool{1: true}
	looks := -1 // since the monitor listens
	attached := make(chan int, 1)
	ap := &Applier{
		Manager: slow{attach: func(context.Context, nic.Spec) error {
			mu.Lock()
			defer mu.Unlock()
			attached <- looks
			return nil
		}},
		AttachWait: time.Minute, DetachWait: time.Minute,
	}
	ap.look = func() (r qemu.Running, err error) {
		mu.Lock()
		defer mu.Unlock()
		if looks >= 0 {
			looks++
		}
		if looks > 2 {
			r.All = []qemu.Process{process("P2", 5, os.Geteuid(), true)}
		}
		return r, nil
	}
	d := &declared{guests: []*guestfile.Guest{guestOf(t, "P2", "{net0: {bridge: br0}}")}}
	watch(t, &Watcher{Applier: ap, listeners: func() (map[uint64]bool, error) {
		mu.Lock()
		defer mu.Unlock()
		return maps.Clone(sockets), nil
	}}, d)
	mu.Lock()
	sockets[2], looks = true, 0
	mu.Unlock()
	if n := <-attached; n != 4 { // Apply looks as well
		t.Errorf("attached after %d looks, want the first that finds it", n)
	}
	d.until(t, "P2 attach net0", 1)
}

// TestWatchRests: a user with very many sockets, whose list takes long, does not keep watch busy.
func TestWatchRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const takes, watched = 100 * time.Millisecond, 20 * time.Second
		listed := 0
		ap := &Applier{look: func() (qemu.Running, error) { return qemu.Running{}, nil }}
		d := &declared{guests: []*guestfile.Guest{guestOf(t, "P2", "{net0: {bridge: br0}}")}}
		w := &Watcher{Applier: ap, Read: d.read, Stamp: d.stampText, Applied: d.applied}
		w.listeners = func() (map[uint64]bool, error) {
			listed++
			time.Sleep(takes)
			return nil, nil
		}
		ctx, cancel := context.WithTimeout(t.Context(), watched)
		defer cancel()
		w.Run(ctx)
		if busy := takes * time.Duration(listed); listed < 2 || busy > watched/lookPause {
			t.Errorf("the sockets were listed %d times, for %v of %v", listed, busy, watched)
		}
	})
}

// TestWatchTellsOfAGuest: an error that is about a guest's processes comes with its plan, and so
// not as that of a file.
func TestWatchTellsOfAGuest(t *testing.T) {
	ap := &Applier{}
	uid := os.Geteuid()
	ap.look = func() (qemu.Running, error) {
		return qemu.Running{All: []qemu.Process{process("P2", 5, uid, false), process("P2", 6, uid, false)}}, nil
	}
	d := &declared{guests: []*guestfile.Guest{guestOf(t, "P2", "{net0: {bridge: br0}}")}}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w := &Watcher{Applier: ap, Read: d.read, Stamp: d.stampText, Applied: func(name string, p *Plan, err error) {
		if !errors.Is(err, qemu.ErrAmbiguous) || p == nil || p.VM != "P2" {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
		cancel()
	}}
	w.Run(ctx)
}

// TestWatchMany: more guests than are worked on at once get their NICs.
func TestWatchMany(t *testing.T) {
	l := newLab(t)
	d := &declared{}
	var guests []*guestfile.Guest
	for i := range atOnce + 4 {
		vm := fmt.Sprint("P", i)
		qmptest.Start(t, qmptest.Config{Name: vm})
		guests = append(guests, guestOf(t, vm, "{net0: {bridge: br0}, net1: {bridge: br1}}"))
	}
	d.write(guests, nil)
	watch(t, &Watcher{Applier: l.ap}, d)
	for _, g := range guests {
		d.until(t, g.VM+" attach net0 attach net1", 1)
	}
}
