package bridges_test

import (
	"errors"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vmnet/bridge"
	"vmnet/bridge/brport"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/leaktest"
	"vmnet/internal/nstest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func open(t *testing.T) (*netns.NS, *rtnl.Conn) {
	t.Helper()
	ns := nstest.New(t)
	c, err := rtnl.Open(ns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return ns, c
}

// bridgesOf opens the bridges of ns by package bridge.
func bridgesOf(t *testing.T, ns *netns.NS) *bridge.Host {
	t.Helper()
	h, err := bridge.Open(ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

func create(t *testing.T, ns *netns.NS, c *rtnl.Conn, cfg bridge.Config) *rtnl.Link {
	t.Helper()
	if err := bridgesOf(t, ns).Create(cfg); err != nil {
		t.Fatal(err)
	}
	br, err := bridges.Get(c, cfg.Name)
	if err != nil {
		t.Fatal(err)
	}
	return br
}

func tap(t *testing.T, ns *netns.NS, c *rtnl.Conn, name string) (*tun.Tap, *rtnl.Link) {
	t.Helper()
	dev, err := tun.Create(ns, name, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dev.Close() })
	l, err := c.Link(name)
	if err != nil {
		t.Fatal(err)
	}
	return dev, l
}

func TestLivePortsAreNotStolen(t *testing.T) {
	ns, c := open(t)
	br0, br1 := create(t, ns, c, bridge.Config{Name: "br0"}), create(t, ns, c, bridge.Config{Name: "br1"})
	_, port := tap(t, ns, c, "tap0")
	if err := bridges.AddPort(c, br0, port, brport.Settings{}); err != nil {
		t.Fatal(err)
	}
	port, err := c.Link("tap0")
	if err != nil || port.Master != br0.Index || !port.Up || port.Port == nil {
		t.Fatalf("port %+v, %v: want it up on br0", port, err)
	}
	if err := bridges.AddPort(c, br1, port, brport.Settings{}); err == nil ||
		!strings.Contains(err.Error(), "port of br0") {
		t.Errorf("got %v, want an error that names br0", err)
	}
	if err := bridgesOf(t, ns).Delete("br0", false); err == nil || !strings.Contains(err.Error(), "tap0") {
		t.Errorf("delete with a port: got %v, want an error that names tap0", err)
	}
	if err := bridges.RemovePort(c, port); err != nil {
		t.Fatal(err)
	}
	if err := bridgesOf(t, ns).Delete("br0", false); err != nil {
		t.Error(err)
	}
	if err := bridges.AddPort(c, br1, br1, brport.Settings{}); !errors.Is(err, syscall.ELOOP) &&
		!errors.Is(err, syscall.EINVAL) {
		t.Errorf("a bridge on itself: got %v", err)
	}
}

func TestLiveTheAddressStaysWhilePortsComeAndGo(t *testing.T) {
	ns, c := open(t)
	br := create(t, ns, c, bridge.Config{Name: "br0"})
	if want := bridge.DefaultMAC("br0"); br.MAC.String() != want.String() {
		t.Errorf("created with %s, want %s", br.MAC, want)
	}
	dev, port := tap(t, ns, c, "tap0")
	if err := c.Set(port.Index, rtnl.MAC(net.HardwareAddr{0, 0, 0, 0, 0, 1})); err != nil { // the lowest
		t.Fatal(err)
	}
	if err := bridges.AddPort(c, br, port, brport.Settings{}); err != nil {
		t.Fatal(err)
	}
	for _, when := range []string{"with a port", "after it went"} {
		if now, err := c.Link("br0"); err != nil || now.MAC.String() != br.MAC.String() {
			t.Errorf("%s: %+v, %v: want %s", when, now, err, br.MAC)
		}
		if err := dev.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLiveNotABridge(t *testing.T) {
	ns, c := open(t)
	tap(t, ns, c, "tap0")
	if _, err := bridges.Get(c, "tap0"); err == nil || !strings.Contains(err.Error(), "not a bridge but a tun") {
		t.Errorf("got %v", err)
	}
}

func TestLiveForwardsInFollowsSTP(t *testing.T) {
	ns, c := open(t)
	for name, stp := range map[string]bool{"plain": false, "stp": true} {
		br := create(t, ns, c, bridge.Config{Name: name, STP: stp})
		_, port := tap(t, ns, c, "tap-"+name)
		if err := bridges.AddPort(c, br, port, brport.Settings{}); err != nil {
			t.Fatal(err)
		}
		port, err := c.LinkByIndex(port.Index)
		if err != nil {
			t.Fatal(err)
		}
		in := bridges.ForwardsIn(port, br)
		if stp && (in < 25*time.Second || in > 30*time.Second || port.Port.State != rtnl.Listening) {
			t.Errorf("with STP: %v in state %v, want listening and nearly 30 s", in, port.Port.State)
		}
		if !stp && (in != 0 || port.Port.State != rtnl.Forwarding) {
			t.Errorf("without STP: %v in state %v, want forwarding now", in, port.Port.State)
		}
	}
}

func TestLiveLearnedBelongsToItsPort(t *testing.T) {
	ns, c := open(t)
	br := create(t, ns, c, bridge.Config{Name: "br0"})
	dev, port := tap(t, ns, c, "tap0")
	_, other := tap(t, ns, c, "tap1")
	for _, p := range []*rtnl.Link{port, other} {
		if err := bridges.AddPort(c, br, p, brport.Settings{}); err != nil {
			t.Fatal(err)
		}
	}
	frame := make([]byte, 10+60) // vnet header, then the frame
	copy(frame[10:], []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0, 1, 2, 3, 0x88, 0xb5})
	if _, err := dev.Queues()[0].Write(frame); err != nil {
		t.Fatal(err)
	}
	for _, only := range []int{0, port.Index} {
		got, err := bridges.LearnedBy(c, br.Index, only)
		if err != nil {
			t.Fatal(err)
		}
		want := map[int][]brport.Learned{port.Index: {{MAC: "52:54:00:01:02:03"}}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("learned, port %d (-want +got):\n%s", only, diff)
		}
	}
	if got, err := bridges.LearnedBy(c, br.Index, other.Index); err != nil || len(got) != 0 {
		t.Errorf("behind tap1: %v, %v", got, err)
	}
}
