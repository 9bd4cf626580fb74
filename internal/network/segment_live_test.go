package network

import (
	"errors"
	"io/fs"
	"net/netip"
	"strings"
	"testing"

	"vmnet/bridge/vxlan"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/network/config"
	"vmnet/internal/nstest"
)

// onSegment is a network on the segment of two hosts.
func onSegment(local, remote string) *config.Network {
	u := config.NewVXLAN("seg", vxlan.Config{
		VNI: 77, Local: netip.MustParseAddr(local), Remotes: []netip.Addr{netip.MustParseAddr(remote)},
	})
	return &config.Network{Name: "seg", Domain: "seg.internal", Uplink: &u}
}

// newSegment is two hosts, each of which is the other's wan.
func newSegment(t *testing.T) (x, y *h) {
	x = newHost(t)
	y = &h{TB: t, host: x.wan, wan: x.host, m: newManager(t, x.wan)}
	y.ip(y.host, "link", "set", "e0", "name", "up0")
	return x, y
}

// TestLiveSegment: guests of two hosts are on one segment, on which one host has the DHCP server.
// What others break is mended, what changes in the file is changed, and nothing is left.
func TestLiveSegment(t *testing.T) {
	x, y := newSegment(t)
	beforeX, beforeY := x.left(), y.left()
	n := onSegment(hostIP, wanIP)
	n.DHCP, n.Subnet = true, netip.MustParsePrefix("10.9.0.0/24")
	n.Uplink.Range = config.Range{First: netip.MustParseAddr("10.9.0.200"), Last: netip.MustParseAddr("10.9.0.210")}
	x.create(n)
	y.create(onSegment(wanIP, hostIP))
	x.consistent()
	y.consistent()
	if _, changed, err := x.m.Apply(x.ctx(), "seg"); err != nil || changed {
		t.Errorf("a second apply: %v, changed %v", err, changed)
	}
	s, err := y.m.Show(y.ctx(), "seg")
	if err != nil || s.State != StateUp || s.Uplink != "vx77" || s.MTU != 1450 || len(s.Ports) > 0 ||
		s.VXLAN == nil || s.VXLAN.Remotes[0].String() != hostIP {
		t.Errorf("%+v, %v", s, err)
	}
	here, there := x.guest("seg", webMAC), y.guest("seg", dbMAC)
	nstest.Eventually(t, patience, "a guest of the other host gets a lease", func() bool {
		told, err := there.dhcp("db")
		return err == nil && strings.HasPrefix(told, "lease 10.9.0.2") && strings.HasSuffix(told, " mtu 1450")
	})
	here.lease("web")
	x.answers(here.ns, ":80")
	y.wants("across the segment", y.ask(there.ns, here.ip+":80"), there.ip)
	if err := y.m.Delete(y.ctx(), "seg", false); !errors.Is(err, ErrGuests) || strings.Contains(err.Error(), "vx77") {
		t.Errorf("delete with guests: %v", err)
	}

	y.ip(y.host, "link", "del", "vx77")
	c, err := y.m.Check(y.ctx(), "seg")
	if err != nil || len(c.Differences) == 0 || !strings.Contains(c.Differences[0].Want, "ip link add vx77") {
		t.Errorf("without its device: %+v, %v", c, err)
	}
	y.replace(func(n *config.Network) {}) // makes it again
	y.wants("mended", y.ask(there.ns, here.ip+":80"), there.ip)
	y.replace(func(n *config.Network) { n.MTU = 1400 })
	if l, err := y.m.nl.Link("vx77"); err != nil || l.MTU != 1400 || l.Port == nil {
		t.Errorf("another MTU: %+v, %v", l, err)
	}
	err = y.m.Replace(y.ctx(), "seg", func(n *config.Network) error { n.MTU = 1500; return nil })
	if err == nil || !strings.Contains(err.Error(), "need 1550 bytes on up0") {
		t.Errorf("an MTU that does not fit: %v", err)
	}
	y.replace(func(n *config.Network) { n.Uplink.VXLAN.Remotes = []netip.Addr{netip.MustParseAddr("203.0.113.9")} })
	l, err := y.m.nl.Link("vx77")
	if err != nil {
		t.Fatal(err)
	}
	hosts, err := bridges.Floods(y.m.nl, l.Index)
	if err != nil || len(hosts) != 1 || hosts[0].String() != "203.0.113.9" {
		t.Errorf("another host: %v, %v", hosts, err)
	}
	y.replace(func(n *config.Network) {
		u := config.NewVXLAN("seg", vxlan.Config{VNI: 78, Local: netip.MustParseAddr(wanIP)})
		n.Uplink = &u
	})
	if l, err := y.m.nl.Link("vx78"); err != nil || l.VXLAN.Learning || !l.Port.NeighSuppress {
		t.Errorf("another segment: %+v, %v", l, err)
	}
	for _, host := range []*h{x, y} {
		host.ip(host.host, "link", "del", "g1")
		if err := host.m.Delete(host.ctx(), "seg", false); err != nil {
			t.Fatal(err)
		}
	}
	x.wants("left", x.left(), beforeX)
	y.wants("left", y.left(), beforeY)
}

