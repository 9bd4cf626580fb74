package vswitch_test

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
)

// tunHost makes host n behind a tun port "hN" of the switch.
func tunHost(t testing.TB, sw *vswitch.Switch, n int, cfg vport.Config) *host {
	t.Helper()
	h := newHost(t, n, "tun0")
	dev, err := tun.CreateTun(h.ns, "tun0")
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close() // the switch has a copy
	addresses := vport.Tun{Addresses: []netip.Prefix{
		netip.MustParsePrefix(h.v4 + "/16"), netip.MustParsePrefix(h.v6 + "/64"),
	}}
	cfg.MACs = []net.HardwareAddr{{2, 0xaa, 0, 0, byte(n >> 8), byte(n)}}
	w, err := vswitch.OpenTun(dev.Queues()[0], cfg.MACs[0], addresses)
	if err != nil {
		t.Fatal(err)
	}
	link, err := vswitch.LinkFile(h.ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer link.Close()
	if err := w.Follow(link); err != nil {
		t.Fatal(err)
	}
	p := addPort(t, sw, fmt.Sprintf("h%d", n), w, cfg)
	h.up(max(cfg.MTU, 1500))
	nstest.Eventually(t, 20*time.Second, "the port is up", func() bool { return p.State() == vport.StateUp })
	return h
}

// TestLiveTunPort exchanges packets between the kernel behind a tun and a station on a tap, and
// with another tun: TCP, UDP and super-frames of both.
func TestLiveTunPort(t *testing.T) {
	sw := newSwitch(t)
	a, b := tunHost(t, sw, 0, vport.Config{}), tapHost(t, sw, 1, 1, vport.Config{})
	c := tunHost(t, sw, 2, vport.Config{})
	for _, pair := range [][2]*host{{a, b}, {b, a}, {a, c}, {c, a}} {
		for _, addr := range []string{pair[1].v4, pair[1].v6} {
			if err := ping(t, pair[0], addr, 56); err != nil {
				t.Errorf("%s to %s: %v", pair[0].v4, addr, err)
			}
		}
		tcp(t, pair[0], pair[1], 8<<20)
		udp(t, pair[0], pair[1], 1200)
		if describesUDP(t) {
			datagrams(t, pair[0], pair[1])
		}
	}
	for _, name := range []string{"h0", "h1", "h2"} {
		if mean := receivedMean(named(t, sw, name)); mean < 2000 {
			t.Errorf("%s: no super-frames: mean length %d", name, mean)
		}
	}
	// Broadcasts and multicasts pass in both directions.
	before := named(t, sw, "h1").Stats().Total().TxFrames
	if err := a.ns.Do(func() error { return broadcast(10) }); err != nil {
		t.Fatal(err)
	}
	nstest.Eventually(t, 20*time.Second, "the broadcasts arrive", func() bool {
		return named(t, sw, "h1").Stats().Total().TxFrames >= before+10
	})
	if err := ping(t, a, "10.9.77.77", 56); err == nil {
		t.Error("nobody has answered")
	}
	nstest.Eventually(t, 20*time.Second, "it is counted", func() bool {
		return named(t, sw, "h0").Dropped(vswitch.Unanswered) > 0
	})
}

// TestLiveTunNeighborMoves: a station's address is another one's afterwards, and is found there.
func TestLiveTunNeighborMoves(t *testing.T) {
	sw := newSwitch(t)
	a, b := tunHost(t, sw, 0, vport.Config{}), tapHost(t, sw, 1, 1, vport.Config{})
	c := tapHost(t, sw, 2, 1, vport.Config{})
	tcp(t, a, b, 1<<20)
	b.ip("addr flush dev eth0")
	c.ip("addr flush dev eth0 scope global")
	c.ip("addr add %s/16 dev eth0", b.v4)
	c.ip("addr add %s/64 dev eth0 nodad", b.v6)
	// It speaks first, so that the tun learns at once.
	for _, addr := range []string{a.v4, a.v6} {
		c.ip("neigh flush all")
		if err := ping(t, c, addr, 56); err != nil {
			t.Error(err)
		}
	}
	c.v4, c.v6 = b.v4, b.v6
	tcp(t, a, c, 1<<20)
}

// TestLiveTunEnds: the port follows its device, and ends with it.
func TestLiveTunEnds(t *testing.T) {
	sw := newSwitch(t)
	a := tunHost(t, sw, 0, vport.Config{})
	p := named(t, sw, "h0")
	a.ip("link set tun0 mtu 1300")
	nstest.Eventually(t, 20*time.Second, "the port has the MTU", func() bool { return p.Stats().MTU == 1300 })
	a.ip("link set tun0 down")
	nstest.Eventually(t, 20*time.Second, "the port is down", func() bool { return p.State() == vport.StateDown })
	a.ip("link del tun0")
	nstest.Eventually(t, 20*time.Second, "the port has ended", func() bool { return p.Err() != nil })

	h := newHost(t, 1, "tap1")
	tap, err := tun.Create(h.ns, "tap1", false)
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	good := vport.Tun{Addresses: []netip.Prefix{netip.MustParsePrefix("10.9.0.1/16")}}
	if w, err := vswitch.OpenTun(tap.Queues()[0], net.HardwareAddr{2, 0, 0, 0, 0, 1}, good); err == nil {
		t.Error("a tap is taken")
		_ = w.Close()
	}
}
