package vswitch_test

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"vmnet/bridge/brport"
	"vmnet/bridge/portrate"
	"vmnet/bridge/portsec"
	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/capture"
	"vmnet/bridge/vswitch/offload"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/endpoint"
	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
)

// A fastLAN is a switch with packet ports on taps whose queues the test has, as QEMU has them:
//
//	test [t0] packet -- switch -- packet [t1] test
type fastLAN struct {
	t      *testing.T
	host   *host
	sw     *vswitch.Switch
	guests []*os.File
	ports  []*vswitch.Port
	files  [][]*os.File // of the ports
	number byte
}

func newFastLAN(t *testing.T, guests int, cfg vswitch.Config) *fastLAN {
	t.Helper()
	nstest.RequireTCX(t)
	l := &fastLAN{t: t, host: newHost(t, 0, "t0"), sw: vswitch.New(cfg)}
	t.Cleanup(func() {
		if err := l.sw.Close(); err != nil {
			t.Error(err)
		}
	})
	for i := range guests {
		name := fmt.Sprintf("t%d", i)
		tap, err := tun.Create(l.host.ns, name, false)
		if err != nil {
			t.Fatal(err)
		}
		defer tap.Close()
		if err := l.host.nl.LinkSetUp(l.host.link(name)); err != nil {
			t.Fatal(err)
		}
		guest := pollable(t, tap.Queues()[0])
		t.Cleanup(func() { _ = guest.Close() })
		l.guests = append(l.guests, guest)
		files, slow, err := endpoint.FastPacketFiles(l.host.ns, name, true)
		if err != nil || slow != nil {
			t.Fatal(err, slow)
		}
		t.Cleanup(func() { fdpass.CloseAll(files) })
		l.files = append(l.files, files)
		l.ports = append(l.ports, l.add(l.sw, i))
	}
	return l
}

// add adds a port to a switch.
func (l *fastLAN) add(sw *vswitch.Switch, port int) *vswitch.Port {
	l.t.Helper()
	w, err := vswitch.OpenPacketFiles(l.files[port])
	if err != nil {
		l.t.Fatal(err)
	}
	return addPort(l.t, sw, fmt.Sprintf("t%d", port), w, vport.Config{})
}

// frame returns a frame between stations, each different.
func (l *fastLAN) frame(from, to byte, payload int) []byte {
	l.number++
	f := slices.Concat(make([]byte, offload.HeaderLen), []byte{2, 0, 0, 0, 0, to}, []byte{2, 0, 0, 0, 0, from},
		[]byte{0x88, 0xb5, l.number}, make([]byte, max(payload, 46)-1))
	return f
}

func (l *fastLAN) write(guest int, frame []byte) {
	l.t.Helper()
	if _, err := l.guests[guest].Write(frame); err != nil {
		l.t.Fatal(err)
	}
}

// read returns the next frame of a test for a station at a guest, or nil if there is none within
// the time. 0xff is all stations.
func (l *fastLAN) read(guest int, station byte, within time.Duration) []byte {
	l.t.Helper()
	if err := l.guests[guest].SetReadDeadline(time.Now().Add(within)); err != nil {
		l.t.Fatal(err)
	}
	b := make([]byte, 1<<17)
	for {
		n, err := l.guests[guest].Read(b)
		if err != nil {
			return nil
		}
		if e := b[offload.HeaderLen:n]; len(e) > 14 && e[12] == 0x88 && e[13] == 0xb5 && e[5] == station {
			return b[:n]
		}
	}
}

// pass sends a frame from a guest's station to another's, and fails unless exactly it arrives.
func (l *fastLAN) pass(from, to int, src, dst byte) {
	l.t.Helper()
	f := l.frame(src, dst, 46)
	l.write(from, f)
	if got := l.read(to, dst, nstest.Patience(10*time.Second)); !bytes.Equal(got, f) {
		l.t.Fatalf("guest %d sends\n% x, guest %d receives\n% x", from, f, to, got)
	}
}

