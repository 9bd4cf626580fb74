package vswitch

import (
	"net"
	"slices"
	"testing"
	"time"

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch/offload"
	"vmnet/bridge/vswitch/vport"
)

func TestBucket(t *testing.T) {
	var b bucket
	b.limit(1000)
	passed := 0
	for now := int64(0); now < int64(time.Second); now += int64(10 * time.Microsecond) {
		if b.take(now+int64(time.Hour), 1) {
			passed++
		}
	}
	if passed < 1090 || passed > 1110 { // the frames of a second, and a tenth as the burst
		t.Errorf("%d in a second, want 1100", passed)
	}
	var none bucket
	none.limit(0)
	for range 1000 {
		if !none.take(0, 1) {
			t.Fatal("throttled without a limit")
		}
	}
}

// TestBucketCapsItsDebt checks that a port never waits longer than a second, however many frames
// the switch has refused.
func TestBucketCapsItsDebt(t *testing.T) {
	var b bucket
	b.limit(1)
	now := int64(time.Hour)
	for range 1000 {
		if wait := b.spend(now, 64); wait > maxThrottle {
			t.Fatalf("a wait of %v", wait)
		}
	}
	now += int64(maxThrottle) + b.depth
	if wait := b.spend(now, 1); wait > 0 {
		t.Errorf("after its wait, a wait of %v", wait)
	}
}

func TestStormLimit(t *testing.T) {
	l := newLAN(t, map[string]vport.Config{
		"a": {Storm: vport.Storm{Broadcast: 100, Multicast: 50, Unknown: 20}},
		"b": {},
	})
	l.send("b", etherFrame(all, mac(2), nil, 46))
	for _, c := range []struct {
		why   Reason
		dst   net.HardwareAddr
		burst int
	}{
		{Broadcasts, all, 10},
		{Multicasts, net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, 5},
		{Unknowns, mac(77), 2},
		{Delivered, mac(2), 1000},
	} {
		got := 0
		for range 50 {
			frames := slices.Repeat([][]byte{etherFrame(c.dst, mac(1), nil, 46)}, 20)
			got += len(l.send("a", frames...)["b"])
		}
		if dropped := l.port("a").Dropped(c.why); got < c.burst ||
			(c.why != Delivered && (got > 500 || uint64(got)+dropped != 1000)) {
			t.Errorf("%s: %d passed, %d were dropped", c.why, got, dropped)
		}
	}
}

// TestStormCountsSegments floods super-frames, each of which is 500 frames to a port that takes
// none. The first one uses up the limits of seconds.
func TestStormCountsSegments(t *testing.T) {
	sw, queues := memoryLAN(t, map[string]vport.Config{"in": {Storm: vport.Storm{Unknown: 100}}, "socket": {}},
		map[string]offload.Limits{"in": everything})
	r := receiverOf(sw, "in")
	for i := range 3 {
		r.frames[i] = frame{data: superFrame(50000, 100)}
	}
	r.input(r.frames[:3])
	if got, dropped := len(queues["socket"].sent), r.port.Dropped(Unknowns); got != 500 || dropped != 2 {
		t.Errorf("%d frames were flooded, %d dropped", got, dropped)
	}
}

// TestRefusedFramesThrottleThePort lets stations send frames that the switch refuses. The switch
// must not read them faster than their limit allows.
func TestRefusedFramesThrottleThePort(t *testing.T) {
	l := newLAN(t,
		map[string]vport.Config{"a": {Storm: vport.Storm{Refused: 1000}}, "b": {Storm: vport.Storm{Refused: 1}}})
	refused, start := etherFrame(mac(2), all, nil, 46), time.Now()
	l.send("a", slices.Repeat([][]byte{refused}, 300)...)
	// A burst of 100 is allowed, and a batch is read before it is counted.
	if took := time.Since(start); took < 100*time.Millisecond {
		t.Errorf("300 refused frames were read in %v", took)
	}
	start = time.Now()
	l.send("a", slices.Repeat([][]byte{etherFrame(mac(2), mac(2), nil, 46)}, 300)...)
	if took := time.Since(start); took < 100*time.Millisecond || l.port("a").Dropped(SamePort) < 299 {
		t.Errorf("300 frames to itself were read in %v: %+v", took, l.port("a").Stats())
	}
	l.send("b", slices.Repeat([][]byte{etherFrame(mac(7), mac(3), nil, 46)}, 500)...)
	if b := l.port("b"); b.set.Load().refused.full.Load() != 0 {
		t.Errorf("500 delivered frames count against the limit: %+v", b.Stats())
	}
}

// TestThrottledPortIsRemovedAtOnce removes a throttled port several times, since the machine may
// be busy with something else.
func TestThrottledPortIsRemovedAtOnce(t *testing.T) {
	quickest := time.Hour
	for range 10 {
		l := newLAN(t, map[string]vport.Config{"b": {Storm: vport.Storm{Refused: 1}}})
		l.send("b", slices.Repeat([][]byte{etherFrame(mac(2), all, nil, 46)}, 50)...)
		start := time.Now()
		if err := l.sw.RemovePort("b"); err != nil {
			t.Fatal(err)
		}
		if quickest = min(quickest, time.Since(start)); quickest < maxThrottle/2 {
			return
		}
	}
	t.Errorf("no port was removed in less than %v", quickest)
}

// TestNoPortThrottlesAnother lets an isolated station use the address of a station that the others
// send to.
func TestNoPortThrottlesAnother(t *testing.T) {
	isolated := vport.Config{Settings: brport.Settings{Isolated: true}, Storm: vport.Storm{Refused: 1}}
	l := newLAN(t, map[string]vport.Config{"honest": isolated, "liar": isolated, "up": {}})
	l.send("up", etherFrame(all, mac(9), nil, 46))
	l.send("liar", etherFrame(all, mac(9), nil, 46))
	l.send("honest", slices.Repeat([][]byte{etherFrame(mac(9), mac(1), nil, 46)}, 300)...)
	if p := l.port("honest"); p.set.Load().refused.full.Load() != 0 || p.Dropped(Isolated) != 300 {
		t.Errorf("300 frames count against the limit: %+v", p.Stats())
	}
}
