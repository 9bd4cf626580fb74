package vswitch

import (
	"testing"
	"time"

	"vmnet/bridge/portrate"
	"vmnet/bridge/vswitch/vport"
)

// rated are frames of 1000 bytes from a to b.
func rated(n int) (frames [][]byte) {
	for range n {
		frames = append(frames, etherFrame(mac(2), mac(1), nil, 986))
	}
	return frames
}

// TestRateFromAGuest: the port is read less often, and nothing is lost.
func TestRateFromAGuest(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		up     portrate.Limit
		frames int // the burst, and half a second
	}{
		"bits":    {portrate.Limit{Bits: 8e6}, 64 + 500},
		"packets": {portrate.Limit{Packets: 1000}, 250 + 500},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rates := portrate.Config{Up: tc.up}
			if tc.up.Bits != 0 {
				rates.Burst = 64_000
			}
			l := newLAN(t, map[string]vport.Config{"a": {Rates: rates}, "b": {}})
			l.send("b", etherFrame(all, mac(2), nil, 46))
			start, got := time.Now(), 0
			for sent := 0; sent < tc.frames+batchSize; sent += batchSize {
				got += len(l.send("a", rated(batchSize)...)["b"])
			}
			// The last batch is handled before it is waited for.
			if took := time.Since(start); took < 490*time.Millisecond {
				t.Errorf("%d frames in %v", got, took)
			}
			if want := (tc.frames + 2*batchSize - 1) / batchSize * batchSize; got != want {
				t.Errorf("%d frames arrived, want %d", got, want)
			}
		})
	}
}

// TestRateToAGuest: what is over the rate is dropped, and counted at the guest's port.
func TestRateToAGuest(t *testing.T) {
	t.Parallel()
	for name, rates := range map[string]portrate.Config{
		"bits":    {Down: portrate.Limit{Bits: 8e6}, Burst: 64_000},
		"packets": {Down: portrate.Limit{Packets: 1000}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLAN(t, map[string]vport.Config{"a": {}, "b": {Rates: rates}})
			l.send("b", etherFrame(all, mac(2), nil, 46))
			const sent = 100 * batchSize // a burst has 64 of them, or 250
			start, got := time.Now(), 0
			for range 100 {
				got += len(l.send("a", rated(batchSize)...)["b"])
			}
			// Both rates are a frame per millisecond.
			most := 250 + 1 + int(time.Since(start).Milliseconds()) + 1
			if dropped := l.port("b").Dropped(Rated); got > most || got < 50 || got+int(dropped) != sent {
				t.Errorf("%d of %d frames arrived, at most %d may; %d were dropped", got, sent, most, dropped)
			}
		})
	}
}

// TestRateChanges: a port that waits for its rate is read as soon as its rate is another one.
func TestRateChanges(t *testing.T) {
	t.Parallel()
	slow := portrate.Config{Up: portrate.Limit{Bits: 64_000}}
	l := newLAN(t, map[string]vport.Config{"a": {Rates: slow}, "b": {}})
	l.send("b", etherFrame(all, mac(2), nil, 46))
	for range 3 { // 192 kB, of which what exceeds a burst of 128 KiB takes 8 s
		l.send("a", rated(batchSize)...)
	}
	start := time.Now()
	if err := l.sw.SetPort("a", vport.Config{}); err != nil {
		t.Fatal(err)
	}
	if got := len(l.send("a", rated(1)...)["b"]); got != 1 || time.Since(start) > time.Minute {
		t.Errorf("%d frames in %v", got, time.Since(start))
	}
}
