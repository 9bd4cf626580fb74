package vswitch

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"weak"

	"golang.org/x/sys/unix"

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch/offload"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/nstest"
)

func plain(names ...string) map[string]vport.Config {
	ports := map[string]vport.Config{}
	for _, n := range names {
		ports[n] = vport.Config{}
	}
	return ports
}

func TestLearnsAndForwards(t *testing.T) {
	l := newLAN(t, plain("a", "b", "c"))
	step := func(what, from string, frame []byte, want ...string) {
		t.Helper()
		got := l.send(from, frame)
		if !slices.Equal(names(got), want) {
			t.Errorf("%s reached %v, want %v", what, names(got), want)
		}
		for name, frames := range got {
			if len(frames) != 1 || !bytes.Equal(frames[0], frame) {
				t.Errorf("%s: %s got %x, want %x", what, name, frames, frame)
			}
		}
	}
	step("to an unknown address", "a", etherFrame(mac(2), mac(1), nil, 100), "b", "c")
	step("the answer", "b", etherFrame(mac(1), mac(2), nil, 100), "a")
	step("now it is known", "a", etherFrame(mac(2), mac(1), nil, 100), "b")
	step("broadcast", "a", etherFrame(all, mac(1), nil, 46), "b", "c")
	step("multicast", "c", etherFrame(net.HardwareAddr{1, 0, 0x5e, 0, 0, 1}, mac(3), nil, 46), "a", "b")
	step("a spanning tree's", "a", etherFrame(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0}, mac(1), nil, 46), "b", "c")
	step("one for the next bridge", "a", etherFrame(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0xe}, mac(1), nil, 46))
	step("to itself", "a", etherFrame(mac(1), mac(1), nil, 100))
	step("b's address moves to c", "c", etherFrame(mac(1), mac(2), nil, 100), "a")
	step("and is reached there", "a", etherFrame(mac(2), mac(1), nil, 100), "c")
	step("with a tag, as it is", "a", etherFrame(all, mac(1), tagged("8100:4094"), 100), "b", "c")
	step("with a priority, as it is", "a", etherFrame(all, mac(1), tagged("8100:24576"), 100), "b", "c")
	step("with a tag to a known one", "a", etherFrame(mac(2), mac(1), tagged("8100:7"), 100), "c")
	step("no payload", "a", etherFrame(mac(2), mac(1), nil, 0), "c")
	step("no source", "a", etherFrame(mac(2), net.HardwareAddr{0, 0, 0, 0, 0, 0}, nil, 100))
	step("a group as source", "a", etherFrame(mac(2), all, nil, 100))
	step("too short", "a", make([]byte, 13))
	step("a tag cut off", "a", etherFrame(all, mac(1), tagged("8100:7"), 0)[:16])
	step("the reserved VLAN", "a", etherFrame(all, mac(1), tagged("8100:4095"), 100), "b", "c")
	step("longer than the port's buffers", "a", etherFrame(all, mac(1), nil, 9000))
	step("as long as the MTU allows", "a", etherFrame(mac(2), mac(1), nil, 1500), "c")
	step("with two tags, too", "a", etherFrame(mac(2), mac(1), tagged("88a8:1", "8100:5"), 1500), "c")
	step("room for a tag, as the kernel's bridge has it", "a", etherFrame(mac(2), mac(1), nil, 1504), "c")
	step("one byte more", "a", etherFrame(mac(2), mac(1), nil, 1505))

	want := map[string]uint64{
		LinkLocal.String(): 1, SamePort.String(): 1, BadSource.String(): 2, Short.String(): 2, Giant.String(): 1,
	}
	if got := l.port("a").Stats(); !equal(got.Drops, want) || got.Total().TxFrames != 3 ||
		got.Total().RxFrames != l.stations["a"].sent-1 {
		t.Errorf("counted %+v, want %v", got, want)
	}
	if got := l.port("c").Dropped(TooBig); got != 1 {
		t.Errorf("c has dropped %d as too big", got)
	}
}

func equal(got, want map[string]uint64) bool {
	if len(got) != len(want) {
		return false
	}
	for k, v := range want {
		if got[k] != v {
			return false
		}
	}
	return true
}

