package vswitch_test

import (
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// BenchmarkLiveBesideTheBridge sends the same traffic in turn through a kernel bridge, through a
// switch between two taps, and through a switch between a packet port and a tap. It reports the
// medians, and the ratios of the last one to the others: TCP, plain and in VXLAN, in Mbit/s, and
// UDP of 64 bytes in thousands of packets a second. Super-frames are compared with the switch
// between taps, since a bridge needs no copies into and out of a switch; small frames are compared
// with the bridge.
// into the switch and out of it a bridge does without; small frames against the bridge.
func BenchmarkLiveBesideTheBridge(b *testing.B) {
	for name, tunnel := range map[string]*tunnel{"TCP": nil, "VXLAN": &vxlans[0], "VXLAN, checksum": &vxlans[1]} {
		for _, to := range []string{"to a tap", "to a packet port"} {
			b.Run(name+" "+to, func(b *testing.B) {
				beside(b, tunnel, to == "to a tap", func(from, to *host) float64 { return tcpRate(b, from, to) / 1e6 })
			})
		}
	}
	for _, to := range []string{"to a tap", "to a packet port"} {
		b.Run("UDP "+to, func(b *testing.B) {
			beside(b, nil, to == "to a tap", func(from, to *host) float64 { return udpRate(b, from, to) / 1e3 })
		})
	}
}

func beside(b *testing.B, c *tunnel, inwards bool, rate func(from, to *host) float64) {
	equal := mtus{1500, 1500}
	s, _ := switchLine(b, equal)
	var pairs [3][2]*host
	for i, l := range []*line{bridgeLine(b, equal), tapLine(b, equal), s} {
		l.outside.ip("link set lan0 mtu 1500")
		l.inside.ip("link set lan0 mtu 1500")
		from, to := l.ends(c)
		if !inwards {
			from, to = to, from
		}
		pairs[i] = [2]*host{from, to}
	}
	var rates [3][]float64
	for b.Loop() {
		for range 5 {
			for i, p := range pairs {
				rates[i] = append(rates[i], rate(p[0], p[1]))
			}
		}
	}
	for i := range rates {
		slices.Sort(rates[i])
	}
	bridge, taps, packet := median(rates[0]), median(rates[1]), median(rates[2])
	for unit, value := range map[string]float64{
		"bridge": bridge, "taps": taps, "packet": packet, "of-bridge": packet / bridge, "of-taps": packet / taps,
	} {
		b.ReportMetric(value, unit)
	}
	b.ReportMetric(0, "ns/op")
}

// median returns the median of sorted values.
func median(sorted []float64) float64 { return sorted[len(sorted)/2] }

// tapLine makes a line with a switch between two taps.
func tapLine(tb testing.TB, m mtus) *line {
	l := &line{outside: newHost(tb, 20, "lan0"), inside: newHost(tb, 22, "lan0")}
	sw := newSwitch(tb)
	tapPort(tb, sw, "outside", l.outside, m.toOutside)
	tapPort(tb, sw, "inside", l.inside, m.toInside)
	return l
}

// ends returns the ends of the line with their addresses, inside the tunnel if there is one.
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

// tcpRate measures how many bits arrive in a second.
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

// udpRate measures how many datagrams arrive in a second when they are sent as fast as possible.
// Both ends use batches, so that their own system calls take less of the processor's time.
func udpRate(tb testing.TB, from, to *host) float64 {
	in, at := udpSocket(tb, to, sockaddr4(to.v4))
	out, _ := udpSocket(tb, from, nil, at)
	if err := unix.Connect(out, at); err != nil {
		tb.Fatal(err)
	}
	var count atomic.Int64
	var stop atomic.Bool
	done := make(chan struct{}, 2)
	go func() {
		b := newBatch(100)
		for !stop.Load() {
			if n := b.call(unix.SYS_RECVMMSG, in, unix.MSG_WAITFORONE); n > 0 {
				count.Add(int64(n))
			}
		}
		done <- struct{}{}
	}()
	go func() {
		b := newBatch(64 - 42) // the headers of Ethernet, IPv4 and UDP have 42
		for !stop.Load() {
			b.call(unix.SYS_SENDMMSG, out, 0)
		}
		_ = unix.Sendto(in, []byte{0}, 0, at) // wakes the reader
		done <- struct{}{}
	}()
	r := perSecond(&count)
	stop.Store(true)
	<-done
	<-done
	return r
}

// A batch holds what sendmmsg(2) or recvmmsg(2) handle in one call.
type batch struct {
	msgs [64]struct {
		hdr unix.Msghdr
		_   uint32
	}
	iov unix.Iovec // shared: the received data is not read
}

func newBatch(size int) *batch {
	b := &batch{}
	b.iov.Base = &make([]byte, size)[0]
	b.iov.SetLen(size)
	for i := range b.msgs {
		b.msgs[i].hdr.Iov = &b.iov
		b.msgs[i].hdr.SetIovlen(1)
	}
	return b
}

// call returns the number of messages that were sent or received, which is less than 1 if there
// were none.
func (b *batch) call(number uintptr, fd, flags int) int {
	n, _, _ := unix.Syscall6(number, uintptr(fd), uintptr(unsafe.Pointer(&b.msgs)),
		uintptr(len(b.msgs)), uintptr(flags), 0, 0)
	runtime.KeepAlive(b)
	return int(n)
}

func perSecond(n *atomic.Int64) float64 {
	time.Sleep(warmUp) // not a wait: the benchmark runs
	before, start := n.Load(), time.Now()
	time.Sleep(window) // not a wait: the benchmark runs
	return float64(n.Load()-before) / time.Since(start).Seconds()
}
