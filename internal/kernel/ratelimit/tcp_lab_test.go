//go:build labbench

package ratelimit

import (
	"strings"
	"testing"
	"time"

	"vmnet/bridge/portrate"
	"vmnet/macvtap/vtap"
	"vmnet/testvm/lab"
)

// TestLabTCP is a benchmark, which make test leaves out. By cables, macvtaps and ipvtaps a TCP
// stream has the rate that was asked for, and not more. It prints how much, how many segments were
// sent again, and the same of the commands of libvirt and Incus.
func TestLabTCP(t *testing.T) {
	lab.Inside(t)
	for _, line := range []struct {
		name string
		make func(testing.TB) *tcpLine
		ways []string
	}{
		{"cable", cableLine, []string{"up", "up shaped", "up by libvirt", "up by Incus", "down", "down by libvirt"}},
		{"macvtap", lowerLine(vtap.Macvtap), lowerWays},
		{"ipvtap", lowerLine(vtap.IPVtap), lowerWays},
	} {
		for _, way := range line.ways {
			t.Run(line.name+" "+way, func(t *testing.T) {
				free, _ := line.make(t).stream(t, isUp(way), time.Second) // of which the kernel remembers a window
				l := line.make(t)
				rate := portrate.Limit{Bits: 100e6}
				for rate.Bits > 1e6 && float64(rate.Bits) > free/2 { // an emulated processor, beside others
					rate.Bits /= 10
				}
				tcpWays[way](t, l, rate)
				const d = 3 * time.Second
				bits, again := l.stream(t, isUp(way), d)
				percent := bits / float64(rate.Bits) * 100
				burst := float64(portrate.Config{Up: rate}.UpBucket().Burst * 8)
				most := 100 * (1 + burst/float64(rate.Bits)/d.Seconds())
				if !strings.Contains(way, " by ") && (percent < 85 || percent > most) {
					t.Errorf("%.1f%% of %s, want 94%%, and at most %.1f%%: the rest of the burst", percent, rate, most)
				}
				t.Logf("%.1f%% of %s, %d segments sent again; %.0f Mbit/s without", percent, rate, again, free/1e6)
			})
		}
	}
}
