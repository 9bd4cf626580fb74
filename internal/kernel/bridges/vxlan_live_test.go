package bridges_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"vmnet/bridge"
	"vmnet/bridge/vxlan"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/nstest"
	"vmnet/step"
)

const patience = 20 * time.Second

// wired returns hosts with a bridge br0 and a guest's tap each, on one wire: host i has the address
// prefix followed by i+1.
func wired(t *testing.T, prefix string, bits, mtu int) (a, b *lan) {
	t.Helper()
	return wiredBy(t, bridge.Config{}, prefix, bits, mtu)
}

// wiredBy is wired for bridges with that configuration.
func wiredBy(t *testing.T, cfg bridge.Config, prefix string, bits, mtu int) (a, b *lan) {
	t.Helper()
	a, b = newLAN(t, cfg), newLAN(t, cfg)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(a.c.Create("veth", rtnl.Name("eth0"), rtnl.MTU(mtu), rtnl.VethPeer("eth0", b.ns)))
	for i, l := range []*lan{a, b} {
		eth := l.link("eth0")
		must(l.c.Set(eth.Index, rtnl.MTU(mtu), rtnl.Up(true)))
		addr := netip.MustParseAddr(fmt.Sprintf("%s%d", prefix, i+1))
		must(l.c.AddAddr(eth.Index, netip.PrefixFrom(addr, bits)))
		l.add("tap0", "")
	}
	return a, b
}

// segment returns the steps for a VXLAN device of l's bridge.
func (l *lan) segment(cfg vxlan.Config, mtu int) ([]step.Step, error) {
	there := func() (*rtnl.Link, error) { return bridges.Get(l.c, l.br.Name) }
	return bridges.VXLANSteps(l.c, l.br.Name, cfg, mtu, there)
}

// join makes the device, and returns how many steps that took.
func (l *lan) join(cfg vxlan.Config) int {
	l.t.Helper()
	steps, err := l.segment(cfg, 0)
	if err == nil {
		err = step.Run(context.Background(), steps, nil)
	}
	if err != nil {
		l.t.Fatal(err)
	}
	return len(steps)
}

// crosses reports whether a frame of l's tap reaches that of other.
func (l *lan) crosses(other *lan, to, from host) bool {
	l.t.Helper()
	l.sent++
	if _, err := l.taps["tap0"].Queues()[0].Write(frame(to, from, untagged, l.sent)); err != nil {
		l.t.Fatal(err)
	}
	return slices.ContainsFunc(other.frames()["tap0"], func(f []byte) bool {
		_, id, ok := parseFrame(f)
		return ok && id == l.sent
	})
}

func addrs(texts ...string) (all []netip.Addr) {
	for _, text := range texts {
		all = append(all, netip.MustParseAddr(text))
	}
	return all
}

// TestLiveVXLAN: guests of two hosts reach each other over IPv4 and IPv6 by listed hosts, answers
// are sent only where the guest is, and a host that is listed no more gets nothing.
func TestLiveVXLAN(t *testing.T) {
	for _, c := range []struct {
		prefix string
		bits   int
	}{{"192.0.2.", 24}, {"fd00::", 64}} {
		a, b := wired(t, c.prefix, c.bits, 1600)
		one, two, other := c.prefix+"1", c.prefix+"2", c.prefix+"9"
		cfg := vxlan.Config{VNI: 77, Local: netip.MustParseAddr(one), Remotes: addrs(two)}
		a.join(cfg)
		b.join(vxlan.Config{VNI: 77, Local: netip.MustParseAddr(two), Remotes: addrs(one)})
		nstest.Eventually(t, patience, "a broadcast crosses", func() bool { return a.crosses(b, everybody, 1) })
		nstest.Eventually(t, patience, "an answer crosses", func() bool { return b.crosses(a, 1, 2) })
		vx := a.link("vx77")
		if vx.MTU != 1500 || vx.HostIPv6 || !vx.VXLAN.Learning || !vx.Port.Learning || vx.Port.NeighSuppress {
			t.Errorf("%+v, %+v, %+v", vx, vx.VXLAN, vx.Port)
		}
		entries, err := a.c.RemoteFDB(vx.Index)
		if err != nil || !slices.ContainsFunc(entries, func(e rtnl.RemoteEntry) bool {
			return e.MAC[5] == 2 && e.Dst == netip.MustParseAddr(two) && !e.Permanent && !e.External
		}) {
			t.Errorf("%+v, %v: want guest 2 behind %s", entries, err, two)
		}
		if n := a.join(cfg); n != 0 {
			t.Errorf("the same again takes %d steps", n)
		}
		cfg.Remotes = addrs(other)
		if n := a.join(cfg); n != 2 {
			t.Errorf("another list takes %d steps", n)
		}
		if hosts, err := bridges.Floods(a.c, vx.Index); err != nil || !slices.Equal(hosts, cfg.Remotes) {
			t.Errorf("%v, %v: want %v", hosts, err, cfg.Remotes)
		}
		if a.crosses(b, everybody, 1) {
			t.Error("a host that is listed no more gets broadcasts")
		}
	}
}

