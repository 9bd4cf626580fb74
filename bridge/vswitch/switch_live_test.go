package vswitch_test

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/kernel/tun"
)

// pollable returns a non-blocking copy of f.
func pollable(t *testing.T, f *os.File) *os.File {
	t.Helper()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), f.Name())
}

// meanFrame returns the mean length of the frames that left by a port.
func meanFrame(p *vswitch.Port) uint64 {
	total := p.Stats().Total()
	return total.TxBytes / max(1, total.TxFrames)
}

func TestLiveTaps(t *testing.T) {
	for _, queues := range []int{1, 2} {
		t.Run(fmt.Sprint(queues), func(t *testing.T) {
			sw := newSwitch(t)
			a, b := tapHost(t, sw, 0, queues, vport.Config{}), tapHost(t, sw, 1, queues, vport.Config{})
			tcp(t, a, b, 20<<20)
			tcp(t, b, a, 5<<20)
			udp(t, a, b, 1400)
			udp(t, b, a, 8000) // in fragments
			if mean := meanFrame(sw.Ports()[1]); mean < 3000 {
				t.Errorf("super-frames did not cross in one piece: mean length %d", mean)
			}
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() { tcp(t, a, b, 2<<20) })
			}
			wg.Wait()
		})
	}
}

func TestLiveManyPorts(t *testing.T) {
	for _, ports := range []int{8, 64} {
		t.Run(fmt.Sprint(ports), func(t *testing.T) {
			sw := newSwitch(t)
			var hosts []*host
			for n := range ports {
				hosts = append(hosts, tapHost(t, sw, n, 1, vport.Config{}))
			}
			for n, h := range hosts {
				if err := ping(t, h, hosts[(n+ports/2)%ports].v4, 0); err != nil {
					t.Errorf("host %d: %v", n, err)
				}
			}
			for n := range 4 {
				tcp(t, hosts[n], hosts[ports-1-n], 1<<20)
			}
			if got := sw.FDB().Stats().Entries; got < ports {
				t.Errorf("%d addresses of %d hosts were learned", got, ports)
			}
		})
	}
}

// TestLiveSocket has guests without any offload. The switch must finish in software what taps send
// to them.
func TestLiveSocket(t *testing.T) {
	sw := newSwitch(t)
	tap, a, b := tapHost(t, sw, 0, 1, vport.Config{}), socketHost(t, sw, 1, vport.Config{}),
		socketHost(t, sw, 2, vport.Config{})
	for _, pair := range [][2]*host{{tap, a}, {a, tap}, {a, b}} {
		tcp(t, pair[0], pair[1], 5<<20)
		udp(t, pair[0], pair[1], 1400)
		udp(t, pair[0], pair[1], 5000)
	}
	if mean := meanFrame(sw.Ports()[1]); mean > 1514 {
		t.Errorf("frames of mean length %d left by a socket", mean)
	}
}

func TestLiveMTUs(t *testing.T) {
	sw := newSwitch(t)
	jumbo := vport.Config{MTU: 9000}
	a, b := tapHost(t, sw, 0, 1, jumbo), tapHost(t, sw, 1, 1, jumbo)
	small, smallSocket, jumboSocket := tapHost(t, sw, 2, 1, vport.Config{}), socketHost(t, sw, 3, vport.Config{}),
		socketHost(t, sw, 4, jumbo)
	hosts := []*host{a, b, small, smallSocket, jumboSocket}
	for i, from := range hosts {
		for _, to := range hosts[i+1:] {
			tcp(t, from, to, 1<<20)
			tcp(t, to, from, 1<<20)
		}
	}
	for to, want := range map[*host]bool{b: true, small: false, smallSocket: false, jumboSocket: true} {
		if err := ping(t, a, to.v4, 8000); (err == nil) != want {
			t.Errorf("8000 bytes to %s: %v", to.v4, err)
		}
	}
	for _, p := range sw.Ports() {
		if got, want := p.Dropped(vswitch.TooBig) > 0, p.Name() == "h2" || p.Name() == "h3"; got != want {
			t.Errorf("port %s has dropped %d as too big", p.Name(), p.Dropped(vswitch.TooBig))
		}
	}
}

