package bridges_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vmnet/bridge"
	"vmnet/bridge/vxlan"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/nstest"
	"vmnet/step"
	"vmnet/testvm/lab"
)

// mapped returns two hosts whose bridges filter VLANs, with guests in VLANs and one with all.
func mapped(t *testing.T, prefix string, bits int) (a, b *lan) {
	t.Helper()
	lab.Inside(t)
	a, b = wiredBy(t, bridge.Config{VLANFiltering: true}, prefix, bits, 1600)
	for _, l := range []*lan{a, b} {
		for _, vlan := range []int{10, 20, 30} {
			l.add(fmt.Sprintf("t%d", vlan), fmt.Sprintf("vlan:%d", vlan))
		}
		l.add("every", "trunk:2-4094")
	}
	return a, b
}

func mapConfig(t *testing.T, list, local string, remotes ...string) vxlan.Config {
	t.Helper()
	m, err := vxlan.ParseMap(list)
	if err != nil {
		t.Fatal(err)
	}
	return vxlan.Config{Map: m, Local: netip.MustParseAddr(local), Remotes: addrs(remotes...)}
}

// arrivals sends a frame, and after it others of VLAN 10 until one of them has arrived at the other
// host: what of the first one arrives is there by then. It returns the ports at the other host that
// got it, and its tag there.
func (l *lan) arrivals(other *lan, s sending, to, from host) map[string]int {
	l.t.Helper()
	write := func(port string, b []byte) {
		if _, err := l.taps[port].Queues()[0].Write(b); err != nil {
			l.t.Fatal(err)
		}
	}
	l.sent++
	first := l.sent
	write(s.from, frame(to, from, s.vlan, first))
	got := map[string]int{}
	nstest.Eventually(l.t, patience, "a frame of VLAN 10 crosses", func() (marked bool) {
		l.sent++
		write("t10", frame(everybody, 99, untagged, l.sent))
		for port, frames := range other.frames() {
			for _, f := range frames {
				switch vlan, id, ok := parseFrame(f); {
				case ok && id == first:
					got[port] = vlan
				case ok && id > first:
					marked = true
				}
			}
		}
		return marked
	})
	return got
}

// TestLabVXLANMap: tagged frames of two hosts cross in a segment for each VLAN, which the hosts may
// call by different VLANs. What is in no segment stays on its host.
func TestLabVXLANMap(t *testing.T) {
	for _, c := range []struct {
		prefix string
		bits   int
	}{{"192.0.2.", 24}, {"fd00::", 64}} {
		a, b := mapped(t, c.prefix, c.bits)
		one, two := c.prefix+"1", c.prefix+"2"
		cfg := mapConfig(t, "10:10010,20:10020", one, two)
		a.join(cfg)
		b.join(mapConfig(t, "10:10010,30:10020", two, one))
		for _, s := range []sending{
			{"t10", untagged, map[string]int{"t10": untagged, "every": 10}},
			{"every", 10, map[string]int{"t10": untagged, "every": 10}},
			{"t20", untagged, map[string]int{"t30": untagged, "every": 30}},
			{"every", 20, map[string]int{"t30": untagged, "every": 30}},
			{"t30", untagged, map[string]int{}},
			{"every", 30, map[string]int{}},
			{"every", 4094, map[string]int{}},
			{"tap0", untagged, map[string]int{}}, // in the default VLAN
		} {
			diff(t, a.describe(s)+" to the other host", s.want, a.arrivals(b, s, everybody, 1))
		}
		// Guest 1 is in both VLANs of a: answers go to it in the asker's, and to no other port.
		diff(t, "an answer in VNI 10010", map[string]int{"every": 10},
			b.arrivals(a, sending{"t10", untagged, nil}, 1, 2))
		diff(t, "an answer in VNI 10020", map[string]int{"every": 20},
			b.arrivals(a, sending{"t30", untagged, nil}, 1, 3))
		wantRemote(t, a, two, map[int]host{10010: 2, 10020: 3})
		if n := a.join(cfg); n != 0 {
			t.Errorf("the same again takes %d steps", n)
		}
	}
}

// wantRemote checks which guests a has learned behind a host, by VNI.
func wantRemote(t *testing.T, a *lan, behind string, want map[int]host) {
	t.Helper()
	entries, err := a.c.RemoteFDB(a.link("vx-br0").Index)
	if err != nil {
		t.Fatal(err)
	}
	for vni, guest := range want {
		if !slices.ContainsFunc(entries, func(e rtnl.RemoteEntry) bool {
			return e.VNI == vni && slices.Equal(e.MAC, guest.mac()) && e.Dst == netip.MustParseAddr(behind)
		}) {
			t.Errorf("%+v: want guest %d in VNI %d behind %s", entries, guest, vni, behind)
		}
	}
}

