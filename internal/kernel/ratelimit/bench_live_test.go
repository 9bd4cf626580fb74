package ratelimit

import (
	"testing"
	"time"

	"vmnet/bridge/portrate"
	"vmnet/macvtap/vtap"
)

// BenchmarkLiveTCP reports how much of a rate a TCP stream has, and how many segments it sends
// again, by this package and by the commands of others. Of the 1514 bytes of a frame, 1448 are the
// stream's: 95.6 %.
func BenchmarkLiveTCP(b *testing.B) {
	for _, line := range []struct {
		name string
		make func(testing.TB) *tcpLine
		ways []string
	}{
		{"", cableLine, []string{"up", "up shaped", "up by libvirt", "up by Incus", "down", "down by libvirt"}},
		{"macvtap ", lowerLine(vtap.Macvtap), lowerWays},
	} {
		for _, rate := range []string{"100M", "1G"} {
			limit, err := portrate.ParseLimit(rate)
			if err != nil {
				b.Fatal(err)
			}
			for _, way := range line.ways {
				b.Run(line.name+way+" "+rate, func(b *testing.B) {
					l := line.make(b)
					tcpWays[way](b, l, limit)
					for b.Loop() {
						bits, again := l.stream(b, isUp(way), 3*time.Second)
						b.ReportMetric(bits/float64(limit.Bits)*100, "%")
						b.ReportMetric(float64(again), "retransmissions")
					}
				})
			}
		}
	}
}
