package bridges

import (
	"context"
	"maps"
	"slices"
	"strings"

	"vmnet/bridge/brport"
	"vmnet/bridge/vxlan"
	"vmnet/internal/kernel/rtnl"
	"vmnet/step"
)

// A VXLAN device with a map has two lists of its VNIs: the filter of those that it receives, and of
// its port the VLANs, each with the VNI in which its frames are sent and from which they come.

// Mapped is what a VXLAN device with a map has.
type Mapped struct {
	VLANs map[int]int  // the VNI of each VLAN of its port; 0 if that has none
	VNIs  map[int]bool // in the filter
}

// ReadMap reads what a VXLAN device with a filter has.
func ReadMap(c *rtnl.Conn, l *rtnl.Link) (Mapped, error) {
	m := Mapped{map[int]int{}, map[int]bool{}}
	filter, err := c.VNIs(l.Index)
	if err != nil {
		return m, err
	}
	for _, r := range filter {
		for vni := r.First; vni <= r.Last; vni++ {
			m.VNIs[vni] = true
		}
	}
	if l.Port == nil {
		return m, nil
	}
	vlans, err := c.PortVLANs(l.Index)
	for _, r := range vlans[l.Index] {
		for vlan := r.First; vlan <= r.Last; vlan++ {
			m.VLANs[vlan] = 0
			if r.Tunnel != 0 {
				m.VLANs[vlan] = r.Tunnel + vlan - r.First
			}
		}
	}
	return m, err
}

// mapped returns what carries frames: VLANs whose VNI is in the filter.
func (m Mapped) mapped() vxlan.Map {
	all := maps.Clone(m.VLANs)
	maps.DeleteFunc(all, func(_, vni int) bool { return !m.VNIs[vni] })
	if len(all) == 0 {
		return vxlan.Map{}
	}
	return vxlan.MapOf(all)
}

// An Unmapped says which VLANs of a bridge's port reach no other host.
type Unmapped struct {
	Device string             // the VXLAN device, whose map has none of them
	VLANs  []brport.VLANRange // sorted; none: all of the port's VLANs reach others
}

// ReadUnmapped returns which VLANs of a port of br with the settings cfg are in no segment, if br
// has a VXLAN device with a map: neither that nor another port of br that leads out of the host has
// them. A trunk of all VLANs lacks none, unless no VLAN at all is in a segment.
func ReadUnmapped(c *rtnl.Conn, br *rtnl.Link, cfg brport.Settings) (Unmapped, error) {
	if !Filters(br) {
		return Unmapped{}, nil
	}
	ports, err := c.Links("vxlan", br.Index)
	i := slices.IndexFunc(ports, hasMap)
	if i < 0 {
		return Unmapped{}, err
	}
	device := ports[i].Name
	if ports, err = c.Links("", br.Index); err != nil {
		return Unmapped{}, err
	}
	vlans, err := c.PortVLANs(0)
	if err != nil {
		return Unmapped{}, err
	}
	return Unmapped{device, unmapped(ports, vlans, Effective(br, cfg))}, nil
}

func hasMap(l *rtnl.Link) bool { return l.VXLAN != nil && l.VXLAN.VNIFilter }

// unmapped returns the VLANs of a port that none of the ports that lead out of the host has.
func unmapped(ports []*rtnl.Link, vlans map[int][]rtnl.VLANs, cfg brport.Settings) []brport.VLANRange {
	own, out := slices.Clone(cfg.Trunk), []brport.VLANRange{}
	for _, id := range []int{cfg.VLAN, cfg.Native} {
		if id != 0 {
			own = append(own, brport.VLANRange{First: id, Last: id})
		}
	}
	for _, l := range ports {
		carried := slices.DeleteFunc(slices.Clone(vlans[l.Index]), func(v rtnl.VLANs) bool {
			return !LeadsOut(l) || hasMap(l) && v.Tunnel == 0
		})
		out = append(out, ranges(carried)...)
	}
	own, out = brport.MergeVLANs(own), brport.MergeVLANs(out)
	if all, _ := brport.ParseVLANs("all"); slices.Equal(own, all) && len(out) > 0 {
		return nil
	}
	return brport.WithoutVLANs(own, out)
}