func TestLiveIsolation(t *testing.T) {
	sw := newSwitch(t)
	isolated := vport.Config{Settings: brport.Settings{Isolated: true}}
	a, b, uplink := tapHost(t, sw, 0, 1, isolated), tapHost(t, sw, 1, 1, isolated), tapHost(t, sw, 2, 1, vport.Config{})
	tcp(t, a, uplink, 1<<20)
	tcp(t, b, uplink, 1<<20)
	for _, addr := range []string{b.v4, b.v6} {
		if err := ping(t, a, addr, 0); err == nil {
			t.Errorf("%s answers a host that is isolated from it", addr)
		}
	}
}

// TestLivePortsUnderLoad adds and removes ports while streams run.
func TestLivePortsUnderLoad(t *testing.T) {
	sw := newSwitch(t)
	a, b := tapHost(t, sw, 0, 2, vport.Config{}), tapHost(t, sw, 1, 2, vport.Config{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 3 {
			tcp(t, a, b, 20<<20)
		}
	}()
	changes := 0
	for running := true; running; changes++ {
		for n := 2; n < 5; n++ {
			w, far, err := vswitch.SocketPair(0)
			if err != nil {
				t.Fatal(err)
			}
			addPort(t, sw, fmt.Sprint("s", n), w, vport.Config{})
			// It sends from an address that another port has in the next turn.
			_, _ = far.Write(append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 9, byte(n + changes%3)},
				make([]byte, 48)...))
			defer far.Close()
		}
		for n := 2; n < 5; n++ {
			if err := sw.RemovePort(fmt.Sprint("s", n)); err != nil {
				t.Fatal(err)
			}
		}
		select {
		case <-done:
			running = false
		case <-time.After(time.Millisecond):
		}
	}
	if changes < 10 {
		t.Errorf("only %d changes under load", changes)
	}
	for _, e := range sw.FDB().Dump() {
		if e.Port > 1 {
			t.Errorf("an address of a removed port remains: %+v", e)
		}
	}
}

// TestLiveTapRemoved deletes the device under the switch.
func TestLiveTapRemoved(t *testing.T) {
	sw := newSwitch(t)
	a, _ := tapHost(t, sw, 0, 1, vport.Config{}), tapHost(t, sw, 1, 1, vport.Config{})
	p := sw.Ports()[0]
	if err := a.nl.LinkDel(a.link("eth0")); err != nil {
		t.Fatal(err)
	}
	waitEnded(t, p)
	if !errors.Is(p.Err(), unix.EBADFD) {
		t.Errorf("the port ended with %v", p.Err())
	}
}

func waitEnded(t *testing.T, p *vswitch.Port) {
	t.Helper()
	select {
	case <-p.Ended():
	case <-time.After(10 * time.Second):
		t.Fatalf("port %s has not ended: %+v", p.Name(), p.Stats())
	}
}

// TestLiveTapDown counts the frames that a down device refuses, and checks that frames pass once it
// is up again.
func TestLiveTapDown(t *testing.T) {
	sw := newSwitch(t)
	a, b := tapHost(t, sw, 0, 1, vport.Config{}), tapHost(t, sw, 1, 1, vport.Config{})
	tcp(t, a, b, 1<<20)
	if err := b.nl.LinkSetDown(b.link("eth0")); err != nil {
		t.Fatal(err)
	}
	if err := ping(t, a, b.v4, 0); err == nil {
		t.Error("the host answers while its device is down")
	}
	if p := sw.Ports()[1]; p.Dropped(vswitch.Down) == 0 || p.Err() != nil {
		t.Errorf("%+v", p.Stats())
	}
	if err := b.nl.LinkSetUp(b.link("eth0")); err != nil {
		t.Fatal(err)
	}
	if err := ping(t, a, b.v4, 0); err != nil {
		t.Error(err)
	}
}

func TestLiveOpenTapLeavesAWrongOneAlone(t *testing.T) {
	sw := newSwitch(t)
	h := newHost(t, 0, "eth0")
	with, err := tun.CreateNumbered(h.ns, true)
	if err != nil {
		t.Fatal(err)
	}
	defer with.Close()
	without, err := tun.CreateNumbered(h.ns, false)
	if err != nil {
		t.Fatal(err)
	}
	defer without.Close()
	if _, err := vswitch.OpenTap(with.Queues()[0], without.Queues()[0]); err == nil {
		t.Error("queues of two taps were accepted as one tap")
	}
	if got := len(sw.Ports()); got != 0 {
		t.Errorf("%d ports", got)
	}
}
