package watch

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/digitalocean/go-qemu/qmp/raw"

	"vmnet/libvirt"
	"vmnet/libvirt/domainxml"
	"vmnet/qmp"
	"vmnet/tapmgr"
)

// fakes are guests that are asked, with the times when they were asked.
type fakes struct {
	mu     sync.Mutex
	start  time.Time
	all    []tapmgr.Mirror
	asked  map[int][]time.Duration // by process
	hung   int                     // how many libvirt guests do not answer
	awake  chan struct{}           // until this is closed
	err    error                   // what the others answer
	inAll  map[int]bool            // all multicast is accepted
	events chan libvirt.Event
}

func (f *fakes) Mirrors(context.Context) ([]tapmgr.Mirror, error) { return f.all, nil }

// ask asks the fakes that stand for libvirt guests.
func (f *fakes) ask(ctx context.Context, x tapmgr.Mirror) (filters []raw.RxFilterInfo, err error) {
	err = f.WithMonitor(ctx, x, func(c *qmp.Conn) (err error) {
		filters, err = filtersBy(ctx, c)
		return err
	})
	return filters, err
}

func (f *fakes) WithMonitor(ctx context.Context, x tapmgr.Mirror, use func(*qmp.Conn) error) error {
	f.mu.Lock()
	f.asked[x.PID] = append(f.asked[x.PID], time.Since(f.start))
	f.mu.Unlock()
	if err := f.answer(ctx, x.PID); err != nil {
		return err
	}
	c, err := qmp.Through(ctx, answers(`{"return": [{"name": "`+x.Device+`"}]}`))
	if err != nil {
		return err
	}
	defer c.Close()
	return use(c)
}

func (f *fakes) answer(ctx context.Context, pid int) error {
	if pid >= f.hung {
		return f.err
	}
	select {
	case <-f.awake:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *fakes) set(x tapmgr.Mirror, all bool) (changed bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	changed = f.inAll[x.PID] != all
	f.inAll[x.PID] = all
	return changed, nil
}

func (f *fakes) Follow(x tapmgr.Mirror, _ []net.HardwareAddr) (bool, error) { return f.set(x, false) }

func (f *fakes) TakeAll(x tapmgr.Mirror) (bool, error) { return f.set(x, true) }

// mirrorFakes mirrors n libvirt guests and n guests with monitors of their own while use runs. The
// latter have numbers from 100.
func mirrorFakes(t *testing.T, n, hung int, err error, use func(f *fakes)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f := &fakes{
			start: time.Now(), asked: map[int][]time.Duration{}, hung: hung, err: err,
			awake: make(chan struct{}), inAll: map[int]bool{}, events: make(chan libvirt.Event),
		}
		for i := range n {
			for _, pid := range []int{i, 100 + i} {
				x := tapmgr.Mirror{Device: "net0"}
				x.PID, x.IsLibvirts = pid, pid < 100
				if x.IsLibvirts {
					x.UUID = uuidOf(pid).String()
				}
				f.all = append(f.all, x)
			}
		}
		m := newMirrors(&watcher{Config: Config{Report: func(Report) {}}}, f)
		m.domains.open = func(context.Context) ask { return f.ask }
		m.changes = &libvirt.Subscription{C: f.events}
		ctx, cancel := context.WithCancel(t.Context())
		var work sync.WaitGroup
		work.Go(func() { m.work(ctx) })
		use(f)
		cancel()
		work.Wait()
	})
}

func uuidOf(pid int) domainxml.UUID { return domainxml.UUID{15: byte(pid)} }

// times returns how often a guest was asked, once all goroutines are blocked.
func (f *fakes) times(pid int) int {
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.asked[pid])
}

func (f *fakes) takesAll(pid int) bool {
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.inAll[pid]
}

func TestGuestsThatHangDelayNobody(t *testing.T) {
	const hung, n = maxAsks - 1, 20
	mirrorFakes(t, n, hung, nil, func(f *fakes) {
		time.Sleep(pollEvery)
		for pid := range n {
			if f.times(pid) != 1 || f.times(100+pid) != 1 {
				t.Errorf("after a tick: guest %d was asked %d times, the one with an own monitor %d times",
					pid, f.times(pid), f.times(100+pid))
			}
		}
		f.events <- libvirt.Event{Domain: libvirt.Domain{UUID: uuidOf(n - 1)}}
		time.Sleep(eventPause)
		if f.times(n-1) != 2 {
			t.Errorf("a guest that has changed something was asked %d times", f.times(n-1))
		}
		time.Sleep(5 * time.Minute)
		for pid := range hung {
			if f.times(pid) != 1 || !f.takesAll(pid) {
				t.Errorf("guest %d hangs: asked %d times, takes in all: %v", pid, f.times(pid), f.takesAll(pid))
			}
		}
		if f.times(n-1) < 10 || f.times(100) < 150 {
			t.Errorf("asked %d times, and %d times by its own monitor", f.times(n-1), f.times(100))
		}
	})
}

// TestGuestsThatCannotBeAskedTakeInAll: so many guests hang that libvirt cannot ask others either.
func TestGuestsThatCannotBeAskedTakeInAll(t *testing.T) {
	const n = maxAsks + 1
	mirrorFakes(t, n, n, nil, func(f *fakes) {
		time.Sleep((maxMisses + 2) * pollEvery)
		for pid := range n {
			if !f.takesAll(pid) || f.takesAll(100+pid) {
				t.Errorf("%d takes in all: %v; the one with an own monitor: %v",
					pid, f.takesAll(pid), f.takesAll(100+pid))
			}
		}
		close(f.awake)
		for pid := range n {
			if f.times(pid) != 1 || f.takesAll(pid) {
				t.Errorf("%d after its answer: asked %d times, takes in all: %v", pid, f.times(pid), f.takesAll(pid))
			}
		}
	})
}

func TestGuestsThatCannotBeAskedAreLetBe(t *testing.T) {
	mirrorFakes(t, 1, 0, errors.New("no"), func(f *fakes) {
		time.Sleep((maxMisses + 1) * pollEvery)
		if f.times(0) < maxMisses || !f.takesAll(0) {
			t.Errorf("asked %d times at first, takes in all: %v", f.times(0), f.takesAll(0))
		}
		time.Sleep(5 * time.Minute)
		before := f.times(0)
		time.Sleep(5 * time.Minute)
		if n := f.times(0) - before; n < 8 || n > 11 {
			t.Errorf("asked %d times in 5 minutes", n)
		}
		before = f.times(0)
		f.events <- libvirt.Event{Domain: libvirt.Domain{UUID: uuidOf(0)}}
		time.Sleep(eventPause)
		if f.times(0) != before+1 {
			t.Errorf("not asked when it has changed something: %v", f.asked[0])
		}
	})
}