func (l *fastLAN) frames(port int) uint64 { return l.ports[port].Stats().FastPath.Frames }

// hasten sends frames until the kernel forwards them, and returns the number of frames that have
// arrived.
func (l *fastLAN) hasten(from, to int, src, dst byte) (n uint64) {
	l.t.Helper()
	l.pass(to, from, dst, src) // is learned
	was := l.frames(from)
	nstest.Eventually(l.t, 10*time.Second, "the fast path", func() bool {
		l.pass(from, to, src, dst)
		n++
		return l.frames(from) > was
	})
	return n
}

// fast reports whether the kernel forwards a frame that passes.
func (l *fastLAN) fast(from, to int, src, dst byte) bool {
	l.t.Helper()
	was := l.frames(from)
	l.pass(from, to, src, dst)
	return l.frames(from) > was
}

// TestLiveFastPath has the kernel forward frames. They are counted, and all others come to the
// switch.
func TestLiveFastPath(t *testing.T) {
	l := newFastLAN(t, 3, vswitch.Config{})
	for _, p := range l.ports {
		if f := p.Stats().FastPath; !f.On {
			t.Fatalf("the fast path is off: %s", f.Why)
		}
	}
	n := l.hasten(0, 1, 1, 2)
	for range 100 {
		n++
		if !l.fast(0, 1, 1, 2) {
			t.Fatal("a frame comes to the switch")
		}
	}
	if got := l.read(2, 2, 10*time.Millisecond); got != nil {
		t.Errorf("others receive a frame: % x", got)
	}
	a, b := l.ports[0].Stats().Total(), l.ports[1].Stats().Total()
	if a.RxFrames != n || b.TxFrames != n || a.RxBytes != n*60 || b.TxBytes != n*60 {
		t.Errorf("%d frames of 60 bytes: the ports have counted %+v, %+v", n, a, b)
	}
	for what, f := range map[string][]byte{
		"for an unknown address": l.frame(1, 77, 46), "from an unknown address": l.frame(78, 2, 46),
		"for all": slices.Concat(l.frame(1, 2, 46)[:offload.HeaderLen], bytes.Repeat([]byte{0xff}, 6),
			l.frame(1, 2, 46)[offload.HeaderLen+6:]),
	} {
		was := l.frames(0)
		l.write(0, f)
		if got := l.read(1, f[offload.HeaderLen+5], nstest.Patience(10*time.Second)); !bytes.Equal(got, f) ||
			l.frames(0) != was {
			t.Errorf("a frame %s: the kernel forwards it, or it does not arrive: % x", what, got)
		}
	}
	l.write(0, l.frame(1, 2, 1505))
	nstest.Eventually(t, 10*time.Second, "the drop of a frame that is too long", func() bool {
		return l.ports[1].Dropped(vswitch.TooBig) == 1
	})
}

// TestLiveFastPathMoves moves an address from port to port. The first frame after a move arrives at
// the new one.
func TestLiveFastPathMoves(t *testing.T) {
	l := newFastLAN(t, 3, vswitch.Config{})
	for i := range 20 {
		at := 1 + i%2
		l.hasten(0, at, 1, 2)
		if !l.fast(at, 0, 2, 1) {
			l.hasten(at, 0, 2, 1)
		}
	}
}

// TestLiveFastPathAges has an address in use for longer than the ageing, and then not.
func TestLiveFastPathAges(t *testing.T) {
	l := newFastLAN(t, 2, vswitch.Config{Ageing: 2 * time.Second})
	l.hasten(0, 1, 1, 2)
	l.hasten(1, 0, 2, 1)
	port := func(station byte) int {
		return l.sw.FDB().Lookup(vswitch.KeyOf([]byte{2, 0, 0, 0, 0, station}, 1))
	}
	slow := l.ports[0].Stats().Total().RxFrames - l.frames(0)
	end := time.Now().Add(4 * time.Second)
	nstest.Eventually(t, 10*time.Second, "the ageing time", func() bool {
		l.pass(0, 1, 1, 2)
		if port(1) < 0 {
			t.Fatal("an address that sends by the fast path has aged")
		}
		return time.Now().After(end)
	})
	if port(2) >= 0 {
		t.Error("an address that sends nothing has not aged")
	}
	if now := l.ports[0].Stats().Total().RxFrames - l.frames(0); now == slow {
		t.Error("the kernel has forwarded all frames, also those for an address that has aged")
	}
}

