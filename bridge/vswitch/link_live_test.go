package vswitch_test

import (
	"testing"
	"time"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
)

// followedTap makes a tap in a network namespace of its own, as vmnet switch run does, and moves it
// to host n.
func followedTap(t testing.TB, sw *vswitch.Switch, n int, cfg vport.Config) (*host, *vswitch.Port) {
	t.Helper()
	made, h := newHost(t, 100+n, "eth0"), newHost(t, n, "eth0")
	tap, err := tun.Create(made.ns, "eth0", false)
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close() // the switch has copies
	w, err := vswitch.OpenTap(tap.Queues()...)
	if err != nil {
		t.Fatal(err)
	}
	link, err := vswitch.LinkFile(made.ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer link.Close()
	if err := w.Follow(link); err != nil {
		t.Fatal(err)
	}
	p := addPort(t, sw, h.v4, w, cfg)
	if err := made.nl.LinkSetNsFd(made.link("eth0"), int(h.ns.Handle())); err != nil {
		t.Fatal(err)
	}
	return h, p
}

// TestLivePortFollowsItsDevice changes the MTU of devices under their ports, and sets them down and
// up.
func TestLivePortFollowsItsDevice(t *testing.T) {
	sw := newSwitch(t)
	guest, port := followedTap(t, sw, 0, vport.Config{})
	guest.up(1500)
	fixed, fixedPort := followedTap(t, sw, 3, vport.Config{MTU: 1400})
	outside, middle := newHost(t, 1, "lan0"), newHost(t, 2, "lan0")
	veth(t, outside, middle, "lan0", 1500)
	outside.up(1500)
	up := addPort(t, sw, "up", openPacket(t, middle, "lan0"), vport.Config{})

	for _, mtu := range []int{1500, 9000, 1300, 2000} {
		for _, h := range []*host{guest, fixed, outside, middle} {
			if err := h.nl.LinkSetMTU(h.link(h.device), mtu); err != nil {
				t.Fatal(err)
			}
		}
		nstest.Eventually(t, 20*time.Second, "the ports follow the MTU", func() bool {
			return port.Stats().MTU == mtu && up.Stats().MTU == mtu
		})
		if err := ping(t, guest, outside.v4, mtu-28); err != nil {
			t.Errorf("a full frame of MTU %d: %v", mtu, err)
		}
		tcp(t, outside, guest, 1<<20)
	}
	if got := fixedPort.Stats().MTU; got != 1400 {
		t.Errorf("the port whose MTU was set has %d", got)
	}

	if err := guest.nl.LinkSetName(guest.link("eth0"), "lan0"); err != nil {
		t.Fatal(err)
	}
	guest.device = "lan0"
	nstest.Eventually(t, 20*time.Second, "the port follows the name", func() bool {
		s, ok := port.Link()
		return ok && s.Name == "lan0"
	})

	for h, p := range map[*host]*vswitch.Port{guest: port, middle: up} {
		is := func(want bool) func() bool {
			return func() bool { s, ok := p.Link(); return ok && s.Up == want && s.Carrier == want }
		}
		nstest.Eventually(t, 20*time.Second, "the port knows that its device is up", is(true))
		if err := h.nl.LinkSetDown(h.link(h.device)); err != nil {
			t.Fatal(err)
		}
		nstest.Eventually(t, 20*time.Second, "the port knows that its device is down", is(false))
		if err := h.nl.LinkSetUp(h.link(h.device)); err != nil {
			t.Fatal(err)
		}
		nstest.Eventually(t, 20*time.Second, "the port knows that its device is up again", is(true))
	}
}
