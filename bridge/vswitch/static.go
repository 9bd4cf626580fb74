package vswitch

import (
	"fmt"
	"io/fs"
	"net"
	"slices"

	"vmnet/bridge/brport"
)

// AddStatic adds a static entry for an address behind a port in a VLAN; 0 means the VLAN of the
// port's untagged frames. If another port is locked to the address (vport.Config.MACs), the error
// matches fs.ErrExist with errors.Is. If the port is unknown, it matches fs.ErrNotExist.
func (sw *Switch) AddStatic(port string, mac net.HardwareAddr, vlan int) error {
	sw.mu.Lock()
	defer sw.mu.Unlock()
	t := sw.table.Load()
	p := t.find(port)
	if p == nil {
		return ErrNoPort
	}
	k, err := t.keyAt(p, mac, vlan)
	if err != nil {
		return err
	}
	if owner := t.lockedTo(k); owner != nil && owner != p {
		return owner.owns(t, k)
	}
	return sw.fdb.AddStatic(k, p.index)
}

// keyAt returns an address's key behind a port. Like the kernel's bridge, it refuses a VLAN that
// the port is not in.
func (t *table) keyAt(p *Port, mac net.HardwareAddr, vlan int) (Key, error) {
	v := &p.set.Load().vlans
	switch {
	case !t.filters && vlan != 0:
		return 0, fmt.Errorf("%w VLAN %d: the switch does not filter VLANs "+
			"(leave it out, or run the switch with --vlan-filtering)", brport.ErrInvalid, vlan)
	case !t.filters:
		return KeyOf(mac, defaultVLAN), nil
	case vlan == 0 && !v.hasPVID:
		return 0, fmt.Errorf("%w VLAN 0: port %s has no VLAN for untagged frames (name a VLAN of its trunk)",
			brport.ErrInvalid, p.name)
	case vlan == 0:
		return KeyOf(mac, v.pvid), nil
	case !v.has(uint16(vlan)):
		return 0, fmt.Errorf("%w VLAN %d: port %s is not in it (name one of its VLANs)", brport.ErrInvalid, vlan,
			p.name)
	}
	return KeyOf(mac, uint16(vlan)), nil
}

// Forget removes an address from the FDB, even a static one, in a VLAN. VLAN 0 means the only VLAN
// in which the address is known; it is an error if there are several. If the address is unknown,
// the error matches fs.ErrNotExist with errors.Is. Forget refuses an address that a port is locked
// to.
func (sw *Switch) Forget(mac net.HardwareAddr, vlan int) error {
	sw.mu.Lock()
	defer sw.mu.Unlock()
	t, k := sw.table.Load(), KeyOf(mac, uint16(vlan))
	if vlan == 0 {
		var err error
		if k, err = sw.only(mac); err != nil {
			return err
		}
	}
	if owner := t.lockedTo(k); owner != nil {
		return fmt.Errorf("%w (remove the port, or add it without mac=%s)", owner.owns(t, k), k.MAC())
	}
	for _, p := range t.ports {
		if p.wire.overlay != nil {
			p.wire.overlay.forget(k.mac())
		}
	}
	if !sw.fdb.Remove(k) {
		return portError{fmt.Sprintf("the switch does not know %s%s", mac, t.inVLAN(k)), fs.ErrNotExist}
	}
	return nil
}

// only returns the key of an address that is known in exactly one VLAN.
func (sw *Switch) only(mac net.HardwareAddr) (Key, error) {
	var found []Key
	for _, e := range sw.fdb.Dump() {
		if slices.Equal(e.Key.MAC(), mac) {
			found = append(found, e.Key)
		}
	}
	switch len(found) {
	case 0:
		return 0, portError{fmt.Sprintf("the switch does not know %s", mac), fs.ErrNotExist}
	case 1:
		return found[0], nil
	}
	return 0, fmt.Errorf("%w VLAN 0: %s is known in %d VLANs (name one)", brport.ErrInvalid, mac, len(found))
}

// lockedTo returns the port that is locked to an address, or nil.
func (t *table) lockedTo(k Key) *Port {
	for _, p := range t.ports {
		if slices.Contains(p.set.Load().locked(), k) {
			return p
		}
	}
	return nil
}
