package vswitch_test

import (
	"sync"
	"testing"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/capture"
	"vmnet/bridge/vswitch/vport"
)

// captureTurns starts and ends a capture of ports. Its reader reads, or never does.
func captureTurns(tb testing.TB, sw *vswitch.Switch, reads bool, ports ...string) (turn func(on bool)) {
	var r *capture.Reader
	var wg sync.WaitGroup
	return func(on bool) {
		if r != nil {
			_ = r.Stop()
			if !reads {
				_ = r.Close()
			}
			wg.Wait()
			_ = r.Close()
			r = nil
		}
		if !on {
			return
		}
		var err error
		if r, err = startCapture(sw, capture.Config{Ports: ports, Snaplen: 128}); err != nil {
			tb.Error(err)
			return
		}
		reader := r
		wg.Go(func() {
			for reads {
				if _, err := reader.Next(); err != nil {
					return
				}
			}
		})
	}
}

func startCapture(sw *vswitch.Switch, cfg capture.Config) (*capture.Reader, error) {
	r, far, err := capture.Pipe()
	if err != nil {
		return nil, err
	}
	defer far.Close()
	if err := sw.Capture(far, cfg); err != nil {
		_ = r.Close()
		return nil, err
	}
	return r, nil
}

// A captured names what is captured while a stream goes from h0 to h1.
type captured struct {
	reads bool
	ports []string
}

func captures() map[string]captured {
	return map[string]captured{
		"another port":               {true, []string{"h2"}},
		"another port, nobody reads": {false, []string{"h2"}},
		"both ports":                 {true, []string{"h0", "h1"}},
		"both ports, nobody reads":   {false, []string{"h0", "h1"}},
	}
}

// BenchmarkLiveCapture measures how much of its rate a stream keeps while its ports, or another
// one, are captured.
func BenchmarkLiveCapture(b *testing.B) {
	for name, c := range captures() {
		b.Run(name, func(b *testing.B) {
			sw := newSwitch(b)
			s, turn := threeHosts(b, sw), captureTurns(b, sw, c.reads, c.ports...)
			for b.Loop() {
				b.ReportMetric(100*s.kept(turn, 50), "%kept")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// threeHosts makes three hosts, with a stream from the first to the second.
func threeHosts(tb testing.TB, sw *vswitch.Switch) *stream {
	tb.Helper()
	a, b := tapHost(tb, sw, 0, 1, vport.Config{}), tapHost(tb, sw, 1, 1, vport.Config{})
	tapHost(tb, sw, 2, 1, vport.Config{})
	return newStream(tb, a, b)
}

// TestLiveCaptureStallsNobody requires less than the benchmark measures, since the machine may be
// busy with something else.
func TestLiveCaptureStallsNobody(t *testing.T) {
	for name, least := range map[string]float64{
		"another port": 0.7, "both ports, nobody reads": 0.5,
		"both ports": 0.2,
	} {
		t.Run(name, func(t *testing.T) {
			sw, c := newSwitch(t), captures()[name]
			s, turn := threeHosts(t, sw), captureTurns(t, sw, c.reads, c.ports...)
			best := 0.0
			for range 4 {
				if best = max(best, s.kept(turn, 10)); best > 0.9 {
					break
				}
			}
			if best < least {
				t.Errorf("the stream keeps %.0f%% of its rate", 100*best)
			}
		})
	}
}
