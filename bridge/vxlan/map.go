package vxlan

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// maxVLAN is the highest VLAN id; 0 and 4095 are reserved (IEEE 802.1Q, table 9-2).
const maxVLAN = 4094

// A Mapping maps the VLANs from First to Last to as many VNIs, of which VNI is the first.
type Mapping struct{ First, Last, VNI int }

// LastVNI returns the VNI of Last.
func (m Mapping) LastVNI() int { return m.VNI + m.Last - m.First }

// String returns the mapping as ParseMap reads it.
func (m Mapping) String() string {
	if m.First == m.Last {
		return fmt.Sprintf("%d:%d", m.First, m.VNI)
	}
	return fmt.Sprintf("%d-%d:%d-%d", m.First, m.Last, m.VNI, m.LastVNI())
}

func (m Mapping) validate() error {
	switch {
	case m.First < 1 || m.First > m.Last || m.Last > maxVLAN:
		return fmt.Errorf("map %s: want VLANs of 1 to %d, the lower one first", m, maxVLAN)
	case m.VNI < 1 || m.LastVNI() > MaxVNI:
		return fmt.Errorf("map %s: want VNIs of 1 to %d", m, MaxVNI)
	}
	return nil
}

// A Map says in which segment each VLAN of a bridge is. No VLAN and no VNI is there twice.
type Map []Mapping

// ParseMap parses a list such as 10:10010,20-29:20020-20029, and returns it sorted and merged.
func ParseMap(list string) (Map, error) {
	var m Map
	for item := range strings.SplitSeq(list, ",") {
		one, err := parseMapping(item)
		if err != nil {
			return nil, err
		}
		m = append(m, one)
	}
	if err := m.Validate(); err != nil {
		return nil, err
	}
	return m.Normal(), nil
}

func parseMapping(item string) (m Mapping, err error) {
	vlans, vnis, ok := strings.Cut(item, ":")
	var lastVNI int
	if ok {
		m.First, m.Last, err = parseRange(vlans)
	}
	if ok && err == nil {
		m.VNI, lastVNI, err = parseRange(vnis)
	}
	switch {
	case !ok || err != nil:
		return m, fmt.Errorf("map %.40q: want VLAN:VNI, or ranges of both, such as 10:10010,20-29:20020-20029", item)
	case m.Last < m.First || lastVNI < m.VNI:
		return m, fmt.Errorf("map %s: want the lower number first", item)
	case m.Last-m.First != lastVNI-m.VNI:
		return m, fmt.Errorf("map %s: it has %d VLANs and %d VNIs (want as many of both)", item, m.Last-m.First+1,
			lastVNI-m.VNI+1)
	}
	return m, m.validate()
}

// parseRange parses FIRST or FIRST-LAST. Numbers are in decimal, without signs, and below 2^31.
func parseRange(s string) (first, last int, err error) {
	from, to, isRange := strings.Cut(s, "-")
	if !isRange {
		to = from
	}
	for _, part := range []struct {
		text string
		to   *int
	}{{from, &first}, {to, &last}} {
		n, parseErr := strconv.ParseUint(part.text, 10, 31)
		err = errors.Join(err, parseErr)
		*part.to = int(n)
	}
	return first, last, err
}

// Validate returns what is wrong with the map, or nil.
func (m Map) Validate() error {
	if len(m) == 0 {
		return errors.New("map: want at least one VLAN:VNI, such as 10:10010")
	}
	vlans, vnis := map[int]bool{}, map[int]bool{}
	for _, one := range m {
		if err := one.validate(); err != nil {
			return err
		}
		for vlan := one.First; vlan <= one.Last; vlan++ {
			vni := one.VNI + vlan - one.First
			switch {
			case vlans[vlan]:
				return fmt.Errorf("map %s: VLAN %d is there twice", one, vlan)
			case vnis[vni]:
				return fmt.Errorf("map %s: VNI %d is there twice", one, vni)
			}
			vlans[vlan], vnis[vni] = true, true
		}
	}
	return nil
}

// Normal returns the map sorted by VLAN, with ranges as long as can be.
func (m Map) Normal() Map { return MapOf(m.ByVLAN()) }

// MapOf returns the map with the VNI of each VLAN, sorted and merged.
func MapOf(vnis map[int]int) (m Map) {
	for _, vlan := range slices.Sorted(maps.Keys(vnis)) {
		if n := len(m); n > 0 && m[n-1].Last == vlan-1 && m[n-1].LastVNI() == vnis[vlan]-1 {
			m[n-1].Last++
			continue
		}
		m = append(m, Mapping{vlan, vlan, vnis[vlan]})
	}
	return m
}

// ByVLAN returns the VNI of each VLAN.
func (m Map) ByVLAN() map[int]int {
	vnis := map[int]int{}
	for _, one := range m {
		for vlan := one.First; vlan <= one.Last; vlan++ {
			vnis[vlan] = one.VNI + vlan - one.First
		}
	}
	return vnis
}

// VNIs returns the VNIs in ascending order.
func (m Map) VNIs() []int {
	var all []int
	for _, one := range m {
		for vni := one.VNI; vni <= one.LastVNI(); vni++ {
			all = append(all, vni)
		}
	}
	slices.Sort(all)
	return all
}

// String returns the map as ParseMap reads it.
func (m Map) String() string {
	var items []string
	for _, one := range m {
		items = append(items, one.String())
	}
	return strings.Join(items, ",")
}