func TestVLANs(t *testing.T) {
	l := newLAN(t, map[string]vport.Config{
		"a10": access(10), "b10": access(10), "a20": access(20),
		"trunk": trunk(0, 10, 20), "native": trunk(10, 20, 30), "all": trunkAll(1), "plain": {},
	})
	for _, c := range []struct {
		from string
		tags []string
		want map[string][]string // tags that each station receives
	}{
		{"a10", nil, map[string][]string{
			"b10": nil, "trunk": tagged("8100:10"), "native": nil,
			"all": tagged("8100:10"),
		}},
		{"a10", tagged("8100:20"), nil}, // no VLAN hopping
		{"a10", tagged("8100:10"), map[string][]string{
			"b10": nil, "trunk": tagged("8100:10"), "native": nil,
			"all": tagged("8100:10"),
		}},
		{"a20", nil, map[string][]string{
			"trunk": tagged("8100:20"), "native": tagged("8100:20"),
			"all": tagged("8100:20"),
		}},
		{"trunk", nil, nil}, // the trunk has no native VLAN
		{"trunk", tagged("8100:0"), nil},
		{"trunk", tagged("8100:30"), nil},
		{
			"trunk",
			tagged("8100:20"),
			map[string][]string{"a20": nil, "native": tagged("8100:20"), "all": tagged("8100:20")},
		},
		{
			"native",
			nil,
			map[string][]string{"a10": nil, "b10": nil, "trunk": tagged("8100:10"), "all": tagged("8100:10")},
		},
		{"native", tagged("8100:30"), map[string][]string{"all": tagged("8100:30")}},
		{"all", nil, map[string][]string{"plain": nil}},
		{"all", tagged("8100:30"), map[string][]string{"native": tagged("8100:30")}},
		{"all", tagged("8100:4095"), nil},
		// A port without VLANs is in VLAN 1, untagged: its tags give access to no other VLAN.
		{"plain", nil, map[string][]string{"all": nil}},
		{"plain", tagged("8100:1"), map[string][]string{"all": nil}},
		{"plain", tagged("8100:24576"), map[string][]string{"all": nil}},
		{"plain", tagged("8100:10"), nil},
		{"plain", tagged("8100:4095"), nil},
		{"plain", tagged("8100:10", "8100:1"), nil},
		{"plain", tagged("88a8:10"), map[string][]string{"all": tagged("88a8:10")}},
		// The priority stays if the frame leaves with a tag: 3<<13.
		{"a10", tagged("8100:24576"), map[string][]string{
			"b10": nil, "trunk": tagged("8100:24586"), "native": nil,
			"all": tagged("8100:24586"),
		}},
		{
			"trunk",
			tagged("8100:24596"),
			map[string][]string{"a20": nil, "native": tagged("8100:24596"), "all": tagged("8100:24596")},
		},
		// A provider tag is payload, and so is everything behind the first 802.1Q tag.
		{
			"a10", tagged("88a8:5", "8100:20"),
			map[string][]string{
				"b10": tagged("88a8:5", "8100:20"), "trunk": tagged("8100:10", "88a8:5", "8100:20"),
				"native": tagged("88a8:5", "8100:20"), "all": tagged("8100:10", "88a8:5", "8100:20"),
			},
		},
		{
			"trunk", tagged("8100:20", "8100:10"),
			map[string][]string{
				"a20": tagged("8100:10"), "native": tagged("8100:20", "8100:10"),
				"all": tagged("8100:20", "8100:10"),
			},
		},
	} {
		l.floods(c.from, c.tags, c.want)
	}
}

// floods sends a broadcast with tags from a station, and compares what the other stations receive.
func (l *lan) floods(from string, tags []string, want map[string][]string) {
	l.tb.Helper()
	got := l.send(from, etherFrame(all, mac(1), tags, 60))
	if len(got) != len(want) {
		l.tb.Errorf("%s %v: reached %v, want %v", from, tags, names(got), want)
	}
	for name, tags := range want {
		if want := etherFrame(all, mac(1), tags, 60); len(got[name]) != 1 || !bytes.Equal(got[name][0], want) {
			l.tb.Errorf("%s %v: %s got %x, want %x", from, tags, name, got[name], want)
		}
	}
}

