package evpn

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Segments is what FRR says of several segments, by their VNIs: those of a VXLAN device with a map.
type Segments map[int]Status

// OfAll returns what FRR says of these segments.
func (a Answer) OfAll(vnis []int) Segments {
	s := Segments{}
	for _, vni := range vnis {
		s[vni] = a.Of(vni)
	}
	return s
}

// Trouble returns what keeps guests of some segments from reaching those of other hosts, and the
// cure; empty if nothing does.
func (s Segments) Trouble() (text, cure string) {
	var unknown, lonely []int
	for _, vni := range slices.Sorted(maps.Keys(s)) {
		one := s[vni]
		switch text, cure := one.Trouble(vni); {
		case text == "":
		case one.Running && !one.Known:
			unknown = append(unknown, vni)
		case !one.Running || one.Up == 0: // of all
			return text, cure
		default:
			lonely = append(lonely, vni)
		}
	}
	switch {
	case len(unknown) == len(s) && len(s) > 0:
		return "FRR announces none of its VNIs", "it needs FRR 9 or later, and advertise-all-vni: docs/evpn.md"
	case len(unknown) > 0:
		return "FRR does not announce " + vniList(unknown), "vtysh -c 'show evpn vni'"
	case len(lonely) > 0:
		return "no other host announces " + vniList(lonely), "map them on the other hosts, too"
	}
	return "", ""
}

// String returns the statuses in one line.
func (s Segments) String() string {
	var known, macs, peers, up int
	hosts := map[string]bool{}
	for _, one := range s {
		if !one.Running {
			return one.String()
		}
		if one.Known {
			known++
		}
		macs, peers, up = macs+one.MACs, one.Peers, one.Up
		for _, a := range one.Remotes {
			hosts[a] = true
		}
	}
	return fmt.Sprintf("announces %d of %d VNIs, %d MACs, %d remote hosts, %d of %d neighbors connected", known, len(s),
		macs, len(hosts), up, peers)
}

// vniList names VNIs, at most a few of them.
func vniList(vnis []int) string {
	const most = 4
	text := "VNI " + strings.Trim(strings.ReplaceAll(fmt.Sprint(vnis[:min(len(vnis), most)]), " ", ", "), "[]")
	if len(vnis) > most {
		text += fmt.Sprintf(" and %d more", len(vnis)-most)
	}
	return text
}
