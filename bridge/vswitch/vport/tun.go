package vport

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Tun says which addresses a port of kind tun answers for. The port is locked to one MAC address
// (Config.MACs), which is behind them.
type Tun struct {
	Addresses []netip.Prefix `json:"addresses"`
}

const maxTunAddresses = 16

// Validate returns what contradicts itself, or nil.
func (t Tun) Validate() error {
	switch {
	case len(t.Addresses) == 0:
		return errors.New("no address: want those of the host at the tun (address=10.7.0.1/24)")
	case len(t.Addresses) > maxTunAddresses:
		return fmt.Errorf("%d addresses: want at most %d", len(t.Addresses), maxTunAddresses)
	}
	for i, p := range t.Addresses {
		a := p.Addr()
		if !p.IsValid() || !a.IsGlobalUnicast() && !a.IsLinkLocalUnicast() || a.Zone() != "" || a.Is4In6() {
			return fmt.Errorf("address %s: want that of a host with its prefix length, such as 10.7.0.1/24", p)
		}
		if slices.ContainsFunc(t.Addresses[:i], func(o netip.Prefix) bool { return o.Addr() == a }) {
			return fmt.Errorf("address %s: it is given twice", a)
		}
	}
	return nil
}
