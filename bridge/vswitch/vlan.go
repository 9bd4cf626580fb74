package vswitch

import "vmnet/bridge/brport"

// A switch filters VLANs from the start with Config.VLANFiltering, and otherwise since the first
// port with VLANs was added. It never stops to filter, so that the removal of a port cannot let
// tagged frames of the others pass. Before, it works like a kernel bridge with vlan_filtering 0:
// tags are payload, and all ports are in one network.
//
// With filtering, it works like a kernel bridge with vlan_filtering 1 (net/bridge/br_vlan.c).

// defaultVLAN is the untagged VLAN of ports that were given none, like the kernel's default_pvid.
// It is also the VLAN of all frames of a switch that does not filter, so that static entries stay
// valid when the switch starts to filter.
const defaultVLAN = 1

// vlans says which VLANs a port is in, on a switch that filters.
type vlans struct {
	native   uint16     // VLAN of untagged frames
	untagged bool       // untagged frames are accepted; those of the native VLAN leave untagged
	tagged   [64]uint64 // one bit for each VLAN whose frames enter and leave tagged
}

func newVLANs(cfg brport.Settings) *vlans {
	v := &vlans{native: uint16(cfg.Native), untagged: cfg.Native != 0}
	switch {
	case cfg.VLAN != 0:
		v.native, v.untagged = uint16(cfg.VLAN), true
	case len(cfg.Trunk) == 0:
		v.native, v.untagged = defaultVLAN, true
	}
	for _, r := range cfg.Trunk {
		v.allow(r)
	}
	return v
}

func (v *vlans) allow(r brport.VLANRange) {
	for id := r.First; id <= r.Last; id++ {
		v.tagged[id/64] |= 1 << (id % 64)
	}
}

func (v *vlans) isNative(vid uint16) bool { return v.untagged && vid == v.native }

// has reports whether the port is in a VLAN.
func (v *vlans) has(vid uint16) bool {
	return v.isNative(vid) || v.tagged[vid/64]&(1<<(vid%64)) != 0
}

// meets reports whether two ports have a VLAN in common, so that frames can pass between them.
func (v *vlans) meets(other *vlans) bool {
	if v.untagged && other.has(v.native) || other.untagged && v.has(other.native) {
		return true
	}
	for i := range v.tagged {
		if v.tagged[i]&other.tagged[i] != 0 {
			return true
		}
	}
	return false
}

// classify sets the VLAN of an incoming frame and reports whether the port is in it. A tag of VLAN
// 0 has only a priority (IEEE 802.1Q, 6.9.1).
func (t *table) classify(p *Port, f *frame) bool {
	switch {
	case !t.filters:
		f.vid = defaultVLAN
	case f.tagged && f.tagVID() != 0:
		f.vid = f.tagVID()
		return p.vlans.has(f.vid)
	case !p.vlans.untagged:
		return false
	default:
		f.vid = p.vlans.native
	}
	return true
}

// leaving returns the tag with which a frame leaves by a port. The tag keeps the frame's priority.
// On a switch that does not filter, the tag does not change.
func (t *table) leaving(to *Port, f *frame) (tci uint16, tagged bool) {
	switch {
	case !t.filters:
		return f.tci, f.tagged
	case to.vlans.isNative(f.vid):
		return 0, false
	}
	return f.tci&^maxVID | f.vid, true
}