// replace changes the file of network seg, and checks that it is so.
func (x *h) replace(change func(*config.Network)) {
	x.Helper()
	if err := x.m.Replace(x.ctx(), "seg", func(n *config.Network) error { change(n); return nil }); err != nil {
		x.Fatal(err)
	}
	x.consistent()
}

// TestLiveSegmentFails: an error in the place of each step leaves what there was before: nothing,
// or the segment with its former MTU. What is another bridge's is left alone.
func TestLiveSegmentFails(t *testing.T) {
	x := newHost(t)
	before := x.left()
	create := func() error { return x.m.Create(x.ctx(), Wanted{Network: onSegment(hostIP, wanIP)}) }
	for i := range x.steps(create) {
		x.m.Run = at(i, false, false)
		if err := create(); !errors.Is(err, errBroken) {
			t.Fatalf("step %d: %v", i, err)
		}
		x.wants("left", x.left(), before)
	}
	x.m.Run = nil
	x.create(onSegment(hostIP, wanIP))
	shrink := func() error {
		return x.m.Replace(x.ctx(), "seg", func(n *config.Network) error { n.MTU = 1400; return nil })
	}
	for i := range x.steps(shrink) {
		x.m.Run = at(i, false, false)
		if err := shrink(); !errors.Is(err, errBroken) {
			t.Fatalf("step %d: %v", i, err)
		}
		x.m.Run = nil
		x.consistent()
	}
	taken := onSegment(hostIP, wanIP)
	taken.Name = "seg2"
	if err := x.m.Create(x.ctx(), Wanted{Network: taken}); err == nil ||
		!strings.Contains(err.Error(), "there is a device vx77 that was not made for seg2") {
		t.Errorf("the segment of another network: %v", err)
	}
	elsewhere := config.NewVXLAN("seg2", vxlan.Config{VNI: 78, Local: netip.MustParseAddr("203.0.113.77")})
	taken.Uplink = &elsewhere
	if err := x.m.Create(x.ctx(), Wanted{Network: taken}); err == nil ||
		!strings.Contains(err.Error(), "this host does not have it") {
		t.Errorf("an address of another host: %v", err)
	}
	x.ip(x.host, "link", "del", "seg") // by somebody else
	if err := x.m.Delete(x.ctx(), "seg", false); err != nil {
		t.Fatal(err)
	}
	x.wants("left", x.left(), before)
	x.ip(x.host, "link", "add", "plain", "type", "bridge")
	x.ip(x.host, "link", "add", "vx9", "alias", "vmnet vxlan bridge=plain",
		"type", "vxlan", "id", "9", "dstport", "4789")
	if err := x.m.Delete(x.ctx(), "plain", false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("delete of a bridge that is no network's: %v", err)
	}
	x.ip(x.host, "link", "show", "vx9")
}
