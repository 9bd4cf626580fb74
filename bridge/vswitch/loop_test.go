package vswitch

import (
	"encoding/binary"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/nstest"
)

// cable joins two stations, as a bridge behind them does: each sends what the other one receives.
func (l *lan) cable(a, b string) {
	l.tb.Helper()
	var carriers sync.WaitGroup
	done := make(chan struct{})
	carry := func(from, to *station) {
		for {
			select {
			case <-done:
				return
			default:
			}
			if f := from.read(); f == nil {
				poll := []unix.PollFd{{Fd: int32(from.fd), Events: unix.POLLIN}}
				_, _ = unix.Poll(poll, 10)
			} else {
				_, _ = unix.Write(to.fd, f)
			}
		}
	}
	for _, pair := range [][2]*station{{l.stations[a], l.stations[b]}, {l.stations[b], l.stations[a]}} {
		carriers.Go(func() { carry(pair[0], pair[1]) })
	}
	l.tb.Cleanup(func() {
		close(done)
		carriers.Wait()
	})
}

// heard collects the notices of a switch.
type heard struct {
	mu   sync.Mutex
	text []string
}

func (h *heard) notice(text string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.text = append(h.text, text)
}

func (h *heard) all() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.Join(h.text, "\n")
}

// TestLoopIsStopped puts a cable between two ports, of switches with and without VLANs, and of
// ports that do not learn.
func TestLoopIsStopped(t *testing.T) {
	deaf := vport.Config{Settings: brport.Settings{NoLearning: true}}
	for name, cfg := range map[string]vport.Config{
		"plain": {}, "VLAN": access(10), "no learning": deaf,
		"storm": {Storm: vport.GuestStorm(vport.GuestFrames)},
	} {
		t.Run(name, func(t *testing.T) {
			var h heard
			l := newLANOf(t, Config{Notice: h.notice}, map[string]vport.Config{"a": cfg, "b": cfg, "c": cfg, "d": cfg})
			l.cable("b", "c")
			a := l.stations["a"]
			if _, err := unix.Write(a.fd, etherFrame(all, mac(1), nil, 46)); err != nil {
				t.Fatal(err)
			}
			b, c := l.port("b"), l.port("c")
			stopped := func() (n int) {
				for _, p := range []*Port{b, c} {
					if s := p.Stats(); s.State == vport.StateStopped && s.Stopped > 0 &&
						s.Stopped <= 10 && s.Loops == 1 {
						n++
					}
				}
				return n
			}
			nstest.Eventually(t, 10*time.Second, "a port is stopped", func() bool { return stopped() > 0 })
			if stopped() != 1 {
				t.Errorf("both ports of the loop are stopped: %+v, %+v", b.Stats(), c.Stats())
			}
			nstest.Eventually(t, 10*time.Second, "the switch reports it", func() bool {
				return strings.Contains(h.all(), "is stopped for 10s: ")
			})
			l.quiet()
			if got := l.say("a", etherFrame(all, mac(1), nil, 60)); got["d"] != 1 {
				t.Errorf("frames of other stations no longer pass: %v", got)
			}

			// A port whose stop ends while the loop is still there is stopped for longer. If the
			// loop is gone, it is not stopped again.
			again := b
			if c.stop.stopped(l.sw.now()) {
				again = c
			}
			again.stop.until.Store(l.sw.now())
			nstest.Eventually(t, 10*time.Second, "it is stopped again", func() bool {
				// A storm limit may drop one.
				_, _ = unix.Write(a.fd, etherFrame(all, mac(1), nil, 47))
				return b.Stats().Loops+c.Stats().Loops == 2 && (strings.Contains(h.all(), "for 20s: ") ||
					again.Stats().Loops == 1)
			})
		})
	}
}

// newLANOf is newLAN for a switch with that Config.
func newLANOf(tb testing.TB, cfg Config, ports map[string]vport.Config) *lan {
	l := newLAN(tb, nil)
	_ = l.sw.Close()
	l.sw = New(cfg)
	for name, p := range ports {
		l.add(name, p)
	}
	return l
}

// quiet waits until stations that no goroutine reads receive nothing any more.
func (l *lan) quiet() {
	l.tb.Helper()
	nstest.Eventually(l.tb, 10*time.Second, "the loop is over", func() bool {
		n := 0
		// not a wait: a circulating frame comes by within this time.
		for end := time.Now().Add(20 * time.Millisecond); time.Now().Before(end); time.Sleep(time.Millisecond) {
			for _, name := range []string{"a", "d"} {
				for l.stations[name].read() != nil {
					n++
				}
			}
		}
		return n == 0
	})
}

// say sends a frame and counts the copies that a and d receive.
func (l *lan) say(from string, frame []byte) map[string]int {
	l.tb.Helper()
	if _, err := unix.Write(l.stations[from].fd, frame); err != nil {
		l.tb.Fatal(err)
	}
	got := map[string]int{}
	nstest.Eventually(l.tb, 10*time.Second, "the frame arrives", func() bool {
		for _, name := range []string{"a", "d"} {
			for f := l.stations[name].read(); f != nil; f = l.stations[name].read() {
				got[name]++
			}
		}
		return len(got) > 0
	})
	return got
}

