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

	"vmnet/bridge/vswitch/vport"
)

// BenchmarkLiveBesideTheBridge sends the same traffic in turn through a kernel bridge, a switch
// between two taps, one between a packet port and a tap, and one between two packet ports. It
// reports the medians, and the ratios of the last two to the others: TCP, plain and in VXLAN, in
// Mbit/s, and UDP of 64 bytes in thousands of packets a second. Super-frames are compared with the
// switch between taps, since a bridge needs no copies into and out of a switch; small frames are
// compared with the bridge.
func BenchmarkLiveBesideTheBridge(b *testing.B) {
	for name, tunnel := range map[string]*tunnel{"TCP": nil, "VXLAN": &vxlans[0], "VXLAN, checksum": &vxlans[1]} {
		for _, to := range []string{"to a tap", "to a packet port"} {
			b.Run(name+" "+to, func(b *testing.B) {
				beside(b, tunnel, to == "to a tap", func(from, to *host) rate {
					r := tcpRate(b, from, to) / 1e6
					return rate{r, r}
				})
			})
		}
	}
	for _, to := range []string{"to a tap", "to a packet port"} {
		b.Run("UDP "+to, func(b *testing.B) {
			beside(b, nil, to == "to a tap", func(from, to *host) rate { return udpRate(b, from, to) })
		})
	}
}

// A rate is what arrives at the far host, and what a program reads there. They differ if packets
// come faster than the program reads: on two CPUs it competes with a switch in userspace and with
// the sender.
type rate struct{ arrived, read float64 }

func beside(b *testing.B, c *tunnel, inwards bool, measure func(from, to *host) rate) {
	equal := mtus{1500, 1500}
	s, _ := switchLine(b, equal)
	names := []string{"bridge", "taps", "packet", "packets"}
	ends := make([][2]*host, len(names))
	for i, l := range []*line{bridgeLine(b, equal), tapLine(b, equal), s, packetLine(b, equal)} {
		l.outside.ip("link set lan0 mtu 1500")
		l.inside.ip("link set lan0 mtu 1500")
		from, to := l.ends(c)
		if !inwards {
			from, to = to, from
		}
		ends[i] = [2]*host{from, to}
	}
	arrived, read := make([][]float64, len(names)), make([][]float64, len(names))
	for b.Loop() {
		for range 5 {
			for i, e := range ends {
				r := measure(e[0], e[1])
				arrived[i], read[i] = append(arrived[i], r.arrived), append(read[i], r.read)
			}
		}
	}
	for i, name := range names {
		b.ReportMetric(median(arrived[i]), name)
		if i >= 2 {
			b.ReportMetric(median(arrived[i])/median(arrived[0]), name+"/bridge")
			b.ReportMetric(median(arrived[i])/median(arrived[1]), name+"/taps")
			b.ReportMetric(median(read[i])/median(read[0]), name+"/bridge-read")
		}
	}
	b.ReportMetric(0, "ns/op")
}

func median(samples []float64) float64 {
	slices.Sort(samples)
	return samples[len(samples)/2]
}

// packetLine makes a line with a switch in the middle that has packet ports.
func packetLine(tb testing.TB, m mtus) *line {
	tb.Helper()
	l, sw := newLine(tb, 30, m), newSwitch(tb)
	join(tb, l.inside, l.middle, "p2", m.toInside)
	for _, name := range []string{"p1", "p2"} {
		addPort(tb, sw, name, openPacket(tb, l.middle, name), vport.Config{})
	}
	return l
}

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
	r := perSecond(bytes.Load)[0]
	_, _ = out.Close(), in.Close()
	<-done
	<-done
	return 8 * r
}

// udpRate measures how many thousands of packets arrive in a second when they are sent as fast as
// possible. Both ends use batches, so that their own system calls take less of the processor's
// time.
func udpRate(tb testing.TB, from, to *host) rate {
	in, at := udpSocket(tb, to, sockaddr4(to.v4))
	out, _ := udpSocket(tb, from, nil, at)
	err := unix.Connect(out, at)
	if err == nil { // the reader sleeps between bursts, for which the default has no room
		err = unix.SetsockoptInt(in, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)
	}
	if err != nil {
		tb.Fatal(err)
	}
	var read atomic.Int64
	var stop atomic.Bool
	done := make(chan struct{}, 2)
	go func() {
		b := newBatch(100)
		for !stop.Load() {
			if n := b.call(unix.SYS_RECVMMSG, in, unix.MSG_WAITFORONE); n > 0 {
				read.Add(int64(n))
			}
		}
		done <- struct{}{}
	}()
	go func() {
		runtime.LockOSThread() // and never unlocks it: the thread ends with its affinity
		var first unix.CPUSet
		first.Set(0)
		if err := unix.SchedSetaffinity(0, &first); err != nil {
			tb.Error(err)
		}
		b := newBatch(64 - 42) // the headers of Ethernet, IPv4 and UDP have 42
		for !stop.Load() {
			b.call(unix.SYS_SENDMMSG, out, 0)
		}
		_ = unix.Sendto(in, []byte{0}, 0, at) // wakes the reader
		done <- struct{}{}
	}()
	arrived := func() int64 { return int64(to.link("lan0").Attrs().Statistics.RxPackets) }
	r := perSecond(arrived, read.Load)
	stop.Store(true)
	<-done
	<-done
	return rate{r[0] / 1e3, r[1] / 1e3}
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

// perSecond measures by how much each count grows in a second.
func perSecond(counts ...func() int64) (rates []float64) {
	time.Sleep(warmUp) // not a wait: the benchmark runs
	var before []int64
	for _, count := range counts {
		before = append(before, count())
	}
	start := time.Now()
	time.Sleep(window) // not a wait: the benchmark runs
	for i, count := range counts {
		rates = append(rates, float64(count()-before[i])/time.Since(start).Seconds())
	}
	return rates
}
