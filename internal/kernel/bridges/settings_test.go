package bridges

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vmnet/bridge/brport"
	"vmnet/internal/kernel/rtnl"
)

// TestWithoutIsTheComplement compares with sets of single VLANs.
func TestWithoutIsTheComplement(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		var all [2]map[int]bool
		var ranges [2][]brport.VLANRange
		for i := range ranges {
			all[i] = map[int]bool{}
			for range rnd.IntN(6) {
				first := 1 + rnd.IntN(30)
				last := first + rnd.IntN(8)
				ranges[i] = append(ranges[i], brport.VLANRange{First: first, Last: last})
				for v := first; v <= last; v++ {
					all[i][v] = true
				}
			}
		}
		got := map[int]bool{}
		before := -1
		for _, r := range brport.WithoutVLANs(brport.MergeVLANs(ranges[0]), brport.MergeVLANs(ranges[1])) {
			if r.First <= before+1 && before >= 0 && !all[1][before+1] {
				t.Fatalf("%v without %v: %v begins where the previous range ended", ranges[0], ranges[1], r)
			}
			for v := r.First; v <= r.Last; v++ {
				got[v] = true
			}
			before = r.Last
		}
		for v := range 50 {
			if want := all[0][v] && !all[1][v]; got[v] != want {
				t.Fatalf("%v without %v: %d is %v, want %v", ranges[0], ranges[1], v, got[v], want)
			}
		}
	}
}

func TestLeave(t *testing.T) {
	have := []rtnl.VLANs{{First: 2, Last: 9}, {First: 20, Last: 20}, {First: 1, Last: 1, PVID: true, Untagged: true}}
	want := []rtnl.VLANs{{First: 4, Last: 5}, {First: 20, Last: 20, PVID: true}, {First: 30, Last: 40}}
	diff := cmp.Diff([]rtnl.VLANs{{First: 1, Last: 3}, {First: 6, Last: 9}}, leave(have, want))
	if diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := leave(have, have); got != nil {
		t.Errorf("nothing to leave: %v", got)
	}
}

func TestSettingsOfAMembership(t *testing.T) {
	vlan := func(first, last int, pvid, untagged bool) rtnl.VLANs {
		return rtnl.VLANs{First: first, Last: last, PVID: pvid, Untagged: untagged}
	}
	for want, vlans := range map[string][]rtnl.VLANs{
		"":                               nil,
		"vlan:1":                         {vlan(1, 1, true, true)},
		"trunk:2-5,7":                    {vlan(2, 5, false, false), vlan(7, 7, false, false)},
		"trunk:2,4;native:3":             {vlan(2, 2, false, false), vlan(3, 3, true, true), vlan(4, 4, false, false)},
		"vlan:10;tagged-native:10":       {vlan(10, 10, true, false)},
		"trunk:20;native:10;untagged:20": {vlan(10, 10, true, true), vlan(20, 20, false, true)},
		"trunk:1-9;native:10;tagged-native:10;untagged:1-9": {vlan(1, 9, false, true), vlan(10, 10, true, false)},
	} {
		port := &rtnl.Link{Port: &rtnl.Port{PortFlags: rtnl.PortFlags{Learning: true, Flood: true}}}
		if got := SettingsOf(port, vlans); got.String() != want {
			t.Errorf("%+v: got %q, want %q", vlans, got, want)
		}
	}
}

func TestPlusOnlyAddsFlagsAndReplacesVLANs(t *testing.T) {
	for _, test := range []struct{ have, more, want string }{
		{"", "", ""},
		{"isolated;nolearn", "noflood", "isolated;nolearn;noflood"},
		{"vlan:1", "isolated", "vlan:1;isolated"},
		{"vlan:1;hairpin", "vlan:20", "vlan:20;hairpin"},
		{"forward:lldp", "forward:lacp", "forward:lacp,lldp"},
		{"trunk:2-5;native:7", "trunk:9", "trunk:9"},
	} {
		have, err1 := brport.Parse(test.have)
		more, err2 := brport.Parse(test.more)
		if got := plus(have, more).String(); err1 != nil || err2 != nil || got != test.want {
			t.Errorf("%q plus %q: %q, want %q (%v, %v)", test.have, test.more, got, test.want, err1, err2)
		}
	}
	odd := brport.Settings{VLAN: 10, Other: "tagged-native:10"}
	if got := plus(odd, brport.Settings{VLAN: 20}); !got.Equal(brport.Settings{VLAN: 20}) {
		t.Errorf("a word about the old VLANs is kept: %q", got)
	}
}

// A bridge that takes part in a spanning tree must process its frames itself.
func TestSpanningTreeIsNotForwarded(t *testing.T) {
	for settings, want := range map[string]bool{
		"forward:stp": true, "forward:all": true,
		"forward:lldp": false, "": false,
	} {
		cfg, err := brport.Parse(settings)
		if err == nil {
			err = fits(&rtnl.Link{Name: "br0", Bridge: &rtnl.Bridge{STP: true}}, cfg)
		}
		if got := err != nil && strings.Contains(err.Error(), "bridge br0 takes part in a spanning tree"); got != want {
			t.Errorf("%q: %v", settings, err)
		}
	}
}

// TestUnmapped: which VLANs of a port reach no other host, on a bridge with a VXLAN device that
// maps VLANs 10 to 19, and is in VLAN 40 without a VNI.
func TestUnmapped(t *testing.T) {
	mapped := []rtnl.VLANs{{First: 15, Last: 19, Tunnel: 5}, {First: 10, Last: 14, Tunnel: 70}, {First: 40, Last: 40}}
	vlans := map[int][]rtnl.VLANs{
		7: mapped, 8: {{First: 1, Last: 1, PVID: true}, {First: 30, Last: 30}}, 9: {{First: 20, Last: 20}},
	}
	device := &rtnl.Link{Name: "vx-br0", Index: 7, Kind: "vxlan", VXLAN: &rtnl.VXLAN{VNIFilter: true}}
	for _, test := range []struct{ port, other, want string }{
		{"vlan:10", "", ""},
		{"vlan:9", "", "9"},
		{"vlan:40", "", "40"},
		{"trunk:10-19", "", ""},
		{"trunk:8-22", "", "8-9,20-22"},
		{"trunk:12,14;native:1", "", "1"},
		{"trunk:1-4094", "", ""},
		{"trunk:2-4094;native:1", "", ""},
		{"trunk:1-4093", "", "1-9,20-4093"},
		{"vlan:30", "veth", "30"}, // a container's
		{"vlan:30", "bond", ""},
		{"vlan:30", "vlan", ""},
		{"trunk:19,20,30;native:1", "", "1,20,30"},
		{"trunk:19,20,30;native:1", "team", "20"},
	} {
		ports := []*rtnl.Link{{Index: 9, Kind: "tun"}, device}
		if test.other != "" {
			ports = append(ports, &rtnl.Link{Index: 8, Kind: test.other})
		}
		cfg, err := brport.Parse(test.port)
		if got := brport.FormatVLANs(unmapped(ports, vlans, cfg)); err != nil || got != test.want {
			t.Errorf("%s, beside %q: %q, want %q (%v)", test.port, test.other, got, test.want, err)
		}
	}
	trunk := brport.Settings{Trunk: []brport.VLANRange{{First: 1, Last: 4094}}}
	if all := unmapped([]*rtnl.Link{device}, nil, trunk); len(all) != 1 {
		t.Errorf("a trunk of all, of which no VLAN is mapped: %v", all)
	}
}
