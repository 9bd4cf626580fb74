package bridges_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"vmnet/bridge"
	"vmnet/bridge/brport"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/nstest"
	"vmnet/testvm/lab"
)

// newVLANs makes a bridge that filters VLANs, with a port for each of settings.
func newVLANs(t *testing.T, settings map[string]string) *lan {
	t.Helper()
	lab.Inside(t)
	l := newLAN(t, bridge.Config{VLANFiltering: true})
	for name, s := range settings {
		l.add(name, s)
	}
	return l
}

// A sending is a broadcast from a port, and the ports that receive it with their tags.
type sending struct {
	from string
	vlan int
	want map[string]int
}

func (l *lan) check(sendings []sending) {
	l.t.Helper()
	for i, s := range sendings {
		diff(l.t, l.describe(s), s.want, l.send(s.from, everybody, host(i+1), s.vlan))
	}
}

func (l *lan) describe(s sending) string {
	if s.vlan == untagged {
		return s.from + " (" + l.read(s.from).String() + ") untagged"
	}
	return s.from + " (" + l.read(s.from).String() + ") tagged " +
		brport.FormatVLANs([]brport.VLANRange{{First: s.vlan, Last: s.vlan}})
}

func TestLabAccessPorts(t *testing.T) {
	l := newVLANs(t, map[string]string{
		"a10": "vlan:10", "b10": "vlan:10", "a20": "vlan:20", "a1": "",
		"b1": "", "trunk": "trunk:10",
	})
	l.check([]sending{
		{"a10", untagged, map[string]int{"b10": untagged, "trunk": 10}},
		{"a10", 10, map[string]int{"b10": untagged, "trunk": 10}}, // as the kernel does it
		{"a10", 20, map[string]int{}},
		{"a10", 1, map[string]int{}},
		{"a20", untagged, map[string]int{}},
		{"a20", 10, map[string]int{}},
		{"a1", untagged, map[string]int{"b1": untagged}},
		{"a1", 10, map[string]int{}},
		{"trunk", 10, map[string]int{"a10": untagged, "b10": untagged}},
		{"trunk", 20, map[string]int{}},
		{"trunk", untagged, map[string]int{}},
	})
}

func TestLabTrunk(t *testing.T) {
	l := newVLANs(t, map[string]string{
		"t": "trunk:10,20-21;native:30", "every": "trunk:1-4094", "a10": "vlan:10", "a20": "vlan:20",
		"a30": "vlan:30", "a1": "",
	})
	l.check([]sending{
		{"t", 10, map[string]int{"a10": untagged, "every": 10}},
		{"t", 20, map[string]int{"a20": untagged, "every": 20}},
		{"t", 21, map[string]int{"every": 21}},
		{"t", 22, map[string]int{}},
		{"t", 1, map[string]int{}},
		{"t", untagged, map[string]int{"a30": untagged, "every": 30}},
		{"a10", untagged, map[string]int{"t": 10, "every": 10}},
		{"a30", untagged, map[string]int{"t": untagged, "every": 30}},
		{"a1", untagged, map[string]int{"every": 1}},
		{"every", 20, map[string]int{"t": 20, "a20": untagged}},
		{"every", 4094, map[string]int{}},
		{"every", untagged, map[string]int{}},
	})
	l.set("t", "trunk:10,30") // 30 is tagged now, and there is no native VLAN
	l.set("every", "trunk:1-4094;native:20")
	l.check([]sending{
		{"t", untagged, map[string]int{}},
		{"t", 30, map[string]int{"a30": untagged, "every": 30}},
		{"t", 20, map[string]int{}},
		{"a30", untagged, map[string]int{"t": 30, "every": 30}},
		{"every", untagged, map[string]int{"a20": untagged}},
		{"a20", untagged, map[string]int{"every": untagged}},
	})
}