// TestLiveFastPathIsOff changes a port so that the switch must see its frames.
func TestLiveFastPathIsOff(t *testing.T) {
	l := newFastLAN(t, 3, vswitch.Config{})
	set := func(port int, cfg vport.Config) {
		t.Helper()
		if err := l.sw.SetPort(fmt.Sprintf("t%d", port), cfg); err != nil {
			t.Fatal(err)
		}
	}
	for what, cfg := range map[string]vport.Config{
		"port security": {Security: portsec.Config{Checks: portsec.VLAN}},
		"a rate":        {Rates: portrate.Config{Up: portrate.Limit{Packets: 1e6}}},
	} {
		for port := range 2 {
			l.hasten(0, 1, 1, 2)
			set(port, cfg)
			if l.fast(0, 1, 1, 2) || l.ports[port].Stats().FastPath.On {
				t.Errorf("with %s at port %d, the kernel forwards frames", what, port)
			}
			set(port, vport.Config{})
		}
	}
	l.hasten(0, 1, 1, 2)
	set(0, vport.Config{Settings: brport.Settings{Isolated: true}})
	l.hasten(0, 1, 1, 2) // one isolated port
	set(1, vport.Config{Settings: brport.Settings{Isolated: true}})
	l.write(0, l.frame(1, 2, 46))
	nstest.Eventually(t, 10*time.Second, "the drop of a frame between isolated ports", func() bool {
		return l.ports[0].Dropped(vswitch.Isolated) == 1
	})
	set(0, vport.Config{})
	set(1, vport.Config{MTU: 1000})
	l.hasten(0, 1, 1, 2)
	l.write(0, l.frame(1, 2, 1005))
	nstest.Eventually(t, 10*time.Second, "the drop of a frame that is longer than the port's MTU", func() bool {
		return l.ports[1].Dropped(vswitch.TooBig) == 1
	})
	set(1, vport.Config{Settings: brport.Settings{VLAN: 5}})
	l.write(0, l.frame(1, 2, 46))
	if got := l.read(1, 2, 50*time.Millisecond); got != nil {
		t.Errorf("a frame passes into another VLAN: % x", got)
	}
	set(0, vport.Config{Settings: brport.Settings{VLAN: 5}})
	l.hasten(0, 1, 1, 2)
	was, f := l.frames(0), l.frame(1, 2, 46)
	const macs = offload.HeaderLen + 12
	l.write(0, slices.Concat(f[:macs], []byte{0x81, 0, 0, 5}, f[macs:])) // the switch removes the tag
	if got := l.read(1, 2, nstest.Patience(10*time.Second)); !bytes.Equal(got, f) || l.frames(0) != was {
		t.Errorf("the kernel forwards a frame with a tag, or it arrives with the tag: % x", got)
	}
}

