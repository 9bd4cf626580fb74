package bpfguard

import (
	"encoding/binary"
	"errors"
	"runtime"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"vmnet/bridge/portsec"
	"vmnet/bridge/portsec/portsectest"
	"vmnet/internal/leaktest"
	"vmnet/internal/nstest"
	"vmnet/testvm/lab"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// tcNext and tcDrop are TC_ACT_UNSPEC and TC_ACT_SHOT (include/uapi/linux/pkt_cls.h).
const (
	tcNext = 0xffffffff
	tcDrop = 2
)

// runs reports whether BPF_PROG_TEST_RUN takes the frame: it must have a payload and, by its
// EtherType, a whole header of IPv4 or IPv6 (bpf_prog_test_run_skb in net/bpf/test_run.c). A tap
// takes shorter ones: see TestLiveTap.
func runs(f []byte) bool {
	if len(f) <= 14 {
		return false
	}
	switch binary.BigEndian.Uint16(f[12:]) {
	case 0x0800:
		return len(f) >= 14+20
	case 0x86dd:
		return len(f) >= 14+40
	}
	return true
}

// An engine is the program for one configuration, without a device.
type engine struct {
	t        testing.TB
	program  *ebpf.Program
	counters *ebpf.Map
	checker  *portsec.Checker
	last     [portsec.Reasons]uint64
}

func newEngine(t testing.TB, cfg portsec.Config) *engine {
	t.Helper()
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	spec, err := object()
	if err != nil {
		t.Fatal(err)
	}
	counters, err := ebpf.NewMap(spec.Maps[dropsMap])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { counters.Close() })
	p, err := load(cfg, &loaded{maps: map[string]*ebpf.Map{dropsMap: counters}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return &engine{t: t, program: p, counters: counters, checker: portsec.NewChecker(cfg)}
}

// verdict runs the program for a frame. To read the counter of the reason that is expected first
// saves most system calls.
func (e *engine) verdict(frame []byte, expected portsec.Reason) portsec.Reason {
	e.t.Helper()
	action, err := e.program.Run(&ebpf.RunOptions{Data: frame})
	if err != nil {
		e.t.Fatalf("run for %x: %v", frame, err)
	}
	if action == tcNext && expected == portsec.Pass {
		return portsec.Pass // finish reads the counters
	}
	var each []uint64
	if err := e.counters.Lookup(uint32(expected), &each); err != nil {
		e.t.Fatal(err)
	}
	var n uint64
	for _, of := range each {
		n += of
	}
	why := expected
	if n == e.last[expected]+1 {
		e.last[expected] = n
	} else {
		why = e.counted()
	}
	if want := map[bool]uint32{true: tcNext, false: tcDrop}[why == portsec.Pass]; action != want {
		e.t.Errorf("%x: action %d with reason %s", frame, int32(action), why)
	}
	return why
}

// finish fails the test if more frames were counted than verdict has returned.
func (e *engine) finish() {
	e.t.Helper()
	if why := e.counted(); why != portsec.Pass {
		e.t.Errorf("a frame that passes was counted as %s", why)
	}
}

// counted returns the reason whose counter has changed.
func (e *engine) counted() portsec.Reason {
	e.t.Helper()
	l := loaded{maps: map[string]*ebpf.Map{dropsMap: e.counters}}
	var now [portsec.Reasons]uint64
	if err := l.count(dropsMap, now[:]); err != nil {
		e.t.Fatal(err)
	}
	why := difference(e.t, e.last, now)
	e.last = now
	return why
}

func difference(t testing.TB, before, after [portsec.Reasons]uint64) (why portsec.Reason) {
	t.Helper()
	for r := range after {
		switch n := after[r] - before[r]; {
		case n == 0:
		case n == 1 && why == portsec.Pass && r != 0:
			why = portsec.Reason(r)
		default:
			t.Errorf("%d more frames were counted as %s, beside %s", n, portsec.Reason(r), why)
		}
	}
	return why
}

func TestLiveTable(t *testing.T) {
	nstest.RequireRoot(t)
	compareTable(t)
}

func TestLabTable(t *testing.T) {
	lab.Inside(t)
	compareTable(t)
}

// compareTable runs the program for each named frame.
func compareTable(t *testing.T) {
	t.Helper()
	engines := map[string]*engine{}
	for _, c := range portsectest.Table() {
		if !runs(c.Frame) {
			continue
		}
		e := engines[c.Config.String()]
		if e == nil {
			e = newEngine(t, c.Config)
			engines[c.Config.String()] = e
		}
		if got := e.verdict(c.Frame, c.Want); got != c.Want {
			t.Errorf("%s: %s, want %s", c.Name, got, c.Want)
		}
	}
	for _, e := range engines {
		e.finish()
	}
}

func TestLiveRandomFrames(t *testing.T) {
	nstest.RequireRoot(t)
	compareRandom(t, 20_000)
}

func TestLabRandomFrames(t *testing.T) {
	lab.Inside(t)
	compareRandom(t, 10_000)
}

// compareRandom runs both engines for random frames, and each with its share of the configurations.
func compareRandom(t *testing.T, frames int) {
	t.Helper()
	configs := portsectest.Configs()
	var seen [portsec.Reasons]int
	for i, cfg := range configs {
		e := newEngine(t, cfg)
		random := portsectest.NewRandom(uint64(i))
		for n := 0; n < frames/len(configs)+1; {
			f := random.Next()
			if !runs(f) {
				continue
			}
			n++
			want := e.checker.Verdict(f)
			seen[want]++
			if got := e.verdict(f, want); got != want {
				t.Fatalf("%s: %x: the kernel says %s, Go says %s", cfg, f, got, want)
			}
		}
		e.finish()
	}
	for r, n := range seen {
		if n == 0 {
			t.Errorf("no frame was %s", portsec.Reason(r))
		}
	}
	t.Log(seen)
}

func TestLiveKnownFrames(t *testing.T) {
	nstest.RequireRoot(t)
	compareKnown(t, 20_000)
}

func TestLabKnownFrames(t *testing.T) {
	lab.Inside(t)
	compareKnown(t, 10_000)
}

// compareKnown runs the program for random frames whose verdicts follow from how they were built.
// TestKnown of package portsec does so with the switch's engine.
func compareKnown(t *testing.T, frames int) {
	t.Helper()
	random, e := portsectest.NewRandom(8), newEngine(t, portsectest.Config())
	for n := 0; n < frames; {
		c := random.Known()
		if !runs(c.Frame) {
			continue
		}
		n++
		if got := e.verdict(c.Frame, c.Want); got != c.Want {
			t.Fatalf("%s: %x: %s, want %s", c.Name, c.Frame, got, c.Want)
		}
	}
	e.finish()
}

// TestLiveForbidden: without privilege for BPF, the error names the cure.
func TestLiveForbidden(t *testing.T) {
	nstest.RequireRoot(t)
	errs := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread, which has lost its capabilities, ends
		h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var sets [2]unix.CapUserData
		if err := unix.Capset(&h, &sets[0]); err != nil {
			errs <- err
			return
		}
		_, err := load(portsectest.Config(), nil)
		errs <- err
	}()
	err := <-errs
	if !errors.Is(err, ErrUnavailable) || !errors.Is(err, unix.EPERM) ||
		!strings.Contains(err.Error(), "run it as root") {
		t.Errorf("%v", err)
	}
}
