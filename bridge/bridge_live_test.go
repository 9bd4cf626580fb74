package bridge_test

import (
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vmnet/bridge"
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

func create(t *testing.T, c *rtnl.Conn, cfg bridge.Config) *rtnl.Link {
	t.Helper()
	if err := bridge.Create(c, cfg); err != nil {
		t.Fatal(err)
	}
	br, err := bridge.Get(c, cfg.Name)
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

func TestLiveCreateShowDelete(t *testing.T) {
	_, c := open(t)
	mac := net.HardwareAddr{0x02, 0, 0, 0, 0, 7}
	cfg := bridge.Config{
		Name: "br0", MTU: 9000, MAC: mac, STP: true, Ageing: 20 * time.Second,
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.1.2.3/24"), netip.MustParsePrefix("fd00::1/64")},
	}
	create(t, c, cfg)
	got, err := bridge.Show(c, "br0")
	if err != nil {
		t.Fatal(err)
	}
	want := bridge.Info{
		Name: "br0", MAC: mac.String(), MTU: 9000, Up: true, STP: true, Ageing: 20,
		Addresses: []string{"10.1.2.3/24", "fd00::1/64"}, Ports: []bridge.Port{},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("show (-want +got):\n%s", diff)
	}
	if err := bridge.Create(c, cfg); !errors.Is(err, fs.ErrExist) {
		t.Errorf("name taken: got %v, want ErrExist", err)
	}
	if err := bridge.Delete(c, "br0", false); err != nil {
		t.Fatal(err)
	}
	if err := bridge.Delete(c, "br0", false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("deleted twice: got %v, want ErrNotExist", err)
	}
}

func TestLiveCreateLeavesNothingWhenAStepFails(t *testing.T) {
	_, c := open(t)
	twice := netip.MustParsePrefix("10.1.2.3/24")
	if err := bridge.Create(c, bridge.Config{Name: "br0", Addresses: []netip.Prefix{twice, twice}}); err == nil {
		t.Fatal("the same address twice was taken")
	}
	if _, err := c.Link("br0"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the bridge was left behind: %v", err)
	}
}

func TestLivePortsAreNotStolen(t *testing.T) {
	ns, c := open(t)
	br0, br1 := create(t, c, bridge.Config{Name: "br0"}), create(t, c, bridge.Config{Name: "br1"})
	_, port := tap(t, ns, c, "tap0")
	if err := bridge.AddPort(c, br0, port); err != nil {
		t.Fatal(err)
	}
	port, err := c.Link("tap0")
	if err != nil || port.Master != br0.Index || !port.Up || port.Port == nil {
		t.Fatalf("port %+v, %v: want it up on br0", port, err)
	}
	if err := bridge.AddPort(c, br1, port); err == nil || !strings.Contains(err.Error(), "port of br0") {
		t.Errorf("got %v, want an error that names br0", err)
	}
	if err := bridge.Delete(c, "br0", false); err == nil || !strings.Contains(err.Error(), "tap0") {
		t.Errorf("delete with a port: got %v, want an error that names tap0", err)
	}
	if err := bridge.RemovePort(c, port); err != nil {
		t.Fatal(err)
	}
	if err := bridge.Delete(c, "br0", false); err != nil {
		t.Error(err)
	}
	if err := bridge.AddPort(c, br1, br1); !errors.Is(err, syscall.ELOOP) && !errors.Is(err, syscall.EINVAL) {
		t.Errorf("a bridge on itself: got %v", err)
	}
}

func TestLiveTheAddressStaysWhilePortsComeAndGo(t *testing.T) {
	ns, c := open(t)
	br := create(t, c, bridge.Config{Name: "br0"})
	if want := bridge.DefaultMAC("br0"); br.MAC.String() != want.String() {
		t.Errorf("created with %s, want %s", br.MAC, want)
	}
	dev, port := tap(t, ns, c, "tap0")
	if err := c.Set(port.Index, rtnl.MAC(net.HardwareAddr{0, 0, 0, 0, 0, 1})); err != nil { // the lowest
		t.Fatal(err)
	}
	if err := bridge.AddPort(c, br, port); err != nil {
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
	if _, err := bridge.Get(c, "tap0"); err == nil || !strings.Contains(err.Error(), "not a bridge but a tun") {
		t.Errorf("got %v", err)
	}
}

func TestLiveForwardsInFollowsSTP(t *testing.T) {
	ns, c := open(t)
	for name, stp := range map[string]bool{"plain": false, "stp": true} {
		br := create(t, c, bridge.Config{Name: name, STP: stp})
		_, port := tap(t, ns, c, "tap-"+name)
		if err := bridge.AddPort(c, br, port); err != nil {
			t.Fatal(err)
		}
		port, err := c.LinkByIndex(port.Index)
		if err != nil {
			t.Fatal(err)
		}
		in := bridge.ForwardsIn(port, br)
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
	br := create(t, c, bridge.Config{Name: "br0"})
	dev, port := tap(t, ns, c, "tap0")
	_, other := tap(t, ns, c, "tap1")
	for _, p := range []*rtnl.Link{port, other} {
		if err := bridge.AddPort(c, br, p); err != nil {
			t.Fatal(err)
		}
	}
	frame := make([]byte, 10+60) // vnet header, then the frame
	copy(frame[10:], []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0, 1, 2, 3, 0x88, 0xb5})
	if _, err := dev.Queues()[0].Write(frame); err != nil {
		t.Fatal(err)
	}
	for _, only := range []int{0, port.Index} {
		got, err := bridge.LearnedBy(c, br.Index, only)
		if err != nil {
			t.Fatal(err)
		}
		want := map[int][]bridge.Learned{port.Index: {{MAC: "52:54:00:01:02:03"}}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("learned, port %d (-want +got):\n%s", only, diff)
		}
	}
	if got, err := bridge.LearnedBy(c, br.Index, other.Index); err != nil || len(got) != 0 {
		t.Errorf("behind tap1: %v, %v", got, err)
	}
}

func TestValidName(t *testing.T) {
	for name, want := range map[string]bool{
		"br0": true, "a-b_c.d": true, "fifteen-bytes-x": true,
		"": false, ".": false, "..": false, "sixteen-bytes-xx": false, "a/b": false, "a:b": false, "tap%d": false, "a b": false,
	} {
		if got := bridge.ValidName(name); got != want {
			t.Errorf("ValidName(%q) = %v", name, got)
		}
	}
}
