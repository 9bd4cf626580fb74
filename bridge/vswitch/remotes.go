package vswitch

import "net/netip"

// RemoteHost returns the remote host of a VXLAN port behind which an address was seen. ok is false
// if none is known, or the port is of another kind.
func (p *Port) RemoteHost(k Key) (host netip.Addr, ok bool) {
	q := p.wire.overlay
	if q == nil {
		return host, false
	}
	tags := []uint16{0} // of the frames in the segment, which may bear the VLAN's tag or none
	switch vlans := &p.set.Load().vlans; {
	case !p.sw.FiltersVLANs():
		for tag := range uint16(maxVID) {
			tags = append(tags, tag)
		}
	case vlans.isPVID(k.VLAN()):
		tags = append(tags, k.VLAN())
	default:
		tags[0] = k.VLAN()
	}
	for _, tag := range tags {
		if i := q.table.Lookup(keyOf(k.mac(), tag)); i >= 0 {
			return q.remotes[i].addr, true
		}
	}
	return host, false
}

// GuestMTU returns the MTU in bytes that guests of the switch need for all of their frames to reach
// the other hosts; 0 if it has no VXLAN port.
func (sw *Switch) GuestMTU() (mtu int) {
	for _, p := range sw.table.Load().ports {
		if most := p.limits.Load().MTU; p.wire.overlay != nil && (mtu == 0 || most < mtu) {
			mtu = most
		}
	}
	return mtu
}

// forget removes an address from the table, in all VLANs.
func (q *vxlanQueue) forget(mac uint64) {
	q.table.remove(0, len(q.table.slots), func(slot int, w uint64) bool { return q.table.keyAt(slot, w).mac() == mac })
}

// Flush removes the addresses that were learned behind the port.
func (p *Port) Flush() {
	p.sw.fdb.FlushPort(p.index, false)
	if q := p.wire.overlay; q != nil {
		q.table.FlushLearned()
	}
}
