package vswitch_test

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/offload"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/kernel/tun"
)

// A hostile guest misbehaves as much as it can while it is on.
type hostile struct {
	on, stop atomic.Bool
	done     sync.WaitGroup
}

// newHostile calls turn repeatedly until the test ends.
func newHostile(tb testing.TB, turn func(on bool)) *hostile {
	h := &hostile{}
	h.done.Go(func() {
		for !h.stop.Load() {
			turn(h.on.Load())
		}
	})
	tb.Cleanup(func() {
		h.stop.Store(true)
		h.done.Wait()
	})
	return h
}

// socketGuest is the other end of a port. It waits up to 20 ms to send and to receive: as QEMU
// does, it waits while the switch does not read.
func socketGuest(tb testing.TB, sw *vswitch.Switch, name string, cfg vport.Config) (fd int) {
	tb.Helper()
	w, far, err := vswitch.SocketPair(0)
	if err != nil {
		tb.Fatal(err)
	}
	addPort(tb, sw, name, w, cfg)
	tb.Cleanup(func() { _ = far.Close() })
	timeout := unix.NsecToTimeval(int64(20 * time.Millisecond))
	for _, opt := range []int{unix.SO_SNDTIMEO, unix.SO_RCVTIMEO} {
		if err := unix.SetsockoptTimeval(int(far.Fd()), unix.SOL_SOCKET, opt, &timeout); err != nil {
			tb.Fatal(err)
		}
	}
	return int(far.Fd())
}

// floods sends the frames that next makes as fast as the switch reads them.
func floods(next func(b []byte) []byte) func(tb testing.TB, sw *vswitch.Switch, cfg vport.Config) *hostile {
	return func(tb testing.TB, sw *vswitch.Switch, cfg vport.Config) *hostile {
		fd, b := socketGuest(tb, sw, "bad", cfg), make([]byte, 64<<10)
		return newHostile(tb, func(on bool) {
			if on {
				_, _ = unix.Write(fd, next(b))
			} else {
				time.Sleep(time.Millisecond) // not a wait: the guest is off
			}
		})
	}
}

// floodsTap floods from behind a tap on which the switch has a packet port. Nothing makes such a
// guest wait. While it is off, it spends the same time writing to a device that nobody reads.
func floodsTap(
	vnet offload.Header, next func(b []byte) []byte,
) func(tb testing.TB, sw *vswitch.Switch, cfg vport.Config) *hostile {
	return func(tb testing.TB, sw *vswitch.Switch, cfg vport.Config) *hostile {
		h, b := newHost(tb, 200, "tap0"), make([]byte, 10+64<<10)
		vnet.Put(b)
		var fds [2]int
		for i, name := range []string{"tap0", "tap1"} {
			tap, err := tun.Create(h.ns, name, false)
			if err != nil {
				tb.Fatal(err)
			}
			tb.Cleanup(func() { _ = tap.Close() })
			if err := h.nl.LinkSetUp(h.link(name)); err != nil {
				tb.Fatal(err)
			}
			fds[i] = int(tap.Queues()[0].Fd())
		}
		addPort(tb, sw, "bad", openPacket(tb, h, "tap0"), cfg)
		return newHostile(tb, func(on bool) {
			fd := fds[1]
			if on {
				fd = fds[0]
			}
			_, _ = unix.Write(fd, b[:10+len(next(b[10:]))])
		})
	}
}

// floodsSuper floods super-frames of a thousand segments, which the switch must segment for each of
// four guests on sockets.
func floodsSuper(tb testing.TB, sw *vswitch.Switch, cfg vport.Config) *hostile {
	for i := range 4 {
		socketGuest(tb, sw, fmt.Sprint("socket", i), vport.Config{})
	}
	h := offload.Header{
		Flags: offload.NeedsCsum, GSOType: offload.GSOTCPv4, GSOSize: 60, HdrLen: 54,
		CsumStart: 34, CsumOffset: 16,
	}
	return floodsTap(h, superBroadcasts)(tb, sw, cfg)
}