func TestLabLearnedInItsVLAN(t *testing.T) {
	l := newVLANs(t, map[string]string{
		"a10": "vlan:10", "b10": "vlan:10", "c10": "vlan:10",
		"a20": "vlan:20", "b20": "vlan:20",
	})
	l.send("a10", everybody, 5, untagged)
	info, err := bridgesOf(t, l.ns).Show("br0")
	if err != nil || !info.VLANFiltering || info.DefaultVLAN != 1 {
		t.Fatalf("show: %+v, %v", info, err)
	}
	i := slices.IndexFunc(info.Ports, func(p bridge.Port) bool { return p.Interface == "a10" })
	diff(t, "learned", []brport.Learned{{MAC: "52:54:00:00:00:05", VLAN: 10}}, info.Ports[i].Learned)
	diff(t, "settings", brport.Settings{VLAN: 10}, info.Ports[i].Config)
	diff(t, "to it in VLAN 10", map[string]int{"a10": untagged}, l.send("b10", 5, 6, untagged))
	diff(t, "to it in VLAN 20", map[string]int{"b20": untagged}, l.send("a20", 5, 7, untagged))
	l.set("a10", "vlan:11")
	diff(t, "to it in VLAN 10, which it has left", map[string]int{"c10": untagged}, l.send("b10", 5, 6, untagged))
}

// known returns what the kernel reports about a port by another request, RTM_GETLINK of AF_BRIDGE.
func (l *lan) known(nl *netlink.Handle, name string) string {
	l.t.Helper()
	all, err := nl.BridgeVlanList()
	if err != nil {
		l.t.Fatal(err)
	}
	var words []string
	var tagged []brport.VLANRange
	for _, v := range all[int32(l.link(name).Index)] {
		r := brport.VLANRange{First: int(v.Vid), Last: int(v.Vid)}
		switch {
		case v.PortVID() && v.EngressUntag():
			words = append(words, "untagged "+brport.FormatVLANs([]brport.VLANRange{r}))
		case v.PortVID() || v.EngressUntag():
			l.t.Errorf("VLAN %d of %s: %+v", v.Vid, name, v)
		case len(tagged) > 0 && tagged[len(tagged)-1].Last == r.First-1:
			tagged[len(tagged)-1].Last = r.Last
		default:
			tagged = append(tagged, r)
		}
	}
	if len(tagged) > 0 {
		words = append(words, "tagged "+brport.FormatVLANs(tagged))
	}
	return strings.Join(words, ", ")
}

func TestLabSetPortFromAnyToAny(t *testing.T) {
	l := newVLANs(t, map[string]string{"a": ""})
	nl := nstest.Handle(t, l.ns)
	settings := map[string]string{ // with what reading the port then returns
		"":                           "untagged 1",
		"vlan:1;isolated":            "untagged 1",
		"vlan:10":                    "untagged 10",
		"vlan:4094;noflood":          "untagged 4094",
		"trunk:10":                   "tagged 10",
		"trunk:2-5,7;native:1":       "untagged 1, tagged 2-5,7",
		"trunk:2-5,7;native:3":       "untagged 3, tagged 2,4-5,7",
		"trunk:1,3,5,7,9,11":         "tagged 1,3,5,7,9,11",
		"trunk:1-4094;native:10":     "untagged 10, tagged 1-9,11-4094",
		"trunk:8-9;nolearn":          "tagged 8-9",
		"trunk:4,9-10;native:4094":   "untagged 4094, tagged 4,9-10",
		"trunk:4000-4094;hairpin":    "tagged 4000-4094",
		"vlan:10;isolated;hairpin":   "untagged 10",
		"trunk:1-9,4094;native:4093": "untagged 4093, tagged 1-9,4094",
	}
	var all []string
	for text := range settings {
		all = append(all, text)
	}
	step := func(to string) {
		from := l.read("a")
		l.set("a", to)
		if got, want := l.known(nl, "a"), settings[to]; got != want {
			t.Errorf("from %q to %q: it is %q, want %q", from, to, got, want)
		}
	}
	for i, from := range all {
		step(from)
		for _, to := range all[i+1:] {
			step(to)
			step(from)
		}
	}
}

// TestLabAddSettings adds settings to those of another program.
func TestLabAddSettings(t *testing.T) {
	l := newVLANs(t, map[string]string{"a": ""})
	for _, test := range []struct{ have, add, want string }{
		{"", "vlan:20", "vlan:20"},
		{"isolated", "trunk:2-5;native:7", "trunk:2-5;native:7;isolated"},
		{"vlan:20;nolearn", "isolated", "vlan:20;isolated;nolearn"},
		{"trunk:2-9", "vlan:4;noflood", "vlan:4;noflood"},
	} {
		l.set("a", test.have)
		for _, changes := range []bool{true, false} {
			changed, err := bridges.AddSettings(l.c, l.br, l.link("a"), l.parse(test.add))
			if got := l.read("a").String(); err != nil || changed != changes || got != test.want {
				t.Errorf("%q and %q: it is %q, want %q; changed is %v: %v", test.have, test.add, got,
					test.want, changed, err)
			}
		}
	}
}