// TestLiveVXLANForFRR: without a list, neither device nor port learns, ARP is suppressed, and the
// entries that another program adds stay.
func TestLiveVXLANForFRR(t *testing.T) {
	a, _ := wired(t, "192.0.2.", 24, 1500)
	cfg := vxlan.Config{VNI: 100, Local: netip.MustParseAddr("192.0.2.1")}
	a.join(cfg)
	vx := a.link("vx100")
	if vx.MTU != 1450 || vx.VXLAN.Learning || vx.Port == nil || vx.Port.Learning || !vx.Port.NeighSuppress || !vx.Up {
		t.Errorf("%+v, %+v, %+v", vx, vx.VXLAN, vx.Port)
	}
	if err := a.c.AddFlood(vx.Index, rtnl.Flood{Dst: netip.MustParseAddr("192.0.2.2")}); err != nil {
		t.Fatal(err)
	}
	if n := a.join(cfg); n != 0 {
		t.Errorf("the same again takes %d steps", n)
	}
	if hosts, err := bridges.Floods(a.c, vx.Index); err != nil || len(hosts) != 1 {
		t.Errorf("%v, %v: want what another program has added", hosts, err)
	}
}

// TestLiveVXLANFaults breaks each step, and ends the process before each: nothing is left, or the
// next call completes it.
func TestLiveVXLANFaults(t *testing.T) {
	a, _ := wired(t, "192.0.2.", 24, 1600)
	for _, cfg := range []vxlan.Config{
		{VNI: 77, Local: netip.MustParseAddr("192.0.2.1"), Remotes: addrs("192.0.2.2", "192.0.2.3")},
		{VNI: 100, Local: netip.MustParseAddr("192.0.2.1")},
	} {
		steps, err := a.segment(cfg, 1400)
		if err != nil {
			t.Fatal(err)
		}
		gone := func() bool {
			_, err := a.c.Link(cfg.Interface("br0"))
			return errors.Is(err, fs.ErrNotExist)
		}
		full := errors.New("no space left on device")
		for i := range steps {
			around := func(ctx context.Context, s step.Step, do func(context.Context) error) error {
				if s.Name == steps[i].Name {
					return errors.Join(do(ctx), full)
				}
				return do(ctx)
			}
			err := step.Run(context.Background(), steps, around)
			if !errors.Is(err, full) || !gone() {
				t.Errorf("%s broken: %v, and the device is gone: %v", steps[i].Name, err, gone())
			}
			for _, s := range steps[:i+1] {
				if err := s.Do(context.Background()); err != nil {
					t.Fatal(err)
				}
			}
			a.join(cfg)
			if l := a.link(cfg.Interface("br0")); !l.Up || l.Port == nil || l.MTU != 1400 || a.join(cfg) != 0 {
				t.Errorf("killed after %s: %+v", steps[i].Name, l)
			}
			if err := steps[0].Undo(context.Background()); err != nil || !gone() {
				t.Fatal(err)
			}
		}
	}
}

// TestLiveVXLANRefused: what belongs to others is never touched, and what cannot work is refused
// before anything is made.
func TestLiveVXLANRefused(t *testing.T) {
	a, _ := wired(t, "192.0.2.", 24, 1500)
	local := netip.MustParseAddr("192.0.2.1")
	refused := func(want string, cfg vxlan.Config, mtu int) {
		t.Helper()
		steps, err := a.segment(cfg, mtu)
		if err == nil {
			err = step.Run(context.Background(), steps, nil)
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", cfg, err, want)
		}
	}
	refused("this host does not have it", vxlan.Config{VNI: 1, Local: netip.MustParseAddr("192.0.2.7")}, 0)
	refused("unreachable (ip route get", vxlan.Config{VNI: 1, Local: local, Remotes: addrs("198.51.100.1")}, 0)
	refused("need 1550 bytes on eth0, which has 1500", vxlan.Config{VNI: 1, Local: local}, 1500)
	if err := a.c.Create("bridge", rtnl.Name("vx5")); err != nil {
		t.Fatal(err)
	}
	refused("not made for br0", vxlan.Config{VNI: 5, Local: local}, 0)
	foreign := rtnl.NewVXLAN(rtnl.VXLAN{VNI: 6, Local: local, Port: 4789, Learning: true})
	if err := a.c.Create("vxlan", append(foreign, rtnl.Name("other"))...); err != nil {
		t.Fatal(err)
	}
	refused("another VXLAN device has VNI 6", vxlan.Config{VNI: 6, Local: local}, 0)
	a.join(vxlan.Config{VNI: 7, Local: local})
	refused("br0 has the VXLAN device vx7 already", vxlan.Config{VNI: 8, Local: local}, 0)
	refused("remote hosts is added by another program, asked for listed",
		vxlan.Config{VNI: 7, Local: local, Remotes: addrs("192.0.2.2")}, 0)
	refused("port is 4789, asked for 4790", vxlan.Config{VNI: 7, Local: local, Port: 4790}, 0)
	refused("MTU is 1450, asked for 1400", vxlan.Config{VNI: 7, Local: local}, 1400)
	links, err := a.c.Links("vxlan", 0)
	if err != nil || len(links) != 2 {
		t.Errorf("%v, %v: want other and vx7", links, err)
	}
}
