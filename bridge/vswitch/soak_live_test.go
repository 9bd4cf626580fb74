package vswitch_test

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"vmnet/bridge/vswitch"
	"vmnet/internal/nstest"
)

// soakTime is how long TestLiveSoak runs: VMNET_SOAK, or a few seconds.
func soakTime(t *testing.T) time.Duration {
	t.Helper()
	text := os.Getenv("VMNET_SOAK")
	if text == "" {
		return 5 * time.Second
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < time.Second {
		t.Fatalf("VMNET_SOAK=%s: want a duration of at least 1s (%v)", text, err)
	}
	return d
}

// weight is what the process uses.
type weight struct {
	heap       uint64 // bytes, after a collection
	resident   int    // KiB of memory
	files      int
	goroutines int
}

func weigh(t *testing.T) weight {
	t.Helper()
	runtime.GC()
	runtime.GC() // finalizers of the first
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	w := weight{heap: m.HeapAlloc, files: openFiles(t), goroutines: runtime.NumGoroutine()}
	status, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	var size int
	if _, err := fmt.Sscan(string(status), &size, &w.resident); err != nil {
		t.Fatal(err)
	}
	w.resident *= os.Getpagesize() / 1024
	return w
}

// TestLiveSoak keeps a switch busy for VMNET_SOAK ("3m"): streams between ports of all kinds, a
// hostile guest, ports and captures that come and go, addresses that are removed. The process must
// never need more than after the first rounds.
func TestLiveSoak(t *testing.T) {
	sw := newSwitch(t)
	var hosts []*host
	for n, c := range []corner{
		{"tap", 1500, "all"},
		{"queues", 1500, "all"},
		{"packet", 1500, "all"},
		{"socket", 1500, "none"},
	} {
		hosts = append(hosts, c.host(t, sw, n))
	}
	s, where := newStream(t, hosts[0], hosts[1]), newHost(t, 100, "tap0")
	bad := floods(randomSources)(t, sw, guestPort())
	var weights []weight
	for end := time.Now().Add(soakTime(t)); (time.Now().Before(end) || len(weights) < leastRounds) && !t.Failed(); {
		before := s.bytes.Load()
		bad.on.Store(true)
		soakRound(t, sw, hosts, where)
		bad.on.Store(false)
		if s.bytes.Load() == before {
			t.Errorf("the stream has stalled: %+v", weights)
		}
		settle(t)
		weights = append(weights, weigh(t))
	}
	compare(t, weights)
}

// settle waits until what was closed has ended: the numbers of goroutines and files are stable.
func settle(t *testing.T) {
	t.Helper()
	goroutines, files, same := 0, 0, 0
	nstest.Eventually(t, time.Minute, "closed goroutines and files are gone", func() bool {
		g, f := runtime.NumGoroutine(), openFiles(t)
		if same++; g != goroutines || f != files {
			goroutines, files, same = g, f, 0
		}
		return same >= 20
	})
}

// soakRound does everything once.
func soakRound(t *testing.T, sw *vswitch.Switch, hosts []*host, where *host) {
	t.Helper()
	stop := watch(t, sw, len(hosts))
	var wg sync.WaitGroup
	for i := range hosts {
		wg.Go(func() { tcp(t, hosts[i], hosts[(i+1)%len(hosts)], 1<<20) })
	}
	for _, kind := range []string{"socket", "tap"} {
		h := startHolder(t, sw, kind, where)
		end(h.process)
		if err := sw.RemovePort("held"); err != nil {
			t.Error(err)
		}
	}
	for i := range 20 {
		name := fmt.Sprint("s", i)
		w, far, err := vswitch.SocketPair(0)
		if err != nil {
			t.Fatal(err)
		}
		addPort(t, sw, name, w, guestPort())
		_, _ = far.Write(broadcasts(make([]byte, 60)))
		_ = far.Close()
		if err := sw.RemovePort(name); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
	for _, p := range sw.Ports() {
		sw.FDB().FlushPort(p.PortIndex(), false)
	}
	stop()
}

// leastRounds are needed to compare, however slow the machine is.
const leastRounds = 4

// compare checks that the last rounds use no more than the first ones, except for what settles at
// the very beginning.
func compare(t *testing.T, weights []weight) {
	t.Helper()
	if len(weights) < leastRounds {
		t.Fatalf("only %d rounds", len(weights))
	}
	first, last := ends(weights[1:])
	t.Logf("%d rounds: first %+v, last %+v", len(weights), first, last)
	if grows(first, last) {
		t.Errorf("usage grows: %+v", weights)
	}
}

// ends returns the least that the process used in the first rounds and in the last ones.
func ends(weights []weight) (first, last weight) {
	least := func(ws []weight) weight {
		w := ws[0]
		for _, o := range ws {
			w = weight{
				min(w.heap, o.heap), min(w.resident, o.resident),
				min(w.files, o.files), min(w.goroutines, o.goroutines),
			}
		}
		return w
	}
	third := max(1, len(weights)/3)
	first, last = least(weights[:third]), least(weights[len(weights)-third:])
	// What the process opens once may be opened in any of the first rounds.
	for _, w := range weights[:third] {
		first.files, first.goroutines = max(first.files, w.files), max(first.goroutines, w.goroutines)
	}
	return first, last
}

// grows reports whether the process uses more at the end than it may. A port's buffers are 2 MiB.
func grows(first, last weight) bool {
	return last.heap > first.heap+(2<<20) || last.resident > first.resident+first.resident/2 ||
		last.files > first.files || last.goroutines > first.goroutines
}

// TestSoakSeesALeak checks that a leak of one port's buffers in each round, or of one file or
// goroutine in three, is noticed in the fewest rounds that TestLiveSoak accepts.
func TestSoakSeesALeak(t *testing.T) {
	const port = 2 << 20
	for what, leak := range map[string]func(w *weight, round int){
		"a port":          func(w *weight, round int) { w.heap += uint64(round) * port },
		"a file":          func(w *weight, round int) { w.files += round / 3 },
		"a goroutine":     func(w *weight, round int) { w.goroutines += round / 3 },
		"nothing":         func(*weight, int) {},
		"one port in all": func(w *weight, round int) { w.heap += uint64(min(round, 1)) * port },
	} {
		var weights []weight
		for round := range 4 {
			w := weight{10 << 20, 60 << 10, 49, 17}
			leak(&w, round)
			weights = append(weights, w)
		}
		if got, want := grows(ends(weights[1:])), strings.HasPrefix(what, "a "); got != want {
			t.Errorf("%s in each round: grows %v, want %v", what, got, want)
		}
	}
}
