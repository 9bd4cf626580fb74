package vswitch

import "net/netip"

// RemoteHosts returns a function that returns the remote host of a VXLAN port behind which an
// address was seen until now. ok is false if none is known, or the port is of another kind.
func (p *Port) RemoteHosts() func(k Key) (host netip.Addr, ok bool) {
	q := p.wire.overlay
	if q == nil {
		return func(Key) (host netip.Addr, ok bool) { return host, false }
	}
	// The frames in the segment may bear the VLAN's tag or none. Of those of one address, that with
	// the least tag comes first.
	known := map[Key]int{}
	first := map[uint64]int{}
	for _, e := range q.table.Dump() { // in the order of keys
		known[e.Key] = e.Port
		if _, ok := first[e.Key.mac()]; !ok {
			first[e.Key.mac()] = e.Port
		}
	}
	filters, vlans := p.sw.FiltersVLANs(), &p.set.Load().vlans
	return func(k Key) (host netip.Addr, ok bool) {
		i := 0
		switch {
		case !filters:
			i, ok = first[k.mac()]
		case vlans.isPVID(k.VLAN()):
			if i, ok = known[keyOf(k.mac(), 0)]; !ok {
				i, ok = known[k]
			}
		default:
			i, ok = known[k]
		}
		if ok {
			host = q.remotes[i].addr
		}
		return host, ok
	}
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
