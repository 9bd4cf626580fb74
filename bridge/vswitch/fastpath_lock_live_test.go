package vswitch

import (
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
)

// fastPorts makes a switch with packet ports on taps, and returns the taps' queues.
func fastPorts(t *testing.T, n int) (sw *Switch, ports []*Port, guests []*os.File) {
	t.Helper()
	ns := nstest.New(t)
	sw = New(Config{})
	t.Cleanup(func() {
		if err := sw.Close(); err != nil {
			t.Error(err)
		}
	})
	for i := range n {
		name := fmt.Sprintf("t%d", i)
		tap, err := tun.Create(ns, name, false)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = tap.Close() })
		h := nstest.Handle(t, ns)
		link, err := h.LinkByName(name)
		if err == nil {
			err = h.LinkSetUp(link)
		}
		if err != nil {
			t.Fatal(err)
		}
		w, err := OpenPacket(ns.Path(), name)
		if err != nil {
			t.Fatal(err)
		}
		p, err := sw.AddPort(name, w, vport.Config{})
		if err != nil {
			t.Fatal(err)
		}
		if f := p.Stats().FastPath; !f.On {
			t.Fatalf("the fast path is off: %s", f.Why)
		}
		ports, guests = append(ports, p), append(guests, tap.Queues()[0])
	}
	return sw, ports, guests
}

func keyBehind(port, i int) Key { return keyOf(2<<40|uint64(port)<<32|uint64(i), defaultVLAN) }

// TestLiveFastPathNumbers has a port leave while it is introduced by a number. Another port must
// not get that number: the kernel would know it as either.
func TestLiveFastPathNumbers(t *testing.T) {
	sw, ports, _ := fastPorts(t, 3)
	f := &sw.fast
	number := func(to *Port) int {
		f.numberOf(ports[0], to)
		return slices.IndexFunc(ports[0].fast.ports[:], func(c fastTarget) bool { return c.to == to })
	}
	f.mu.Lock() // no introduction ends
	defer f.mu.Unlock()
	first := number(ports[1])
	f.unjoin(ports[1], false)
	if second := number(ports[2]); first < 0 || second < 0 || second == first {
		t.Errorf("numbers %d and %d", first, second)
	}
}

// fill has the kernel forward frames from n stations behind one port to n behind another.
func fill(t *testing.T, from, to *Port, n int) {
	t.Helper()
	sw := from.sw
	for i := range n {
		src, dst := keyBehind(from.index, i), keyBehind(to.index, i)
		sw.fdb.Learn(src, from.index)
		sw.fdb.Learn(dst, to.index)
		nstest.Eventually(t, 10*time.Second, "an entry of the fast path", func() bool {
			sw.fast.add(from, to, src, dst)
			sw.fast.mu.Lock()
			defer sw.fast.mu.Unlock()
			return from.fast.targets[dst] != nil && from.fast.sources[src] != nil
		})
	}
}

// TestLiveFastPathTickLetsReceiversIn looks whether another goroutine gets the lock while a tick
// has looked at some of the addresses, and not at the others.
func TestLiveFastPathTickLetsReceiversIn(t *testing.T) {
	sw, ports, _ := fastPorts(t, 2)
	fill(t, ports[0], ports[1], 1000)
	f := &sw.fast
	between := func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		first := -1
		for _, e := range ports[0].fast.sources {
			if first >= 0 && e.idle != first {
				return true
			}
			first = e.idle
		}
		return false
	}
	nstest.Eventually(t, 10*time.Second, "the lock within a tick", func() bool {
		f.mu.Lock()
		for _, e := range ports[0].fast.sources {
			e.idle = 0
		}
		f.mu.Unlock()
		done := make(chan struct{})
		go func() {
			f.tick(0)
			close(done)
		}()
		for {
			select {
			case <-done:
				return false
			default:
			}
			if between() {
				<-done
				return true
			}
		}
	})
}

// TestLiveFastPathCountsTheLastFrames removes a port while the kernel forwards frames to it: all
// are in the other port's counter.
func TestLiveFastPathCountsTheLastFrames(t *testing.T) {
	sw, ports, guests := fastPorts(t, 2)
	fill(t, ports[0], ports[1], 1500)
	k := keyBehind(1, 0)
	frame := slices.Concat(make([]byte, vnetLen), k.MAC(), keyBehind(0, 0).MAC(), []byte{0x88, 0xb5}, make([]byte, 46))
	was := ports[0].Stats().Total().RxFrames
	written, stop := make(chan uint64), atomic.Bool{}
	go func() {
		n := uint64(0)
		for ; !stop.Load(); n++ {
			if _, err := guests[0].Write(frame); err != nil {
				t.Error(err)
				break
			}
		}
		written <- n
	}()
	nstest.Eventually(t, 10*time.Second, "the fast path", func() bool { return ports[0].Stats().FastPath.Frames > 100 })
	err := sw.RemovePort(ports[1].Name())
	stop.Store(true)
	n := <-written
	if err != nil {
		t.Fatal(err)
	}
	nstest.Eventually(t, 10*time.Second, "the last frame", func() bool {
		s := ports[0].Stats()
		// The kernel may forward one while its address is removed.
		return s.Total().RxFrames-was+ports[0].Dropped(Overrun)+1 >= n
	})
}
