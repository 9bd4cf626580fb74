package vswitch

import "vmnet/bridge"

// A switch filters VLANs from its first port on that was given VLANs, or from the start where
// Config.VLANFiltering says so, and never stops: that a port goes must not let the others' tagged
// frames pass. Until then it does what a kernel bridge does whose vlan_filtering is 0: a tag is
// payload, and all ports are in one network.
//
// With filtering, it does what a bridge with vlan_filtering 1 does (net/bridge/br_vlan.c).

// defaultVLAN is the VLAN of ports that were not given any, untagged, as the kernel's default_pvid.
// It is also the VLAN of all frames of a switch that does not filter, so that what the FDB was told
// holds when it begins to.
const defaultVLAN = 1

// vlans says which VLANs a port of a switch that filters has part in.
type vlans struct {
	native   uint16     // of frames without a tag
	untagged bool       // these are taken, and those of the native VLAN leave so
	tagged   [64]uint64 // a bit for each VLAN whose frames leave tagged, and come so
}

func newVLANs(cfg bridge.PortConfig) *vlans {
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

func (v *vlans) allow(r bridge.VLANRange) {
	for id := r.First; id <= r.Last; id++ {
		v.tagged[id/64] |= 1 << (id % 64)
	}
}

func (v *vlans) isNative(vid uint16) bool { return v.untagged && vid == v.native }

// has reports whether the port takes part in a VLAN.
func (v *vlans) has(vid uint16) bool {
	return v.isNative(vid) || v.tagged[vid/64]&(1<<(vid%64)) != 0
}

// meets reports whether a frame can pass from one port to the other: whether they have a VLAN in
// common.
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

// classify finds the VLAN of a frame that came in by a port, and reports whether the port has it. A
// tag of VLAN 0 says no more than a priority (IEEE 802.1Q, 6.9.1).
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

// leaving is the tag with which a frame leaves by a port. A priority stays where there is a tag for
// it. Where the switch does not filter, the frame leaves as it came.
func (t *table) leaving(to *Port, f *frame) (tci uint16, tagged bool) {
	switch {
	case !t.filters:
		return f.tci, f.tagged
	case to.vlans.isNative(f.vid):
		return 0, false
	}
	return f.tci&^maxVID | f.vid, true
}
