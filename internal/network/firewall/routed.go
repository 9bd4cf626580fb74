package firewall

import "vmnet/internal/network/nft"

// Routed returns the chains that drop what the host forwards between the tap of a routed guest and
// its uplink. own is the prefix of the names of our tables.
func (h Host) Routed(tap, uplink, own string) []Obstacle {
	found := []Obstacle{}
	for _, c := range h.dropping(own, "forward") {
		out, in := h.between(c, tap, uplink), h.between(c, uplink, tap)
		if out && in {
			continue
		}
		owner := h.owner(c)
		o := of(c, owner)
		o.Effect = "drops " + traffic[c.Table.Family] + " of the guest to and from the LAN"
		switch {
		case out:
			o.Effect = "drops " + traffic[c.Table.Family] + " from the LAN to the guest"
		case in:
			o.Effect = "drops " + traffic[c.Table.Family] + " of the guest to the LAN"
		}
		o.Cure = owner.forward(passage{tap, uplink}, c)
		found = append(found, o)
	}
	return append(found, h.legacy()...)
}

// between reports whether a chain accepts what comes in by one link and goes out by another.
func (h Host) between(c *nft.Chain, in, out string) bool {
	h.Uplinks = []string{out}
	return h.lets(c, in, map[string]bool{})
}