// state is what a device with a map has: VLANs, VNIs, and the hosts of each VNI.
func (l *lan) state() string {
	l.t.Helper()
	dev := l.link("vx-br0")
	m, err := bridges.ReadMap(l.c, dev)
	if err != nil {
		l.t.Fatal(err)
	}
	entries, err := l.c.RemoteFDB(dev.Index)
	if err != nil {
		l.t.Fatal(err)
	}
	var floods []string
	for _, e := range entries {
		if e.IsFlood() {
			floods = append(floods, fmt.Sprintf("%d>%s", e.VNI, e.Dst))
		}
	}
	slices.Sort(floods)
	vnis := slices.Sorted(maps.Keys(m.VNIs))
	return fmt.Sprintf("%v %v %v up=%v", m.VLANs, vnis, floods, dev.Up)
}

// TestLabVXLANMapChanges: another map, or another list of hosts, is made in place, and what stays
// in the map goes on.
func TestLabVXLANMapChanges(t *testing.T) {
	a, b := mapped(t, "192.0.2.", 24)
	b.join(mapConfig(t, "10:10010,20:10020,30:10030", "192.0.2.2", "192.0.2.1"))
	a.join(mapConfig(t, "10:10010,20:10020", "192.0.2.1", "192.0.2.2"))
	index := a.link("vx-br0").Index
	at20, at30 := sending{"t20", untagged, nil}, sending{"t30", untagged, nil}
	diff(t, "VLAN 20", map[string]int{"t20": untagged, "every": 20}, a.arrivals(b, at20, everybody, 1))
	for _, c := range []struct{ list, remote, want string }{
		{"10:10010,30:10030", "192.0.2.2", "map[10:10010 30:10030] [10010 10030] [10010>192.0.2.2 10030>192.0.2.2] up=true"},
		{"10:10030,30:10010", "192.0.2.2", "map[10:10030 30:10010] [10010 10030] [10010>192.0.2.2 10030>192.0.2.2] up=true"},
		{"10-12:5-7", "192.0.2.9", "map[10:5 11:6 12:7] [5 6 7] [5>192.0.2.9 6>192.0.2.9 7>192.0.2.9] up=true"},
		{"10:10010,30:10030", "192.0.2.2", "map[10:10010 30:10030] [10010 10030] [10010>192.0.2.2 10030>192.0.2.2] up=true"},
	} {
		a.join(mapConfig(t, c.list, "192.0.2.1", c.remote))
		diff(t, c.list, c.want, a.state())
	}
	if a.link("vx-br0").Index != index {
		t.Error("a change of the map has made another device")
	}
	diff(t, "VLAN 20, which is in the map no more", map[string]int{}, a.arrivals(b, at20, everybody, 1))
	diff(t, "VLAN 30, which is new", map[string]int{"t30": untagged, "every": 30}, a.arrivals(b, at30, everybody, 1))
}

