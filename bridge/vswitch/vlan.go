package vswitch

import (
	"encoding/binary"

	"vmnet/bridge"
)

// vlans says which VLANs a port has part in. VLAN 0 is that of frames without a tag on ports that were told nothing of
// VLANs: such ports pass on every frame as it is.
type vlans struct {
	native   uint16     // of frames without a tag
	untagged bool       // these are taken, and those of the native VLAN leave so
	tagged   [64]uint64 // a bit for each VLAN whose frames leave tagged, and come so
}

const noVLAN = 4095 // reserved (IEEE 802.1Q, table 9-2)

func newVLANs(cfg bridge.PortConfig) *vlans {
	v := &vlans{native: uint16(cfg.Native), untagged: cfg.Native != 0}
	switch {
	case cfg.VLAN != 0:
		v.native, v.untagged = uint16(cfg.VLAN), true
	case len(cfg.Trunk) == 0:
		v.untagged = true
		v.allow(bridge.VLANRange{First: 1, Last: noVLAN - 1})
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

// has tells whether the port takes part in a VLAN.
func (v *vlans) has(vid uint16) bool {
	return v.isNative(vid) || v.tagged[vid/64]&(1<<(vid%64)) != 0
}

// classify puts a frame that came in by the port into its VLAN, and tells whether the port has it. A tag of VLAN 0 says no
// more than a priority (IEEE 802.1Q, 6.9.1): it gets the native VLAN's id, and the priority stays.
func (v *vlans) classify(f *frame) bool {
	if f.vid != 0 {
		return v.has(f.vid)
	}
	if !v.untagged {
		return false
	}
	f.vid = v.native
	if f.tagged && f.vid != 0 {
		tci := f.ether()[macsLen+2:]
		binary.BigEndian.PutUint16(tci, binary.BigEndian.Uint16(tci)|f.vid)
	}
	return true
}

// tags tells whether a frame leaves by the port with a tag. One of VLAN 0 with a priority keeps it.
func (v *vlans) tags(f *frame) bool {
	return !v.isNative(f.vid) || f.vid == 0 && f.tagged
}