// doesNotRead is sent 20,000 frames a second. It reads them only while it is off.
func doesNotRead(tb testing.TB, sw *vswitch.Switch, cfg vport.Config) *hostile {
	fd := socketGuest(tb, sw, "bad", cfg)
	other := socketGuest(tb, sw, "other", vport.Config{})
	hello := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0x66, 0x66, 0x88, 0xb5}, make([]byte, 46)...)
	if _, err := unix.Write(fd, hello); err != nil {
		tb.Fatal(err)
	}
	frame := append(slices.Concat(hello[6:12], []byte{2, 0, 0, 0, 0x66, 0x67, 0x88, 0xb5}), make([]byte, 1000)...)
	newHostile(tb, func(bool) {
		for range 20 {
			_, _ = unix.Write(other, frame)
		}
		time.Sleep(time.Millisecond) // not a wait: the pace
	})
	b := make([]byte, 2000)
	return newHostile(tb, func(on bool) {
		if on {
			time.Sleep(time.Millisecond) // not a wait: it does not read
		} else {
			_, _ = unix.Read(fd, b)
		}
	})
}

// The frames of hostile guests.

func broadcasts(b []byte) []byte {
	copy(b, "\xff\xff\xff\xff\xff\xff\x02\x00\x00\x00\x66\x66\x88\xb5")
	return b[:60]
}

func randomSources(b []byte) []byte {
	binary.BigEndian.PutUint64(b[6:], rand.Uint64())
	binary.BigEndian.PutUint64(b, rand.Uint64())
	b[0], b[6], b[12] = 2, 2, 0x88
	return b[:60]
}

func superBroadcasts(b []byte) []byte {
	b = b[:60000]
	copy(b, "\xff\xff\xff\xff\xff\xff\x02\x00\x00\x00\x66\x66\x08\x00\x45")
	binary.BigEndian.PutUint16(b[16:], uint16(len(b)-14))
	b[22], b[23] = 64, 6 // TTL, TCP
	b[46] = 5 << 4       // header length
	return b
}

func toItself(b []byte) []byte {
	copy(b, "\x02\x00\x00\x00\x66\x66\x02\x00\x00\x00\x66\x66\x88\xb5")
	return b[:60]
}

func nonsense(b []byte) []byte {
	for i := 0; i < 64; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], rand.Uint64())
	}
	return b[:64<<10-1-rand.IntN(8)]
}

func hostileGuests() map[string]func(tb testing.TB, sw *vswitch.Switch, cfg vport.Config) *hostile {
	all := map[string]func(tb testing.TB, sw *vswitch.Switch, cfg vport.Config) *hostile{
		"broadcasts":          floods(broadcasts),
		"random sources":      floods(randomSources),
		"nonsense":            floods(nonsense),
		"broadcasts, tap":     floodsTap(offload.Header{}, broadcasts),
		"random sources, tap": floodsTap(offload.Header{}, randomSources),
		"nonsense, tap":       floodsTap(offload.Header{}, nonsense),
		"super-frames, tap":   floodsSuper,
		"to itself":           floods(toItself),
		"does not read":       doesNotRead,
	}
	maps.Copy(all, hostileMemories())
	return all
}

// A stream is TCP between two hosts as fast as possible. It counts the bytes that arrive.
type stream struct{ bytes atomic.Int64 }