// TestFilteringBeginsAndStays adds and removes the first port with a VLAN on a switch whose ports
// forward all tags.
func TestFilteringBeginsAndStays(t *testing.T) {
	l := newLAN(t, plain("a", "b"))
	for _, tags := range [][]string{
		nil, tagged("8100:10"), tagged("8100:24576"), tagged("8100:4095"),
		tagged("88a8:5", "8100:10"),
	} {
		l.floods("a", tags, map[string][]string{"b": tags})
	}
	// A station is one address, whatever tags its frames have.
	l.send("b", etherFrame(all, mac(2), tagged("8100:7"), 46))
	l.add("c", vport.Config{})
	if got := names(l.send("a", etherFrame(mac(2), mac(1), tagged("8100:8"), 46))); !slices.Equal(got, []string{"b"}) {
		t.Errorf("the frame reached %v", got)
	}
	if err := l.sw.AddStatic("b", mac(9), 10); !errors.Is(err, brport.ErrInvalid) || l.sw.FiltersVLANs() {
		t.Errorf("an address in a VLAN: %v", err)
	}
	if err := l.sw.AddStatic("b", mac(9), 0); err != nil {
		t.Error(err)
	}

	l.add("ten", access(10))
	if n := l.sw.FDB().Stats().Entries; n != 1 || !l.sw.FiltersVLANs() {
		t.Errorf("%d addresses are known, want the static one", n)
	}
	if got := names(l.send("a", etherFrame(mac(9), mac(1), nil, 46))); !slices.Equal(got, []string{"b"}) {
		t.Errorf("the static address is at %v", got)
	}
	untaggedOnly := func() {
		t.Helper()
		l.floods("a", nil, map[string][]string{"b": nil, "c": nil})
		l.floods("a", tagged("8100:10"), nil)
	}
	untaggedOnly()
	if err := l.sw.RemovePort("ten"); err != nil {
		t.Fatal(err)
	}
	_ = l.stations["ten"].far.Close()
	delete(l.stations, "ten")
	untaggedOnly()
}

// TestVLANFilteringFromTheStart is about a switch whose first ports must not share a network until
// a port with a VLAN is added.
func TestVLANFilteringFromTheStart(t *testing.T) {
	sw := New(Config{VLANFiltering: true})
	defer sw.Close()
	if !sw.FiltersVLANs() {
		t.Error("the switch does not filter")
	}
}

// TestForward sends frames of link-local protocols from ports that do and do not forward them.
func TestForward(t *testing.T) {
	forward := func(list string) vport.Config {
		p, err := brport.ParseProtocols(list)
		if err != nil {
			t.Fatal(err)
		}
		return vport.Config{Settings: brport.Settings{Forward: p}}
	}
	l := newLAN(t, map[string]vport.Config{"none": {}, "some": forward("lldp,eapol"), "all": forward("all")})
	for last := range byte(18) {
		for from, want := range map[string]bool{
			"none": last == 0 || last > 15,
			"some": last == 0 || last == 3 || last == 14 || last > 15,
			"all":  last != 1,
		} {
			got := l.send(from, etherFrame(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, last}, mac(last), nil, 46))
			if (len(got) == 2) != want || len(got) == 1 {
				t.Errorf("%s, address %02x: reached %v", from, last, names(got))
			}
		}
	}
	// The source of a frame that is not forwarded is learned, as by the kernel's bridge. That of a
	// pause frame is not.
	l.send("none", etherFrame(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 2}, mac(99), nil, 46))
	l.send("none", etherFrame(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 1}, mac(98), nil, 46))
	index := l.port("none").PortIndex()
	if at, not := l.sw.FDB().Lookup(KeyOf(mac(99), defaultVLAN)),
		l.sw.FDB().Lookup(KeyOf(mac(98), defaultVLAN)); at != index || not != -1 {
		t.Errorf("behind %d and %d, want %d and -1", at, not, index)
	}
}

