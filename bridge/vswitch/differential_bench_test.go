package vswitch_test

import (
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkLiveBesideTheBridge has the same traffic go through a kernel bridge and through a switch, in turns,
// and gives the medians of both and their ratio: TCP as it is and in VXLAN, in Mbit/s, and UDP of 64 bytes, in
// packets that come each second.
func BenchmarkLiveBesideTheBridge(b *testing.B) {
	for name, tunnel := range map[string]*tunnel{"TCP": nil, "VXLAN": &vxlans[0], "VXLAN, checksum": &vxlans[1]} {
		for _, from := range []string{"to a tap", "to a packet port"} {
			b.Run(name+" "+from, func(b *testing.B) {
				beside(b, tunnel, from == "to a tap", func(from, to *host) float64 { return tcpRate(b, from, to) / 1e6 })
			})
		}
	}
	for _, from := range []string{"to a tap", "to a packet port"} {
		b.Run("UDP "+from, func(b *testing.B) {
			beside(b, nil, from == "to a tap", func(from, to *host) float64 { return udpRate(b, from, to) / 1e3 })
		})
	}
}

func beside(b *testing.B, c *tunnel, inwards bool, rate func(from, to *host) float64) {
	equal := mtus{1500, 1500}
	s, _ := switchLine(b, equal)
	var ends [2][2]*host
	for i, l := range []*line{bridgeLine(b, equal), s} {
		l.outside.ip("link set lan0 mtu 1500")
		l.inside.ip("link set lan0 mtu 1500")
		from, to := l.ends(c)
		if !inwards {
			from, to = to, from
		}
		ends[i] = [2]*host{from, to}
	}
	var rates [2][]float64
	for b.Loop() {
		for range 5 {
			for i, e := range ends {
				rates[i] = append(rates[i], rate(e[0], e[1]))
			}
		}
	}
	for i := range rates {
		slices.Sort(rates[i])
	}
	bridge, ours := rates[0][len(rates[0])/2], rates[1][len(rates[1])/2]
	b.ReportMetric(bridge, "bridge")
	b.ReportMetric(ours, "switch")
	b.ReportMetric(ours/bridge, "ratio")
	b.ReportMetric(0, "ns/op")
}

// ends are the line's ends with addresses, in the tunnel where there is one.
func (l *line) ends(c *tunnel) (outside, inside *host) {
	if c != nil {
		return l.through(*c)
	}
	for i, h := range []*host{l.outside, l.inside} {
		h.v4, h.v6 = fmt.Sprintf("10.9.0.%d", i+1), fmt.Sprintf("fd09::%d", i+1)
		h.ip("addr add %s/24 dev lan0", h.v4)
		h.ip("addr add %s/64 dev lan0 nodad", h.v6)
	}
	return l.outside, l.inside
}

const (
	warmUp = 100 * time.Millisecond
	window = 300 * time.Millisecond
)

// tcpRate is how many bits a second come.
func tcpRate(tb testing.TB, from, to *host) float64 {
	out, in := connect(tb, from, to)
	var bytes atomic.Int64
	done := make(chan struct{}, 2)
	go func() {
		b := make([]byte, 256<<10)
		for {
			n, err := in.Read(b)
			bytes.Add(int64(n))
			if err != nil {
				break
			}
		}
		done <- struct{}{}
	}()
	go func() {
		b := make([]byte, 256<<10)
		for {
			if _, err := out.Write(b); err != nil {
				break
			}
		}
		done <- struct{}{}
	}()
	r := perSecond(&bytes)
	_, _ = out.Close(), in.Close()
	<-done
	<-done
	return 8 * r
}

// udpRate is how many datagrams a second come of those that are sent as fast as it goes.
func udpRate(tb testing.TB, from, to *host) float64 {
	in, at := udpSocket(tb, to, sockaddr4(to.v4))
	out, _ := udpSocket(tb, from, nil, at)
	var count atomic.Int64
	var stop atomic.Bool
	done := make(chan struct{}, 2)
	go func() {
		b := make([]byte, 100)
		for !stop.Load() {
			if _, err := unix.Read(in, b); err == nil {
				count.Add(1)
			}
		}
		done <- struct{}{}
	}()
	go func() {
		b := make([]byte, 22) // 64 with the headers
		for !stop.Load() {
			_ = unix.Sendto(out, b, 0, at)
		}
		_ = unix.Sendto(in, b, 0, at) // wakes the reader
		done <- struct{}{}
	}()
	r := perSecond(&count)
	stop.Store(true)
	<-done
	<-done
	return r
}

func perSecond(n *atomic.Int64) float64 {
	time.Sleep(warmUp) // not a wait: what is measured runs
	before, start := n.Load(), time.Now()
	time.Sleep(window) // not a wait: what is measured runs
	return float64(n.Load()-before) / time.Since(start).Seconds()
}