// LeadsOut reports whether a port of a bridge is of a kind by which frames leave the host: a
// physical device, a bond, a VLAN of one, or a tunnel.
func LeadsOut(l *rtnl.Link) bool {
	kinds := []string{"", "bond", "team", "vlan", "vxlan", "geneve", "gretap", "ip6gretap", "macsec", "bareudp"}
	return slices.Contains(kinds, l.Kind)
}

// mapSteps make the map of a device, or of a new one if l is nil, as the Config says.
func (v *vxlanDevice) mapSteps(l *rtnl.Link) (steps []step.Step, err error) {
	has := Mapped{}
	if l != nil {
		if has, err = ReadMap(v.c, l); err != nil {
			return nil, err
		}
	}
	want := v.Map.ByVLAN()
	wanted := map[int]bool{}
	for _, vni := range want {
		wanted[vni] = true
	}
	gone := Mapped{maps.Clone(has.VLANs), maps.Clone(has.VNIs)}
	maps.DeleteFunc(gone.VLANs, func(vlan, vni int) bool { return want[vlan] == vni && vni != 0 })
	maps.DeleteFunc(gone.VNIs, func(vni int, _ bool) bool { return wanted[vni] })
	missing := maps.Clone(want)
	maps.DeleteFunc(missing, func(vlan, vni int) bool { return has.VLANs[vlan] == vni && has.VNIs[vni] })
	if len(gone.VLANs)+len(gone.VNIs) > 0 {
		steps = append(steps, v.unmapStep(gone))
	}
	if len(missing) > 0 {
		steps = append(steps, v.mapStep(missing))
	}
	return steps, nil
}

// mapStep maps VLANs to VNIs.
func (v *vxlanDevice) mapStep(vnis map[int]int) step.Step {
	m := vxlan.MapOf(vnis)
	s := v.on("map", v.mapText(m), func(l *rtnl.Link) error { return v.addMap(l, m) })
	s.Undo = v.undoOn(func(l *rtnl.Link) error { return v.deleteMap(l, mappedBy(m)) })
	return s
}

// unmapStep removes VLANs of the port, and VNIs of the filter.
func (v *vxlanDevice) unmapStep(gone Mapped) step.Step {
	tunnels := maps.Clone(gone.VLANs)
	maps.DeleteFunc(tunnels, func(_, vni int) bool { return vni == 0 })
	var text []string
	if vlans := slices.Collect(maps.Keys(gone.VLANs)); len(vlans) > 0 {
		text = append(text, "bridge vlan del dev "+v.name()+" vid "+rangesText(vlans))
	}
	if vnis := slices.Collect(maps.Keys(gone.VNIs)); len(vnis) > 0 {
		text = append(text, "bridge vni delete dev "+v.name()+" vni "+rangesText(vnis))
	}
	s := v.on("unmap", strings.Join(text, "; "), func(l *rtnl.Link) error { return v.deleteMap(l, gone) })
	s.Undo = v.undoOn(func(l *rtnl.Link) error {
		if len(tunnels) == 0 {
			return nil // what there was carried no frames
		}
		return v.addMap(l, vxlan.MapOf(tunnels))
	})
	return s
}

// undoOn returns an Undo that does f to the device, if it is there.
func (v *vxlanDevice) undoOn(f func(l *rtnl.Link) error) func(context.Context) error {
	return func(context.Context) error {
		l, err := v.c.Link(v.name())
		if err != nil {
			return rtnl.IgnoreNotExist(err)
		}
		return f(l)
	}
}