// TestLabVXLANMapIsMended: what others break is mended by the same command again.
func TestLabVXLANMapIsMended(t *testing.T) {
	a, _ := mapped(t, "192.0.2.", 24)
	cfg := mapConfig(t, "10:10010,20-29:10020-10029", "192.0.2.1", "192.0.2.2")
	a.join(cfg)
	want, dev := a.state(), a.link("vx-br0")
	flood := rtnl.Flood{VNI: 10010, Dst: netip.MustParseAddr("192.0.2.2")}
	for name, breakIt := range map[string]func() error{
		"a VNI has gone":        func() error { return a.c.DeleteVNIs(dev.Index, []rtnl.VNIs{{First: 10022, Last: 10023}}) },
		"a VNI too many":        func() error { return a.c.AddVNIs(dev.Index, []rtnl.VNIs{{First: 7, Last: 8}}) },
		"a VLAN has gone":       func() error { return a.c.DeletePortVLANs(dev.Index, []rtnl.VLANs{{First: 20, Last: 25}}) },
		"a VLAN without a VNI":  func() error { return a.c.AddPortVLANs(dev.Index, []rtnl.VLANs{{First: 1, Last: 1}}) },
		"no VLAN has a VNI":     func() error { return a.c.SetVLANTunnel(dev.Index, false) },
		"a host has gone":       func() error { return a.c.DeleteFlood(dev.Index, flood) },
		"a host too many":       func() error { return a.c.AddFlood(dev.Index, rtnl.Flood{VNI: 7, Dst: flood.Dst}) },
		"it is no port":         func() error { return bridges.RemovePort(a.c, dev) },
		"it is down":            func() error { return a.c.Set(dev.Index, rtnl.Up(false)) },
		"another tunnel":        func() error { return retunnel(a.c, dev.Index) },
		"the device is deleted": func() error { return a.c.Delete(dev.Index) },
	} {
		if err := breakIt(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if n := a.join(cfg); n == 0 {
			t.Errorf("%s: there is nothing to mend", name)
		}
		diff(t, name, want, a.state())
		dev = a.link("vx-br0")
	}
}

func retunnel(c *rtnl.Conn, index int) error {
	return errors.Join(c.DeletePortVLANs(index, []rtnl.VLANs{{First: 10, Last: 10}}),
		c.AddPortVLANs(index, []rtnl.VLANs{{First: 10, Last: 10, Tunnel: 99}}))
}

// TestLabVXLANMapForFRR: without a list nothing learns, and the entries of another program stay.
func TestLabVXLANMapForFRR(t *testing.T) {
	a, _ := mapped(t, "192.0.2.", 24)
	cfg := mapConfig(t, "10:10010,20:10020", "192.0.2.1")
	a.join(cfg)
	vx := a.link("vx-br0")
	if vx.MTU != 1500 || !vx.VXLAN.External || !vx.VXLAN.VNIFilter || vx.VXLAN.Learning || vx.HostIPv6 ||
		vx.Port == nil || vx.Port.Learning || !vx.Port.NeighSuppress || !vx.Port.VLANTunnel || !vx.Up {
		t.Errorf("%+v, %+v, %+v", vx, vx.VXLAN, vx.Port)
	}
	diff(t, "its port", "trunk:10,20;nolearn", a.read("vx-br0").String())
	if err := a.c.AddFlood(vx.Index, rtnl.Flood{VNI: 10020, Dst: netip.MustParseAddr("192.0.2.2")}); err != nil {
		t.Fatal(err)
	}
	if n := a.join(cfg); n != 0 {
		t.Errorf("the same again takes %d steps", n)
	}
	diff(t, "with another program's entry", "map[10:10010 20:10020] [10010 10020] [10020>192.0.2.2] up=true", a.state())
}

// TestLabVXLANMapFaults breaks each step of a new device and of a change, and ends the process
// before each: all is as it was, or the next call completes it.
func TestLabVXLANMapFaults(t *testing.T) {
	a, _ := mapped(t, "192.0.2.", 24)
	full := errors.New("no space left on device")
	first := mapConfig(t, "10:10010,20-29:10020-10029", "192.0.2.1", "192.0.2.2", "192.0.2.3")
	other := mapConfig(t, "10:10011,20-25:10020-10025,40:10010", "192.0.2.1", "192.0.2.3", "192.0.2.4")
	is := func() string {
		if _, err := a.c.Link("vx-br0"); err != nil {
			return err.Error()
		}
		return a.state()
	}
	for _, c := range []struct{ have, want vxlan.Config }{{vxlan.Config{}, first}, {first, other}, {other, first}} {
		before := is()
		steps, err := a.segment(c.want, 0)
		if err != nil {
			t.Fatal(err)
		}
		for i := range steps {
			for _, late := range []bool{false, true} {
				around := func(ctx context.Context, s step.Step, do func(context.Context) error) error {
					switch {
					case s.Name != steps[i].Name:
						return do(ctx)
					case late:
						return errors.Join(do(ctx), full)
					}
					return full
				}
				if err := step.Run(context.Background(), steps, around); !errors.Is(err, full) {
					t.Errorf("%s broken: %v", steps[i].Name, err)
				}
				diff(t, fmt.Sprintf("%s broken, after it was done: %v", steps[i].Name, late), before, is())
			}
		}
		for i, s := range steps { // each is the last one before the process is killed
			if err := step.Run(context.Background(), steps[:i+1], nil); err != nil {
				t.Fatal(err)
			}
			a.join(c.want)
			if n := a.join(c.want); n != 0 {
				t.Errorf("killed after %s: completed, and %d more steps", s.Name, n)
			}
			if c.have.Map != nil {
				a.join(c.have)
			} else if err := steps[0].Undo(context.Background()); err != nil {
				t.Fatal(err)
			}
			diff(t, "back before "+s.Name, before, is())
		}
		a.join(c.want)
	}
}

// TestLabVXLANMapRefused: what cannot work is refused, and leaves nothing.
func TestLabVXLANMapRefused(t *testing.T) {
	a, b := mapped(t, "192.0.2.", 24)
	local := netip.MustParseAddr("192.0.2.1")
	foreign := rtnl.NewVXLAN(rtnl.VXLAN{VNI: 7, Local: local, Port: 4789})
	if err := a.c.Create("vxlan", append(foreign, rtnl.Name("other"), rtnl.Up(true))...); err != nil {
		t.Fatal(err)
	}
	refused := func(l *lan, want string, cfg vxlan.Config) {
		t.Helper()
		steps, err := l.segment(cfg, 0)
		if err == nil {
			err = step.Run(context.Background(), steps, nil)
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", cfg, err, want)
		}
		if _, err := l.c.Link("vx-br0"); err == nil {
			t.Errorf("%s: it has left its device", cfg)
		}
	}
	refused(a, "a VXLAN device of one VNI, or another program, has UDP port 4789",
		mapConfig(t, "10:10010,20-29:10020-10029", "192.0.2.1", "192.0.2.2"))
	if err := a.c.Delete(a.link("other").Index); err != nil {
		t.Fatal(err)
	}
	if err := b.c.Change("bridge", b.br.Index, rtnl.BridgeVLANFiltering(false)); err != nil {
		t.Fatal(err)
	}
	refused(b, "does not filter VLANs", mapConfig(t, "10:10010", "192.0.2.2"))

	// Two bridges share the UDP port, since each takes only frames of its own VNIs.
	h := bridgesOf(t, a.ns)
	cfg := mapConfig(t, "10:10010", "192.0.2.1")
	a.join(cfg)
	second := mapConfig(t, "10:10011", "192.0.2.1", "192.0.2.2")
	if err := h.Create(bridge.Config{Name: "br1", VLANFiltering: true, VXLAN: &second}); err != nil {
		t.Fatal(err)
	}
	second = mapConfig(t, "10:10010", "192.0.2.1", "192.0.2.2")
	_, err := h.Ensure(bridge.Config{Name: "br1", VLANFiltering: true, VXLAN: &second})
	if err == nil || !strings.Contains(err.Error(), "another VXLAN device has map 10:10010") {
		t.Errorf("the VNI of another bridge: %v", err)
	}
	plain := vxlan.Config{VNI: 7, Local: local}
	if _, err := h.Ensure(bridge.Config{Name: "br1", VLANFiltering: true, VXLAN: &plain}); err == nil ||
		!strings.Contains(err.Error(), "br1 has the VXLAN device vx-br1 already") {
		t.Errorf("one VNI in place of a map: %v", err)
	}
	shown(t, h)
}

// shown checks what a bridge with a map tells of it, and that it goes with all that belongs to it.
func shown(t *testing.T, h *bridge.Host) {
	t.Helper()
	info, err := h.Show("br1")
	if err != nil || info.VXLAN == nil {
		t.Fatalf("%+v, %v", info, err)
	}
	want := &bridge.VXLAN{
		Interface: "vx-br1", Local: "192.0.2.1", Port: 4789, MTU: 1500, Up: true, Static: true,
		Remotes: []string{"192.0.2.2"}, Map: []bridge.Segment{{VLAN: 10, VNI: 10011, Remotes: []string{"192.0.2.2"}}},
	}
	if d := cmp.Diff(want, info.VXLAN); d != "" {
		t.Errorf("shown (-want +got):\n%s", d)
	}
	if err := h.Delete("br1", false); err != nil {
		t.Error(err)
	}
	if err := h.Delete("br1", false); err == nil || !strings.Contains(err.Error(), "no such network device") {
		t.Errorf("deleted again: %v", err)
	}
}

// TestLabVXLANMapOfAll has a segment for each VLAN, none of which continues the one before.
func TestLabVXLANMapOfAll(t *testing.T) {
	a, _ := mapped(t, "192.0.2.", 24)
	all := map[int]int{}
	for vlan := 1; vlan <= 4094; vlan++ {
		all[vlan] = 3*vlan + 5
	}
	cfg := vxlan.Config{Map: vxlan.MapOf(all), Local: netip.MustParseAddr("192.0.2.1"), Remotes: addrs("192.0.2.2")}
	a.join(cfg)
	m, err := bridges.ReadMap(a.c, a.link("vx-br0"))
	if err != nil || !maps.Equal(m.VLANs, all) || len(m.VNIs) != len(all) {
		t.Errorf("%d VLANs, %d VNIs, %v", len(m.VLANs), len(m.VNIs), err)
	}
	if n := a.join(cfg); n != 0 {
		t.Errorf("the same again takes %d steps", n)
	}
	a.join(mapConfig(t, "10:10010", "192.0.2.1", "192.0.2.2"))
	diff(t, "one is left", "map[10:10010] [10010] [10010>192.0.2.2] up=true", a.state())
}