func TestLabReadPortOfWhatOthersSet(t *testing.T) {
	l := newVLANs(t, map[string]string{"a": ""})
	nl := nstest.Handle(t, l.ns)
	link, err := nl.LinkByName("a")
	if err != nil {
		t.Fatal(err)
	}
	add := func(vid uint16, pvid, leavesUntagged bool) {
		t.Helper()
		if err := nl.BridgeVlanAdd(link, vid, pvid, leavesUntagged, false, true); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(want string) {
		t.Helper()
		if got := l.read("a").String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	expect("vlan:1")
	add(20, false, true)
	expect("trunk:20;native:1;untagged:20")
	add(1, true, false)
	expect("trunk:20;native:1;tagged-native:1;untagged:20")
	l.set("a", "trunk:20;native:1")
	expect("trunk:20;native:1")
	for _, vid := range []uint16{1, 20} {
		if err := nl.BridgeVlanDel(link, vid, false, false, false, true); err != nil {
			t.Fatal(err)
		}
	}
	expect("")
	if bridges.Effective(l.br, brport.Settings{}).Equal(l.read("a")) {
		t.Error("a port in no VLAN equals one in the default VLAN")
	}
	l.set("a", "")
	expect("vlan:1")
}

func TestLabTheDefaultVLANIsTheBridges(t *testing.T) {
	l := newVLANs(t, nil)
	for pvid, want := range map[string]string{"0": "", "77": "vlan:77"} {
		cmd := exec.Command("nsenter", "--net="+l.ns.Path(), "ip", "link", "set", "br0", "type", "bridge",
			"vlan_default_pvid", pvid)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		l.br = l.link("br0")
		l.add("port"+pvid, "")
		for _, settings := range []string{"", "vlan:10", ""} {
			l.set("port"+pvid, settings)
		}
		if got := l.read("port" + pvid).String(); got != want {
			t.Errorf("with the default VLAN %s: %q, want %q", pvid, got, want)
		}
	}
}

// A guest that sends all the time does not reach the default VLAN while its port is added.
func TestLabAddPortHasNoGap(t *testing.T) {
	l := newVLANs(t, map[string]string{"plain": "", "every": "trunk:1-4094"})
	dev, link := tap(t, l.ns, l.c, "a")
	floodWhile(t, dev.Queues()[0], func() {
		for range 20 {
			if err := bridges.AddPort(l.c, l.br, l.link("a"), brport.Settings{VLAN: 10}); err != nil {
				t.Fatal(err)
			}
			if err := bridges.RemovePort(l.c, link); err != nil {
				t.Fatal(err)
			}
		}
	})
	l.onlyIn(map[string][]int{"plain": {}, "every": {10}})
}

// A port that changes from one VLAN to another is in no third one in the meantime.
func TestLabSetPortHasNoGap(t *testing.T) {
	l := newVLANs(t, map[string]string{"a": "vlan:10", "plain": "", "a30": "vlan:30"})
	l.add("every", "trunk:1-4094")
	floodWhile(t, l.taps["a"].Queues()[0], func() {
		for range 20 {
			l.set("a", "trunk:1-9,11-29;native:30")
			l.set("a", "vlan:10")
		}
	})
	l.onlyIn(map[string][]int{"plain": {}, "a30": {untagged}, "every": {10, 30}})
}

// onlyIn checks the tags of the frames that each port received.
func (l *lan) onlyIn(allowed map[string][]int) {
	l.t.Helper()
	got := l.frames()
	for name, tags := range allowed {
		for _, f := range got[name] {
			if vlan, _, ok := parseFrame(f); ok && !slices.Contains(tags, vlan) {
				l.t.Errorf("%s received a frame with tag %d", name, vlan)
			}
		}
	}
}

// The test knows both answers. Here the kernel can filter.

func TestLabVLANsNeedABridgeThatFilters(t *testing.T) {
	lab.Inside(t)
	TestLiveVLANsNeedABridgeThatFilters(t)
}
