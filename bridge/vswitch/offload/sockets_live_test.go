package offload

import (
	"bytes"
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/nstest"
	"vmnet/testvm/traffic"
)

// A wire joins the taps of two network namespaces, whose kernels send and receive. It finishes the
// frames of one for the other as far as that one's limits require.
type wire struct {
	a, b *netns.NS
	stop atomic.Bool
	wg   sync.WaitGroup

	mu     sync.Mutex
	supers []made // super-frames that a has sent, a few of each type
	kinds  [256]int
	why    [Reasons]int
}

// newWire gives a the addresses 10.9.8.1 and fd00::1, and b those that end in 2. a takes all
// offloads.
func newWire(t *testing.T, offloads int, l Limits) *wire {
	t.Helper()
	w := &wire{a: nstest.New(t), b: nstest.New(t)}
	x, y := newTap(t, w.a, "x", allOffloads), newTap(t, w.b, "y", offloads)
	address(t, w.a, x.link, "10.9.8.1/24", "fd00::1/64")
	address(t, w.b, y.link, "10.9.8.2/24", "fd00::2/64")
	w.wg.Go(func() { w.pump(x, y, l) })
	w.wg.Go(func() { w.pump(y, x, targets[len(targets)-1].limits) })
	t.Cleanup(func() { w.stop.Store(true); w.wg.Wait() })
	return w
}

func address(t *testing.T, ns *netns.NS, link netlink.Link, addresses ...string) {
	t.Helper()
	nl := nstest.Handle(t, ns)
	for _, text := range addresses {
		addr, err := netlink.ParseAddr(text)
		if err != nil {
			t.Fatal(err)
		}
		if addr.IP.To4() == nil {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := nl.AddrAdd(link, addr); err != nil {
			t.Fatal(err)
		}
	}
}

func (w *wire) pump(from, to tapQueue, l Limits) {
	buf := make([]byte, 1<<17)
	var f Finisher
	for !w.stop.Load() {
		b := from.read(buf, 50*time.Millisecond)
		h, ok := Parse(b)
		if !ok {
			continue
		}
		frame := b[HeaderLen:]
		w.keep(h, frame)
		why := Check(h, frame)
		switch {
		case why != OK:
		case Fits(h, frame, l):
			_, _ = unix.Write(to.fd, b)
		default:
			why = f.Start(h, frame, l)
			for frames := f.Next(); len(frames) > 0; frames = f.Next() {
				for _, g := range frames {
					_, _ = unix.Writev(to.fd, [][]byte{g.Head, g.Payload})
				}
			}
		}
		w.mu.Lock()
		w.why[why]++
		w.mu.Unlock()
	}
}

// keep keeps up to 40 super-frames of each type.
func (w *wire) keep(h Header, frame []byte) {
	if h.GSOType == GSONone {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.kinds[h.GSOType]++; w.kinds[h.GSOType] <= 40 {
		w.supers = append(w.supers, made{h, bytes.Clone(frame)})
	}
}

// sendAll sends TCP and UDP super-frames from a to b, over IPv4 and IPv6, and checks what arrived.
func (w *wire) sendAll(t *testing.T) {
	t.Helper()
	for _, ip := range []string{"10.9.8.2", "fd00::2"} {
		w.sendTCP(t, net.JoinHostPort(ip, "0"))
		w.sendUDP(t, net.JoinHostPort(ip, "0"))
	}
}

func (w *wire) sendTCP(t *testing.T, addr string) {
	t.Helper()
	var s *traffic.Server
	err := w.b.Do(func() (err error) { s, err = traffic.ServeTCP(addr); return err })
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	err = w.a.Do(func() error { _, err := traffic.SendTCP(ctx, s.Addr, 8<<20); return err })
	if err != nil {
		t.Fatalf("TCP to %s: %v", addr, err)
	}
}

// sendUDP sends datagrams of 999 bytes, thirty in each super-frame (UDP_SEGMENT, udp(7)).
func (w *wire) sendUDP(t *testing.T, addr string) {
	t.Helper()
	const size, count = 999, 30
	var out net.Conn
	var local net.PacketConn
	err := w.b.Do(func() (err error) { local, err = net.ListenPacket("udp", addr); return err })
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close()
	err = w.a.Do(func() (err error) { out, err = net.Dial("udp", local.LocalAddr().String()); return err })
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	raw, err := out.(*net.UDPConn).SyscallConn()
	if err == nil {
		err2 := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, size)
		})
		if err == nil {
			err = err2
		}
	}
	if err != nil {
		t.Fatalf("UDP_SEGMENT: %v", err)
	}
	data := random(rng(9), size*count-100)
	if _, err := out.Write(data); err != nil {
		t.Fatal(err)
	}
	_ = local.SetReadDeadline(time.Now().Add(20 * time.Second))
	buf := make([]byte, 2000)
	for rest := data; len(rest) > 0; {
		n, _, err := local.ReadFrom(buf)
		if err != nil {
			t.Fatalf("UDP to %s, %d bytes missing: %v", addr, len(rest), err)
		}
		want := rest[:min(size, len(rest))]
		if !bytes.Equal(buf[:n], want) {
			t.Fatalf("UDP to %s: a datagram of %d bytes, want %d", addr, n, len(want))
		}
		rest = rest[len(want):]
	}
}

// Frames of the kernel's own sockets must arrive at every kind of target, segmented by us.
func TestLiveSocketsReachEveryTarget(t *testing.T) {
	requireRoot(t)
	for _, target := range targets {
		t.Run(target.name, func(t *testing.T) {
			w := newWire(t, target.offloads, target.limits)
			w.sendAll(t)
			w.mu.Lock()
			defer w.mu.Unlock()
			for why, n := range w.why {
				if n > 0 && Reason(why) != OK {
					t.Errorf("%d frames were refused: %v", n, Reason(why))
				}
			}
			if w.kinds[GSOTCPv4] == 0 || w.kinds[GSOTCPv6] == 0 || w.kinds[GSOUDPL4] < 2 {
				t.Errorf("super-frames by type: %v", w.kinds[:6])
			}
		})
	}
}

// Super-frames of the kernel's own sockets are segmented by us and by the kernel.
func TestLiveSocketsFramesAsTheKernelCutsThem(t *testing.T) {
	requireRoot(t)
	w := newWire(t, allOffloads, targets[len(targets)-1].limits)
	w.sendAll(t)
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.supers) < 60 {
		t.Errorf("only %d super-frames", len(w.supers))
	}
	for _, target := range targets[:2] {
		c := newCutter(t, target.offloads)
		var f Finisher
		for _, m := range w.supers {
			// The addresses that the cutter expects.
			copy(m.frame, []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1})
			kernels, err := c.cut(m.h, m.frame)
			if err != nil {
				t.Fatalf("%+v: the kernel: %v", m.h, err)
			}
			ours, why := all(&f, m.h, m.frame, target.limits)
			if why != OK {
				t.Fatalf("%+v: %v", m.h, why)
			}
			if err := compare(ours, kernels); err != nil {
				t.Fatalf("%+v: %v", m.h, err)
			}
		}
	}
	t.Logf("super-frames by type %v, compared %d", w.kinds[:6], len(w.supers))
}
