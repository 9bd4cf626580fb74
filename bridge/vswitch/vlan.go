package vswitch

import "vmnet/bridge/brport"

// A switch filters VLANs from the start with Config.VLANFiltering, and otherwise since the first
// port with VLANs was added. It never stops filtering, so that the removal of a port cannot let
// tagged frames of the others pass. Until it filters, it works like a kernel bridge with
// vlan_filtering 0: frames are forwarded with the tags that they have, and all ports are in one
// network.
//
// With filtering, it works like a kernel bridge with vlan_filtering 1 (net/bridge/br_vlan.c).

// defaultVLAN is the untagged VLAN of ports that were given none, like the kernel's default_pvid.
// It is also the VLAN of all frames of a switch that does not filter, so that static entries stay
// valid when the switch starts to filter.
const defaultVLAN = 1

// vlans says which VLANs a port is in. A port without VLAN and Trunk is in defaultVLAN. On a switch
// that does not filter, all ports are like that and all frames are in defaultVLAN (classify), so
// that receiver.between need not know whether the switch filters.
type vlans struct {
	// pvid is the VLAN of untagged frames, under the kernel's name: that of an access port, or
	// the native VLAN of a trunk. Its frames leave untagged.
	pvid    uint16
	hasPVID bool // otherwise untagged frames are dropped

	// members has one bit for each VLAN of a trunk. The frames of all but the pvid leave tagged.
	members [64]uint64
}

func newVLANs(cfg brport.Settings) vlans {
	v := vlans{pvid: uint16(cfg.Native), hasPVID: cfg.Native != 0}
	switch {
	case cfg.VLAN != 0:
		v.pvid, v.hasPVID = uint16(cfg.VLAN), true
	case len(cfg.Trunk) == 0:
		v.pvid, v.hasPVID = defaultVLAN, true
	}
	for _, r := range cfg.Trunk {
		v.allow(r)
	}
	return v
}

func (v *vlans) allow(r brport.VLANRange) {
	for id := r.First; id <= r.Last; id++ {
		v.members[id/64] |= 1 << (id % 64)
	}
}

// isPVID reports whether the VLAN's frames leave untagged.
func (v *vlans) isPVID(vid uint16) bool { return v.hasPVID && vid == v.pvid }

// has reports whether the port is in a VLAN.
func (v *vlans) has(vid uint16) bool {
	return v.isPVID(vid) || v.members[vid/64]&(1<<(vid%64)) != 0
}

// meets reports whether two ports have a VLAN in common, so that frames can pass between them.
func (v *vlans) meets(other *vlans) bool {
	if v.hasPVID && other.has(v.pvid) || other.hasPVID && v.has(other.pvid) {
		return true
	}
	for i := range v.members {
		if v.members[i]&other.members[i] != 0 {
			return true
		}
	}
	return false
}

// classify sets the VLAN of an incoming frame and reports whether the port is in it. A tag of VLAN
// 0 has only a priority (IEEE 802.1Q, 6.9.1).
func (t *table) classify(v *vlans, f *frame) bool {
	switch {
	case !t.filters:
		f.vid = defaultVLAN
	case f.tagged && f.tagVID() != 0:
		f.vid = f.tagVID()
		return v.has(f.vid)
	case !v.hasPVID:
		return false
	default:
		f.vid = v.pvid
	}
	return true
}

// leaving returns the tag with which a frame leaves by a port. The tag keeps the frame's priority.
// On a switch that does not filter, the tag does not change.
func (t *table) leaving(to *Port, f *frame) (tci uint16, tagged bool) {
	switch {
	case !t.filters:
		return f.tci, f.tagged
	case to.set.Load().vlans.isPVID(f.vid):
		return 0, false
	}
	return f.tci&^maxVID | f.vid, true
}
