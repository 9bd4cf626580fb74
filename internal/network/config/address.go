package config

import (
	"fmt"
	"net/netip"
	"strings"
)

// firstOfGuests is the number, in each subnet, of the first address that a guest can have: those
// before are the host's and the server's.
const firstOfGuests = 3

// CheckIP returns why a guest cannot have an address of the network, or nil.
func (n *Network) CheckIP(a netip.Addr) error {
	if n.Uplink != nil {
		return n.checkIPOnUplink(a)
	}
	_, last := n.Leased()
	first := at(n.Subnet, firstOfGuests).Addr()
	switch {
	case a.Is4() && n.Subnet.Contains(a) && !a.Less(first) && !last.Less(a):
		return nil
	case a.Is6() && n.IPv6.IsValid() && n.IPv6.Contains(a) && !a.Less(at(n.IPv6, firstOfGuests).Addr()):
		return nil
	case a.Is6() && !n.IPv6.IsValid():
		return fmt.Errorf("ip %s: network %s has no IPv6", a, n.Name)
	case a.Is6():
		return fmt.Errorf("ip %s: want an address in %s from %s on (%s is the host's own, %s its server's)",
			a, n.IPv6, at(n.IPv6, firstOfGuests).Addr(), n.Router6().Addr(), n.Server6().Addr())
	}
	return fmt.Errorf("ip %s: want an address from %s to %s (%s is the host's own, %s its server's)",
		a, first, last, n.Router().Addr(), n.Server().Addr())
}

// Label returns the name by which a guest is known in a network's DNS: the guest's own in lower
// case, with hyphens for what a label cannot have. It is empty if nothing is left of the name.
func Label(guest string) string {
	label := strings.Map(func(r rune) rune {
		switch {
		case 'A' <= r && r <= 'Z':
			return r - 'A' + 'a'
		case 'a' <= r && r <= 'z', '0' <= r && r <= '9':
			return r
		}
		return '-'
	}, guest)
	label = strings.Trim(label[:min(len(label), maxLabel)], "-")
	return label
}
