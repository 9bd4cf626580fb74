package usernet

import (
	"net/netip"
	"slices"
	"syscall"

	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/network/config"
)

// packetTable is the routing table for all packets but those of TCP.
const packetTable = 100

// A network is wide if its interface in the namespace takes packets of up to config.MaxMTU bytes,
// whatever the guests' MTU: pasta then sends TCP in segments of that size, which guests get as
// super-frames, or the switch cuts (vswitch.Wire.Verified). Other packets are cut to the guests'
// MTU by the routes of packetTable.

// canBeWide has the kernel look into packetTable, and reports whether it can.
func (a *inside) canBeWide() bool {
	for _, family := range []uint8{syscall.AF_INET, syscall.AF_INET6} {
		if a.nl.AddRuleExcept(family, syscall.IPPROTO_TCP, packetTable) != nil {
			return false
		}
	}
	return true
}

// setMTU gives the interface, and the routes to guests, the MTU of the network.
func (a *inside) setMTU(n *config.Network) error {
	mtu := n.GuestMTU()
	if !a.wide {
		return a.nl.Set(a.link, rtnl.MTU(mtu))
	}
	if err := a.nl.Set(a.link, rtnl.MTU(config.MaxMTU)); err != nil {
		return err
	}
	var now []netip.Prefix
	for _, p := range n.Prefixes() {
		now = append(now, p.Masked())
		if err := a.nl.SetLinkRoute(packetTable, p.Masked(), a.link, mtu); err != nil {
			return err
		}
	}
	for _, p := range a.routed {
		if !slices.Contains(now, p) {
			if err := a.nl.DeleteLinkRoute(packetTable, p, a.link); err != nil {
				return err
			}
		}
	}
	a.routed = now
	return nil
}