// TestLiveFastPathCapture captures all frames that pass while the capture runs.
func TestLiveFastPathCapture(t *testing.T) {
	l := newFastLAN(t, 2, vswitch.Config{})
	l.hasten(0, 1, 1, 2)
	r, err := startCapture(l.sw, capture.Config{Ports: []string{"t1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for range 10 {
		if l.fast(0, 1, 1, 2) {
			t.Fatal("the kernel forwards a frame that is captured")
		}
	}
	for i := range 10 {
		if _, err := r.Next(); err != nil {
			t.Fatalf("frame %d: %v", i, err)
		}
	}
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	for err == nil { // until the switch has ended it
		_, err = r.Next()
	}
	l.hasten(0, 1, 1, 2)
}

// TestLiveFastPathGone takes the device down and up, removes ports, and closes the switch.
func TestLiveFastPathGone(t *testing.T) {
	l := newFastLAN(t, 3, vswitch.Config{})
	l.hasten(0, 1, 1, 2)
	if err := l.host.nl.LinkSetDown(l.host.link("t1")); err != nil {
		t.Fatal(err)
	}
	nstest.Eventually(t, 10*time.Second, "the port is down", func() bool {
		return l.ports[1].State() == vport.StateDown
	})
	nstest.Eventually(t, 10*time.Second, "frames for an address behind it are flooded", func() bool {
		l.write(0, l.frame(1, 2, 46))
		return l.read(2, 2, 10*time.Millisecond) != nil
	})
	if err := l.host.nl.LinkSetUp(l.host.link("t1")); err != nil {
		t.Fatal(err)
	}
	nstest.Eventually(t, 10*time.Second, "the port is up", func() bool {
		return l.ports[1].State() == vport.StateUp
	})
	l.hasten(0, 1, 1, 2)
	before := l.ports[0].Stats().Total().RxFrames
	if err := l.sw.RemovePort("t1"); err != nil {
		t.Fatal(err)
	}
	if after := l.ports[0].Stats().Total().RxFrames; after != before {
		t.Errorf("the removal of another port changes a counter from %d to %d", before, after)
	}
	l.ports[1] = l.add(l.sw, 1)
	l.hasten(0, 1, 1, 2)
	if n := hooked(t, l.host, "t0"); n != 1 {
		t.Errorf("%d programs at the TCX hook", n)
	}
	if err := l.sw.Close(); err != nil {
		t.Fatal(err)
	}
	for _, files := range l.files {
		fdpass.CloseAll(files)
	}
	if n := hooked(t, l.host, "t0"); n != 0 {
		t.Errorf("the closed switch leaves %d programs at the TCX hook", n)
	}
}

// TestLiveFastPathHandOver hands ports over. The kernel forwards frames between two switches, and
// only what the new one has seen afterwards.
func TestLiveFastPathHandOver(t *testing.T) {
	l := newFastLAN(t, 3, vswitch.Config{})
	l.hasten(0, 1, 1, 2)
	handOver := func(ports ...int) {
		t.Helper()
		for _, i := range ports {
			rest, err := l.sw.HandOver(fmt.Sprintf("t%d", i))
			if err == nil {
				err = rest.Close()
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	handOver(0, 1)
	for range 20 {
		l.pass(0, 1, 1, 2)
	}
	other := newSwitch(t)
	for i := range 2 {
		l.ports[i] = l.add(other, i)
	}
	for range 2 { // the second time, the switch has seen only one of the stations
		if l.fast(0, 1, 1, 2) {
			t.Error("the kernel forwards a frame between addresses that the switch has not seen")
		}
	}
	l.hasten(0, 1, 1, 2)
	if total := l.ports[0].Stats().Total(); total.RxFrames > 100 {
		t.Errorf("the new switch counts frames of the old one: %+v", total)
	}
}

// TestLiveFastPathHandOverFails hands one of two ports over, and back. The kernel then has nothing
// of before.
func TestLiveFastPathHandOverFails(t *testing.T) {
	l := newFastLAN(t, 3, vswitch.Config{})
	l.hasten(0, 1, 1, 2)
	rest, err := l.sw.HandOver("t1")
	if err != nil {
		t.Fatal(err)
	}
	if err := rest.Close(); err != nil {
		t.Fatal(err)
	}
	l.ports[1] = l.add(l.sw, 1)
	if l.fast(0, 1, 1, 2) {
		t.Error("the kernel forwards a frame as before the hand-over")
	}
	l.pass(2, 0, 2, 1) // the address moves
	for l.read(2, 2, 10*time.Millisecond) != nil {
		continue // was flooded
	}
	l.pass(0, 2, 1, 2)
}
