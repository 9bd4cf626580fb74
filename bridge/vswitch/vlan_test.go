package vswitch

import (
	"bytes"
	"errors"
	"maps"
	"slices"
	"testing"

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch/vport"
)

// TestVLANs is the specification of VLANs: from which port, with which tags, a frame reaches which
// ports, and with which tags it leaves there. A frame that its port does not admit is dropped with
// VLAN, and one whose VLAN no other port has with NoPort.
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
	got := l.send("all", etherFrame(all, mac(1), tagged("8100:40"), 60))
	if n := l.port("all").Stats().Drops[NoPort.String()]; len(got) > 0 || n != 1 {
		t.Errorf("a frame of a VLAN of no other port: reached %v, dropped %d times", names(got), n)
	}
}

// floods sends a broadcast with tags from a station, and compares what the other stations receive.
// If none is to receive it, the port must drop it with the reason VLAN.
func (l *lan) floods(from string, tags []string, want map[string][]string) {
	l.tb.Helper()
	dropped := l.port(from).Stats().Drops
	if len(want) == 0 {
		dropped[VLAN.String()]++
	}
	got := l.send(from, etherFrame(all, mac(1), tags, 60))
	if drops := l.port(from).Stats().Drops; !maps.Equal(drops, dropped) {
		l.tb.Errorf("%s %v: the port has dropped %v, want %v", from, tags, drops, dropped)
	}
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