// addMap maps VLANs to VNIs; what is so already stays as it is.
func (v *vxlanDevice) addMap(l *rtnl.Link, m vxlan.Map) error {
	has, err := ReadMap(v.c, l)
	if err != nil {
		return err
	}
	missing, other := m.ByVLAN(), map[int]bool{}
	maps.DeleteFunc(missing, func(vlan, vni int) bool { return has.VLANs[vlan] == vni && has.VNIs[vni] })
	if len(missing) == 0 {
		return nil
	}
	for vlan := range missing {
		if _, is := has.VLANs[vlan]; is {
			other[vlan] = true
		}
	}
	if len(other) > 0 {
		if err := v.c.DeletePortVLANs(l.Index, vlansIn(other)); err != nil {
			return err
		}
	}
	var filter []rtnl.VNIs
	var vlans []rtnl.VLANs
	for _, one := range vxlan.MapOf(missing) {
		filter = append(filter, rtnl.VNIs{First: one.VNI, Last: one.LastVNI()})
		vlans = append(vlans, rtnl.VLANs{First: one.First, Last: one.Last, Tunnel: one.VNI})
	}
	if err := v.c.AddVNIs(l.Index, filter); err != nil {
		return err
	}
	for some := range slices.Chunk(vlans, maxRanges) {
		if err := v.c.AddPortVLANs(l.Index, some); err != nil {
			return err
		}
	}
	return nil
}

// maxRanges bounds the ranges of one message: their attribute, of 72 bytes each, must stay below
// 64 KiB (struct nlattr).
const maxRanges = 512

// deleteMap removes VLANs from the port and VNIs from the filter, as far as they are there.
func (v *vxlanDevice) deleteMap(l *rtnl.Link, gone Mapped) error {
	has, err := ReadMap(v.c, l)
	if err != nil {
		return err
	}
	vlans, vnis := map[int]bool{}, map[int]int{}
	for vlan, vni := range gone.VLANs {
		if is, member := has.VLANs[vlan]; member && (is == vni || is == 0) {
			vlans[vlan] = true
		}
	}
	for vni := range gone.VNIs {
		if has.VNIs[vni] {
			vnis[vni] = vni
		}
	}
	if len(vlans) > 0 {
		if err := v.c.DeletePortVLANs(l.Index, vlansIn(vlans)); err != nil {
			return err
		}
	}
	if len(vnis) == 0 {
		return nil
	}
	var filter []rtnl.VNIs
	for _, one := range vxlan.MapOf(vnis) {
		filter = append(filter, rtnl.VNIs{First: one.First, Last: one.Last})
	}
	return v.c.DeleteVNIs(l.Index, filter)
}

// mapText returns the commands that map VLANs, of all ranges.
func (v *vxlanDevice) mapText(m vxlan.Map) string {
	var text []string
	for _, one := range m {
		vlans, vnis, _ := strings.Cut(one.String(), ":")
		text = append(text, "bridge vni add dev "+v.name()+" vni "+vnis,
			"bridge vlan add dev "+v.name()+" vid "+vlans,
			"bridge vlan add dev "+v.name()+" vid "+vlans+" tunnel_info id "+vnis)
	}
	return strings.Join(text, "; ")
}

func mappedBy(m vxlan.Map) Mapped {
	all := Mapped{m.ByVLAN(), map[int]bool{}}
	for _, vni := range all.VLANs {
		all.VNIs[vni] = true
	}
	return all
}

// vlanRanges returns the VLANs of a map.
func vlanRanges(m vxlan.Map) (all []brport.VLANRange) {
	for _, one := range m {
		all = append(all, brport.VLANRange{First: one.First, Last: one.Last})
	}
	return brport.MergeVLANs(all)
}

func vlansIn(set map[int]bool) (all []rtnl.VLANs) {
	for vlan := range set {
		all = append(all, rtnl.VLANs{First: vlan, Last: vlan})
	}
	return all
}

// vniText returns the VNIs of entries as ranges.
func vniText(list []rtnl.Flood) string {
	var vnis []int
	for _, f := range list {
		vnis = append(vnis, f.VNI)
	}
	return rangesText(vnis)
}

// rangesText returns numbers, VLANs or VNIs, as ranges: 10,20-29.
func rangesText(numbers []int) string {
	var ranges []brport.VLANRange
	for _, n := range numbers {
		ranges = append(ranges, brport.VLANRange{First: n, Last: n})
	}
	return brport.FormatVLANs(ranges)
}