// TestLoopGuardOff makes a loop of which one port must never be stopped. The other one is.
func TestLoopGuardOff(t *testing.T) {
	l := newLAN(t, map[string]vport.Config{"a": {}, "b": {NoLoopGuard: true}, "c": {}})
	l.cable("b", "c")
	nstest.Eventually(t, 10*time.Second, "the other port is stopped", func() bool {
		_, _ = unix.Write(l.stations["a"].fd, etherFrame(all, mac(1), nil, 46))
		return l.port("c").State() == vport.StateStopped
	})
	if s := l.port("b").Stats(); s.Loops > 0 {
		t.Errorf("%+v", s)
	}
}

// TestHairpinLoopIsStopped has a port that receives its own frames again, and a mirror behind it.
func TestHairpinLoopIsStopped(t *testing.T) {
	l := newLAN(t, map[string]vport.Config{"a": {}, "mirror": {Settings: brport.Settings{Hairpin: true}}})
	m := l.stations["mirror"]
	var carrier sync.WaitGroup
	done := make(chan struct{})
	carrier.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			if f := m.read(); f != nil {
				_, _ = unix.Write(m.fd, f)
				continue
			}
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(m.fd), Events: unix.POLLIN}}, 10)
		}
	})
	defer func() {
		close(done)
		carrier.Wait()
	}()
	if _, err := unix.Write(l.stations["a"].fd, etherFrame(all, mac(1), nil, 46)); err != nil {
		t.Fatal(err)
	}
	nstest.Eventually(t, 10*time.Second, "the mirror's port is stopped", func() bool {
		return l.port("mirror").Stats().Loops == 1
	})
}

// TestNoLoop makes traffic that resembles a loop, faster than it occurs in practice.
func TestNoLoop(t *testing.T) {
	numbered := func(n int, src byte, tags ...string) []byte {
		f := etherFrame(all, mac(src), tags, 60)
		binary.BigEndian.PutUint32(f[len(f)-4:], uint32(n))
		return f
	}
	for name, c := range map[string]struct {
		ports map[string]vport.Config
		talk  func(l *lan)
	}{
		"a station repeats itself": {plain("a", "b"), func(l *lan) {
			for range 300 {
				l.send("a", numbered(1, 1))
			}
		}},
		"a bond sends by both ports in turn": {plain("a", "b", "c"), func(l *lan) {
			for n := range 300 {
				l.send([]string{"a", "b"}[n%2], numbered(n, 1))
			}
		}},
		"two routers share an address (VRRP)": {plain("a", "b", "c"), func(l *lan) {
			for n := range 300 {
				for from, id := range map[string]string{"a": "8100:1", "b": "8100:2"} {
					l.send(from, numbered(n%7, 1, id))
				}
			}
		}},
		"a station roams, and goes on as before": {plain("a", "b", "c"), func(l *lan) {
			for range 60 {
				l.send("a", numbered(1, 1))
			}
			for range echoLimit - 1 { // within one second
				l.send("b", numbered(1, 1))
			}
		}},
		"a firewall joins two VLANs": {map[string]vport.Config{
			"a": access(10), "in": access(10), "out": access(20),
			"b": access(20),
		}, func(l *lan) {
			for n := range 300 {
				l.send("a", numbered(n, 1))
				l.send("out", numbered(n, 1))
			}
		}},
		"a firewall joins two VLANs by tags": {plain("a", "out"), func(l *lan) {
			for n := range 300 {
				l.send("a", numbered(n, 1, "8100:10"))
				l.send("out", numbered(n, 1, "8100:20"))
			}
		}},
		"all ask for the same": {plain("a", "b", "c", "d"), func(l *lan) {
			for n := range 200 {
				for i, from := range []string{"a", "b", "c", "d"} {
					l.send(from, numbered(n%10, byte(i+1)))
				}
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLAN(t, c.ports)
			c.talk(l)
			for _, p := range l.sw.Ports() {
				if s := p.Stats(); s.Loops > 0 || s.State != vport.StateUp || s.Drops[Looped.String()] > 0 {
					t.Errorf("%+v", s)
				}
			}
		})
	}
}

// TestStopGrowsAndForgives checks that a loop that persists stops its port for longer, up to a
// limit, and that a loop that was gone for as long does not.
func TestStopGrowsAndForgives(t *testing.T) {
	var s stop
	now := int64(time.Hour)
	for _, want := range []time.Duration{10, 20, 40, 80, 160, 300, 300} {
		if got := s.begin(now); got != want*time.Second || !s.stopped(now+int64(got)-1) || s.stopped(now+int64(got)) {
			t.Errorf("the port is stopped for %v, want %ds", got, want)
		}
		now = s.until.Load() + int64(time.Second)
	}
	if got := s.begin(s.until.Load() + int64(loopLongest)); got != loopFirst {
		t.Errorf("after a time without a loop: %v", got)
	}
}

func BenchmarkEchoes(b *testing.B) {
	for _, size := range []int{64, 1514} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			sw := New(Config{})
			defer sw.Close()
			p := newPort(sw, "a", 0, &Wire{}, vport.Config{})
			f := frame{data: append(make([]byte, vnetLen), etherFrame(all, mac(1), nil, size-etherLen)...)}
			for i := range b.N {
				sw.echoes.again(&f, false, p, int64(i))
			}
		})
	}
}
