package declare

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
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
	told   []string
	reload chan struct{}
}

func (d *declared) read() ([]*guestfile.Guest, map[string]error, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.guests, d.broken, nil
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

// change replaces the files, and has them read again.
func (d *declared) change(guests []*guestfile.Guest, broken map[string]error) {
	d.mu.Lock()
	d.guests, d.broken = guests, broken
	d.mu.Unlock()
	d.reload <- struct{}{}
}

// watch runs a Watcher until the test ends.
func watch(t *testing.T, w *Watcher, d *declared) {
	d.reload = make(chan struct{})
	w.Read, w.Applied, w.Reload = d.read, d.applied, d.reload
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
		uid := ap.caller()
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