func newStream(tb testing.TB, from, to *host) *stream {
	tb.Helper()
	out, in := connect(tb, from, to)
	s, wg := &stream{}, sync.WaitGroup{}
	wg.Go(func() {
		b := make([]byte, 256<<10)
		for {
			n, err := in.Read(b)
			s.bytes.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	wg.Go(func() {
		b := make([]byte, 256<<10)
		for {
			if _, err := out.Write(b); err != nil {
				return
			}
		}
	})
	tb.Cleanup(func() {
		_ = out.Close()
		_ = in.Close()
		wg.Wait()
	})
	return s
}

// connect makes a TCP connection between hosts. The caller closes both ends.
func connect(tb testing.TB, from, to *host) (out, in net.Conn) {
	tb.Helper()
	var l net.Listener
	if err := to.ns.Do(func() (err error) { l, err = net.Listen("tcp", to.v4+":0"); return err }); err != nil {
		tb.Fatal(err)
	}
	defer l.Close()
	if err := from.ns.Do(func() (err error) {
		out, err = net.DialTimeout("tcp", l.Addr().String(), 20*time.Second)
		return err
	}); err != nil {
		tb.Fatal(err)
	}
	in, err := l.Accept()
	if err != nil {
		tb.Fatal(err)
	}
	return out, in
}

// kept returns the rate of the stream while something is on, as a share of its rate while that is
// off. Both are medians of alternating windows.
func (s *stream) kept(turn func(on bool), pairs int) float64 {
	const window = 40 * time.Millisecond
	var rates [2][]float64
	for range pairs {
		for i := range rates {
			turn(i == 1)
			time.Sleep(window / 4) // not a wait: the benchmark runs
			before, start := s.bytes.Load(), time.Now()
			time.Sleep(window) // not a wait: the benchmark runs
			rates[i] = append(rates[i], float64(s.bytes.Load()-before)/time.Since(start).Seconds())
		}
	}
	turn(false)
	for i := range rates {
		slices.Sort(rates[i])
	}
	return rates[1][pairs/2] / rates[0][pairs/2]
}

// guestPort is the configuration that the documentation recommends for a guest.
func guestPort() vport.Config {
	return vport.Config{Storm: vport.GuestStorm(vport.GuestFrames), MaxAddresses: 64}
}

// BenchmarkLiveHostileGuest measures how much of their rate two hosts keep beside a hostile guest.
func BenchmarkLiveHostileGuest(b *testing.B) {
	for _, ports := range []int{8, 64} {
		for limits, cfg := range map[string]vport.Config{"limited": guestPort(), "unlimited": {}} {
			for name, guest := range hostileGuests() {
				b.Run(fmt.Sprintf("%d ports/%s/%s", ports, limits, name), func(b *testing.B) {
					sw := newSwitch(b)
					var hosts []*host
					for n := range ports - 1 {
						hosts = append(hosts, tapHost(b, sw, n, 1, vport.Config{}))
					}
					s, h := newStream(b, hosts[0], hosts[1]), guest(b, sw, cfg)
					for b.Loop() {
						b.ReportMetric(100*s.kept(h.on.Store, 50), "%kept")
					}
					b.ReportMetric(0, "ns/op")
				})
			}
		}
	}
}

// TestLiveHostileGuest lets two hosts ask and answer, one frame at a time, beside a hostile guest.
// Each frame must arrive, and the switch must not read more frames of the guest than its limit
// allows. BenchmarkLiveHostileGuest measures how much of their rate the hosts keep.
func TestLiveHostileGuest(t *testing.T) {
	for name, guest := range hostileGuests() {
		t.Run(name, func(t *testing.T) {
			sw := newSwitch(t)
			a, b := tapHost(t, sw, 0, 1, vport.Config{}), tapHost(t, sw, 1, 1, vport.Config{})
			h := guest(t, sw, guestPort())
			bad := portOf(t, sw, "bad")
			h.on.Store(true)
			before, start := bad.Stats().Total().RxFrames, time.Now()
			for time.Since(start) < 1500*time.Millisecond {
				// By then, an unlimited guest has sent ten times its limit.
				pingPong(t, a, b, 500)
			}
			tcp(t, a, b, 1<<20)
			udp(t, b, a, 1400)
			read, took := bad.Stats().Total().RxFrames-before, time.Since(start)
			// Each of four kinds of frames has a limit, with a burst of a tenth of a second. A debt
			// is capped at a wait of one second.
			if most := 4 * vport.GuestFrames * (took.Seconds() + 1.1); float64(read) > most {
				t.Errorf("%d frames were read in %v, want at most %.0f", read, took, most)
			}
			t.Logf("%d frames of the guest were read in %v", read, took)
		})
	}
}

// portOf returns the port of that name.
func portOf(t *testing.T, sw *vswitch.Switch, name string) *vswitch.Port {
	t.Helper()
	for _, p := range sw.Ports() {
		if p.Name() == name {
			return p
		}
	}
	t.Fatalf("there is no port %s", name)
	return nil
}

// pingPong sends one datagram after the other, each when the previous one has come back.
func pingPong(t *testing.T, from, to *host, n int) {
	t.Helper()
	out, in := udpSockets(t, from, to)
	go func() { // ends when the socket is closed
		b := make([]byte, 64)
		for {
			n, peer, err := in.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = in.WriteTo(b[:n], peer)
		}
	}()
	for i := range n {
		b := binary.BigEndian.AppendUint64(nil, uint64(i))
		err := out.SetDeadline(time.Now().Add(20 * time.Second))
		if err == nil {
			_, err = out.Write(b)
		}
		if err == nil {
			_, err = out.Read(b)
		}
		if got := binary.BigEndian.Uint64(b); err != nil || got != uint64(i) {
			t.Fatalf("datagram %d of %d: %d came back, %v", i, n, got, err)
		}
	}
}

// udpSockets returns a UDP socket and the one to which it is connected. They are open until the
// test ends.
func udpSockets(t *testing.T, from, to *host) (out net.Conn, in net.PacketConn) {
	t.Helper()
	err := to.ns.Do(func() (err error) { in, err = net.ListenPacket("udp", to.v4+":0"); return err })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Close() })
	err = from.ns.Do(func() (err error) { out, err = net.Dial("udp", in.LocalAddr().String()); return err })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = out.Close() })
	return out, in
}