// TestLockedTwice checks that a static address of one port cannot become another's, and stays when
// the other port is refused.
func TestLockedTwice(t *testing.T) {
	locked := vport.Config{MACs: []net.HardwareAddr{mac(8), mac(7)}}
	l := newLAN(t, map[string]vport.Config{"a": {MACs: []net.HardwareAddr{mac(7)}}, "b": {}})
	w, far, err := SocketPair(0)
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	if p, err := l.sw.AddPort("c", w, locked); !errors.Is(err, fs.ErrExist) ||
		!strings.Contains(err.Error(), "02:00:00:00:00:07 is a static address of port a") {
		t.Errorf("%v, %v", p, err)
	}
	if n := l.sw.FDB().Stats().Entries; n != 1 {
		t.Errorf("%d entries", n)
	}
	l.send("b", etherFrame(all, mac(7), nil, 46))
	if got := names(l.send("b", etherFrame(mac(7), mac(2), nil, 46))); !slices.Equal(got, []string{"a"}) {
		t.Errorf("the frame went to %q", got)
	}
	locked.VLAN = 5 // a VLAN in which no port has it
	l.add("c", locked)
}

// TestStaticAddresses adds and removes static entries in each VLAN. An address that a port is
// locked to must stay.
func TestStaticAddresses(t *testing.T) {
	locked := access(10)
	locked.MACs = []net.HardwareAddr{mac(7)}
	l := newLAN(t, map[string]vport.Config{"locked": locked, "trunk": trunk(0, 10, 20), "plain": {}})
	for _, c := range []struct {
		port string
		mac  net.HardwareAddr
		vlan int
		want error
		text string
	}{
		{"trunk", mac(7), 10, fs.ErrExist, "02:00:00:00:00:07 in VLAN 10 is a static address of port locked"},
		{"trunk", mac(7), 20, nil, ""},
		{"locked", mac(7), 0, nil, ""},
		{"trunk", mac(8), 0, brport.ErrInvalid, "no VLAN for untagged frames"},
		{"trunk", mac(8), 30, brport.ErrInvalid, "port trunk is not in it"},
		{"plain", mac(8), 0, nil, ""},
		{"plain", mac(8), 1, nil, ""},
		{"nobody", mac(8), 0, fs.ErrNotExist, ""},
	} {
		err := l.sw.AddStatic(c.port, c.mac, c.vlan)
		if !errors.Is(err, c.want) || err != nil && !strings.Contains(err.Error(), c.text) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	for _, c := range []struct {
		mac  net.HardwareAddr
		vlan int
		text string
	}{
		{mac(7), 10, "static address of port locked"},
		{mac(7), 0, "in 2 VLANs"},
		{mac(7), 20, ""},
		{mac(8), 0, ""},
		{mac(8), 0, "does not know"},
	} {
		if err := l.sw.Forget(c.mac, c.vlan); (err != nil) != (c.text != "") ||
			err != nil && !strings.Contains(err.Error(), c.text) {
			t.Errorf("forget %v in VLAN %d: %v", c.mac, c.vlan, err)
		}
	}
}

// TestVLANsKeepAddressesApart has one address in two VLANs, at two ports.
func TestVLANsKeepAddressesApart(t *testing.T) {
	l := newLAN(t, map[string]vport.Config{"a10": access(10), "a20": access(20), "b10": access(10), "b20": access(20)})
	l.send("a10", etherFrame(all, mac(1), nil, 46))
	l.send("a20", etherFrame(all, mac(1), nil, 46))
	for from, want := range map[string]string{"b10": "a10", "b20": "a20"} {
		if got := names(l.send(from, etherFrame(mac(1), mac(2), nil, 46))); !slices.Equal(got, []string{want}) {
			t.Errorf("from %s: %v, want %s", from, got, want)
		}
	}
}

func TestPortSettings(t *testing.T) {
	isolated := vport.Config{Settings: brport.Settings{Isolated: true}}
	l := newLAN(t, map[string]vport.Config{
		"guest1": isolated, "guest2": isolated, "uplink": {},
		"hairpin": {Settings: brport.Settings{Hairpin: true}},
		"deaf":    {Settings: brport.Settings{NoLearning: true}},
		"noflood": {Settings: brport.Settings{NoFlood: true}},
		"locked":  {MACs: []net.HardwareAddr{mac(6), mac(7)}},
		"few":     {MaxAddresses: 2},
	})
	check := func(what string, got map[string][][]byte, want ...string) {
		t.Helper()
		slices.Sort(want)
		if !slices.Equal(names(got), want) {
			t.Errorf("%s: %v, want %v", what, names(got), want)
		}
	}
	check("isolated, flooded", l.send("guest1", etherFrame(all, mac(1), nil, 46)), "uplink", "hairpin", "deaf",
		"noflood", "locked", "few")
	check("isolated, known", l.send("guest2", etherFrame(mac(1), mac(2), nil, 46)))
	check("from the uplink", l.send("uplink", etherFrame(mac(2), mac(3), nil, 46)), "guest2")
	check("hairpin, flooded", l.send("hairpin", etherFrame(all, mac(4), nil, 46)), "guest1", "guest2", "uplink",
		"hairpin", "deaf", "noflood", "locked", "few")
	check("hairpin, back", l.send("hairpin", etherFrame(mac(4), mac(44), nil, 46)), "hairpin")
	check("not learned", l.send("deaf", etherFrame(mac(3), mac(5), nil, 46)), "uplink")
	check("so flooded", l.send("uplink", etherFrame(mac(5), mac(3), nil, 46)), "guest1", "guest2", "hairpin",
		"deaf", "locked", "few")
	check("spoofed", l.send("locked", etherFrame(mac(3), mac(1), nil, 46)))
	check("allowed", l.send("locked", etherFrame(mac(3), mac(7), nil, 46)), "uplink")
	l.send("uplink", etherFrame(mac(3), mac(6), nil, 46))
	check("the address of a locked port is its own", l.send("guest1", etherFrame(mac(6), mac(1), nil, 46)), "locked")
	check("the spoofed one stays where it was", l.send("uplink", etherFrame(mac(1), mac(3), nil, 46)), "guest1")
	for n := byte(10); n < 20; n++ {
		l.send("few", etherFrame(mac(3), mac(n), nil, 46))
	}
	if got := l.sw.FDB().Stats(); got.Refused != 8 {
		t.Errorf("few: %+v", got)
	}
	if err := l.sw.AddStatic("uplink", mac(9), 0); err != nil {
		t.Error(err)
	}
	l.send("guest1", etherFrame(all, mac(9), nil, 46))
	check("static", l.send("guest1", etherFrame(mac(9), mac(1), nil, 46)), "uplink")
	if g, s := l.port("guest2").Dropped(Isolated), l.port("locked").Dropped(Spoofed); g != 1 || s != 1 {
		t.Errorf("dropped %d as isolated and %d as spoofed, want 1 and 1", g, s)
	}
}

func TestBucket(t *testing.T) {
	var b bucket
	b.limit(1000)
	passed := 0
	for now := int64(0); now < int64(time.Second); now += int64(10 * time.Microsecond) {
		if b.take(now+int64(time.Hour), 1) {
			passed++
		}
	}
	if passed < 1090 || passed > 1110 { // the frames of a second, and a tenth as the burst
		t.Errorf("%d in a second, want 1100", passed)
	}
	var none bucket
	none.limit(0)
	for range 1000 {
		if !none.take(0, 1) {
			t.Fatal("throttled without a limit")
		}
	}
}

// TestBucketForgives checks that a port never waits longer than a second, however many frames the
// switch has refused.
func TestBucketForgives(t *testing.T) {
	var b bucket
	b.limit(1)
	now := int64(time.Hour)
	for range 1000 {
		if wait := b.spend(now, 64); wait > maxThrottle {
			t.Fatalf("a wait of %v", wait)
		}
	}
	now += int64(maxThrottle) + b.depth
	if wait := b.spend(now, 1); wait > 0 {
		t.Errorf("after its wait, a wait of %v", wait)
	}
}

func TestStormLimit(t *testing.T) {
	l := newLAN(t, map[string]vport.Config{
		"a": {Storm: vport.Storm{Broadcast: 100, Multicast: 50, Unknown: 20}},
		"b": {},
	})
	l.send("b", etherFrame(all, mac(2), nil, 46))
	for _, c := range []struct {
		why   Reason
		dst   net.HardwareAddr
		burst int
	}{
		{Broadcasts, all, 10},
		{Multicasts, net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, 5},
		{Unknowns, mac(77), 2},
		{Delivered, mac(2), 1000},
	} {
		got := 0
		for range 50 {
			frames := slices.Repeat([][]byte{etherFrame(c.dst, mac(1), nil, 46)}, 20)
			got += len(l.send("a", frames...)["b"])
		}
		if dropped := l.port("a").Dropped(c.why); got < c.burst ||
			(c.why != Delivered && (got > 500 || uint64(got)+dropped != 1000)) {
			t.Errorf("%s: %d passed, %d were dropped", c.why, got, dropped)
		}
	}
}

// TestStormCountsSegments floods super-frames, each of which is 500 frames to a port that takes
// none. The first one uses up the limits of seconds.
func TestStormCountsSegments(t *testing.T) {
	sw, queues := memoryLAN(t, map[string]vport.Config{"in": {Storm: vport.Storm{Unknown: 100}}, "socket": {}},
		map[string]offload.Limits{"in": everything})
	r := receiverOf(sw, "in")
	for i := range 3 {
		r.frames[i] = frame{data: superFrame(50000, 100)}
	}
	r.input(r.frames[:3])
	if got, dropped := len(queues["socket"].sent), r.port.Dropped(Unknowns); got != 500 || dropped != 2 {
		t.Errorf("%d frames were flooded, %d dropped", got, dropped)
	}
}

// TestRefusedRests lets stations send frames that the switch refuses. The switch must not read them
// faster than their limit allows.
func TestRefusedRests(t *testing.T) {
	l := newLAN(t,
		map[string]vport.Config{"a": {Storm: vport.Storm{Refused: 1000}}, "b": {Storm: vport.Storm{Refused: 1}}})
	refused, start := etherFrame(mac(2), all, nil, 46), time.Now()
	l.send("a", slices.Repeat([][]byte{refused}, 300)...)
	// A burst of 100 is allowed, and a batch is read before it is counted.
	if took := time.Since(start); took < 100*time.Millisecond {
		t.Errorf("300 refused frames were read in %v", took)
	}
	start = time.Now()
	l.send("a", slices.Repeat([][]byte{etherFrame(mac(2), mac(2), nil, 46)}, 300)...)
	if took := time.Since(start); took < 100*time.Millisecond || l.port("a").Dropped(SamePort) < 299 {
		t.Errorf("300 frames to itself were read in %v: %+v", took, l.port("a").Stats())
	}
	l.send("b", slices.Repeat([][]byte{etherFrame(mac(7), mac(3), nil, 46)}, 500)...)
	if b := l.port("b"); b.refused.full.Load() != 0 {
		t.Errorf("500 delivered frames count against the limit: %+v", b.Stats())
	}
}

// TestAPortThatRestsIsRemovedAtOnce removes a throttled port several times, since the machine may
// be busy with something else.
func TestAPortThatRestsIsRemovedAtOnce(t *testing.T) {
	quickest := time.Hour
	for range 10 {
		l := newLAN(t, map[string]vport.Config{"b": {Storm: vport.Storm{Refused: 1}}})
		l.send("b", slices.Repeat([][]byte{etherFrame(mac(2), all, nil, 46)}, 50)...)
		start := time.Now()
		if err := l.sw.RemovePort("b"); err != nil {
			t.Fatal(err)
		}
		if quickest = min(quickest, time.Since(start)); quickest < maxThrottle/2 {
			return
		}
	}
	t.Errorf("no port was removed in less than %v", quickest)
}

// TestNobodyMakesAnotherRest lets an isolated station use the address of a station that the others
// send to.
func TestNobodyMakesAnotherRest(t *testing.T) {
	isolated := vport.Config{Settings: brport.Settings{Isolated: true}, Storm: vport.Storm{Refused: 1}}
	l := newLAN(t, map[string]vport.Config{"honest": isolated, "liar": isolated, "up": {}})
	l.send("up", etherFrame(all, mac(9), nil, 46))
	l.send("liar", etherFrame(all, mac(9), nil, 46))
	l.send("honest", slices.Repeat([][]byte{etherFrame(mac(9), mac(1), nil, 46)}, 300)...)
	if p := l.port("honest"); p.refused.full.Load() != 0 || p.Dropped(Isolated) != 300 {
		t.Errorf("300 frames count against the limit: %+v", p.Stats())
	}
}

// TestFullTargetBlocksNobody has a station that does not read.
func TestFullTargetBlocksNobody(t *testing.T) {
	l := newLAN(t, plain("a", "b", "c"))
	l.send("b", etherFrame(all, mac(2), nil, 46))
	l.send("c", etherFrame(all, mac(3), nil, 46))
	a, before := l.stations["a"], l.port("b").Stats().Total().TxFrames
	for range 200 { // more than b's buffers can hold
		for range 100 {
			_, err := unix.Write(a.fd, etherFrame(mac(2), mac(1), nil, 1500))
			if err == nil {
				a.sent++
			}
		}
		l.settle("a")
	}
	if full := l.port("b").Dropped(Full); full == 0 || l.port("b").Stats().Total().TxFrames+full != before+a.sent {
		t.Errorf("%d dropped: %+v of %d", full, l.port("b").Stats(), a.sent)
	}
	if _, err := unix.Write(a.fd, etherFrame(mac(3), mac(1), nil, 46)); err != nil {
		t.Fatal(err)
	}
	a.sent++
	l.settle("a")
	if l.stations["c"].read() == nil {
		t.Error("c received nothing")
	}
}

func TestPortsComeAndGo(t *testing.T) {
	l := newLAN(t, plain("a", "b"))
	w, far, err := SocketPair(0)
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	if _, err := l.sw.AddPort("a", w, vport.Config{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a taken name: %v", err)
	}
	if _, err := unix.Write(int(far.Fd()), make([]byte, 60)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("the wire of the refused port is still open: %v", err)
	}
	if err := l.sw.RemovePort("nobody"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no such port: %v", err)
	}
	l.send("b", etherFrame(all, mac(2), nil, 46))
	b := l.port("b")
	if err := l.sw.RemovePort("b"); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(b.Err(), fs.ErrClosed) {
		t.Errorf("b ended with %v", b.Err())
	}
	if got := l.send("a", etherFrame(mac(2), mac(1), nil, 46)); len(got) != 0 || l.port("a").Dropped(NoPort) != 1 {
		t.Errorf("without b: %v, %+v", names(got), l.port("a").Stats())
	}
	_ = l.stations["b"].far.Close()
	delete(l.stations, "b")
	index := l.add("c", vport.Config{}).PortIndex()
	if got := names(l.send("a", etherFrame(mac(2), mac(1), nil, 46))); !slices.Equal(got, []string{"c"}) ||
		index != b.PortIndex() {
		t.Errorf("b's address reaches %v; c has index %d, b had %d", got, index, b.PortIndex())
	}
	if got := l.sw.Ports(); len(got) != 2 || got[0].Name() != "a" || got[1].Name() != "c" {
		t.Errorf("ports: %v", got)
	}
}

func TestPeerThatCloses(t *testing.T) {
	l := newLAN(t, plain("a", "b"))
	p := l.port("b")
	if p.Err() != nil {
		t.Fatal(p.Err())
	}
	_ = l.stations["b"].far.Close()
	l.stations["b"].fd = -1
	l.send("a", etherFrame(all, mac(1), nil, 46))
	select {
	case <-p.Ended():
	case <-time.After(5 * time.Second):
		t.Fatal("the port has not ended")
	}
	if !errors.Is(p.Err(), unix.ECONNREFUSED) || p.Dropped(Gone) != 1 || !strings.Contains(p.Stats().Ended, "port b") {
		t.Errorf("%v, %+v", p.Err(), p.Stats())
	}
}

// TestPeerThatClosesInSilence closes the other end of a socket to which no frame is sent. Frames to
// the addresses behind it must be flooded.
func TestPeerThatClosesInSilence(t *testing.T) {
	l := newLAN(t, plain("a", "b", "c"))
	l.send("b", etherFrame(all, mac(2), nil, 46))
	p := l.port("b")
	_ = l.stations["b"].far.Close()
	delete(l.stations, "b")
	nstest.Eventually(t, 20*time.Second, "the port has ended, and its addresses are removed", func() bool {
		return p.State() == vport.StateEnded && l.sw.FDB().Lookup(KeyOf(mac(2), defaultVLAN)) == -1
	})
	if !errors.Is(p.Err(), unix.ECONNREFUSED) {
		t.Error(p.Err())
	}
	if got := names(l.send("a", etherFrame(mac(2), mac(1), nil, 46))); !slices.Equal(got, []string{"c"}) {
		t.Errorf("frames for it reached %v", got)
	}
	for _, name := range []string{"a", "c"} {
		if s := l.port(name).State(); s != vport.StateUp {
			t.Errorf("port %s is %s", name, s)
		}
	}
}

func TestAddPortToClosedSwitch(t *testing.T) {
	l := newLAN(t, plain("a"))
	if err := errors.Join(l.sw.Close(), l.sw.Close()); err != nil {
		t.Error(err)
	}
	w, far, err := SocketPair(0)
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	if _, err := l.sw.AddPort("b", w, vport.Config{}); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("a port of a closed switch: %v", err)
	}
}

func TestInvalidConfig(t *testing.T) {
	for text, cfg := range map[string]vport.Config{
		"MTU 67":         {MTU: 67},
		"MTU 65536":      {MTU: 65536},
		"not multicast":  {MACs: []net.HardwareAddr{all}},
		"want 6 bytes":   {MACs: []net.HardwareAddr{{2, 0}}},
		"at most 64":     {MACs: make([]net.HardwareAddr, 65)},
		"VLAN 4095":      access(4095),
		"storm limit":    {Storm: vport.Storm{Multicast: -1}},
		"-2 frames":      {Storm: vport.Storm{Refused: -2}},
		"want 0 to 8388": {MaxAddresses: -1},
	} {
		if err := cfg.Validate(); !errors.Is(err, brport.ErrInvalid) || !strings.Contains(err.Error(), text) {
			t.Errorf("%q: %v", text, err)
		}
	}
	sw := New(Config{})
	defer sw.Close()
	for name, mtu := range map[string]int{"": 0, strings.Repeat("a", 128): 0, "a": 1} {
		w, far, err := SocketPair(0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := sw.AddPort(name, w, vport.Config{MTU: mtu}); err == nil {
			t.Errorf("port %q with MTU %d was added", name, mtu)
		}
		_ = far.Close()
	}
	if _, err := OpenTap(); err == nil {
		t.Error("a tap without queues was opened")
	}
	for _, f := range []*os.File{os.Stdin} {
		if _, err := OpenSocket(f, 0); err == nil {
			t.Errorf("%s was opened as a socket", f.Name())
		}
		if _, err := OpenTap(f); err == nil {
			t.Errorf("%s was opened as a tap", f.Name())
		}
	}
}

func TestReasonsHaveNames(t *testing.T) {
	seen := map[string]Reason{}
	for r := range Reason(Reasons) {
		if r == offloadBase { // OK, which stands for Delivered
			continue
		}
		if other, ok := seen[r.String()]; ok || strings.Contains(r.String(), "unknown reason") {
			t.Errorf("%d and %d are both %q", r, other, r)
		}
		seen[r.String()] = r
	}
}

// TestRemovedPortIsForgotten checks that an idle receiver does not keep the MiBs of a removed
// port's buffers.
func TestRemovedPortIsForgotten(t *testing.T) {
	l := newLAN(t, plain("a", "b"))
	removed := weak.Make(l.add("c", vport.Config{}))
	for _, from := range []string{"a", "b", "c"} {
		l.send(from, etherFrame(all, mac(from[0]), nil, 46))
	}
	if err := l.sw.RemovePort("c"); err != nil {
		t.Fatal(err)
	}
	nstest.Eventually(t, 20*time.Second, "nothing refers to the removed port", func() bool {
		runtime.GC()
		return removed.Value() == nil
	})
}

func TestCures(t *testing.T) {
	for why := range Reason(Reasons) {
		cure, ok := cures[why]
		got := Cures(map[string]uint64{why.String(): 1, "no reason of ours": 1})
		if want := (map[string]string{why.String(): cure}); ok && !maps.Equal(got, want) || !ok && got != nil {
			t.Errorf("%q: cures %q, want %q", why, got, cure)
		}
		if got := Cures(map[string]uint64{why.String(): 0}); got != nil {
			t.Errorf("%q never happened, but has the cures %q", why, got)
		}
	}
	cure := cures[Indescribable]
	for _, feature := range []string{"tx-udp-segmentation", "tx-sctp-segmentation", "rx-udp-gro-forwarding"} {
		if !strings.Contains(cure, feature+" off") {
			t.Errorf("no %s in %q", feature, cure)
		}
	}
}
