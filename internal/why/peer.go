package why

import (
	"net/netip"
	"slices"

	"vmnet/bridge/inbound"
)

// prefixOf returns the network of one address.
func prefixOf(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// arrive follows the frame into the guest that it is for.
func (w *walker) arrive() {
	if w.Peer == nil {
		return
	}
	if w.hostInterface(w.Peer); w.stopped {
		return
	}
	if w.admitted(); w.stopped {
		return
	}
	if w.guest(w.Peer); !w.stopped {
		w.read(w.Peer)
	}
}

// admitted reports whether a peer takes in what it has not asked for.
func (w *walker) admitted() {
	rules := w.Peer.AllowIn
	if rules.IsZero() || w.Frame.broadcast() {
		return
	}
	where := "allow in of " + w.Peer.Title()
	src := w.NIC.address(w.To.Addr)
	if slices.ContainsFunc(rules, func(r inbound.Rule) bool { return w.ruleAdmits(r, src) }) {
		w.pass(where, "%s lets it in", rules)
		return
	}
	rule := w.Frame.String()
	w.stop(where, "vmnet set --vm "+w.Peer.VM+" --nic "+w.Peer.ID+" --allow-in "+rule+" and those that it has",
		"only answers and %s reach the guest", rules)
}

func (w *walker) ruleAdmits(r inbound.Rule, src netip.Addr) bool {
	kind := map[Kind]inbound.Protocol{TCP: inbound.TCP, UDP: inbound.UDP, ICMP: inbound.ICMP}[w.Frame.Kind]
	switch {
	case r.Protocol != inbound.Any && r.Protocol != kind:
		return false
	case r.First != 0 && (w.Frame.Port < r.First || w.Frame.Port > r.Last):
		return false
	}
	return !r.From.IsValid() || r.From.Contains(src)
}

// comeBack follows the answer as far as it differs from the frame's own way: what others on the
// segment could take from the guest.
func (w *walker) comeBack() {
	const where = "the answer"
	if w.read(w.NIC); w.stopped {
		return
	}
	mac := w.NIC.mac().String()
	for _, o := range w.Others {
		if o.VM == w.NIC.VM && o.ID == w.NIC.ID || o.Source != w.NIC.Source || o.Type == "macvlan" {
			continue
		}
		if o.MAC == mac && o.MAC != "" {
			w.stop(where, "give one of them another address: vmnet detach, then attach with --mac",
				"%s/%s (%s) has the MAC address %s as well, and takes the guest's frames", o.VM, o.ID, o.Interface,
				mac)
			return
		}
		for _, a := range o.Addresses {
			if own := w.NIC.address(a.IP); own.IsValid() && own == a.IP {
				w.stop(where, "give one of them another address",
					"%s/%s (%s) has the address %s as well, and answers for it", o.VM, o.ID, o.Interface, a.IP)
				return
			}
		}
	}
	if l := w.own(w.NIC.address(w.To.Addr)); l != nil && !w.NIC.IsRouted() && l.Name != w.NIC.Interface {
		w.stop(where, "give the guest another address", "the host itself has the guest's address %s, on %s",
			w.NIC.address(w.To.Addr), l.Name)
		return
	}
	if w.misled(where); w.stopped {
		return
	}
	if w.Missing[PartFDB] != "" {
		return // which was said
	}
	w.pass(where, "nothing else has the guest's addresses")
}

// misled stops the answer where the bridge has learned the guest's address behind another port.
func (w *walker) misled(where string) {
	if !w.NIC.IsTap() || w.NIC.Link == nil {
		return
	}
	for _, e := range w.FDB {
		if e.MAC.String() != w.NIC.mac().String() || e.Port == w.NIC.Link.Index {
			continue
		}
		l := w.at(e.Port)
		if l == nil || w.filters() && e.VLAN != 0 && e.VLAN != w.vlan() {
			continue
		}
		if e.Static {
			w.stop(where, "bridge fdb del "+e.MAC.String()+" dev "+l.Name+" master",
				"an entry that was added leads frames for %s to %s", e.MAC, l.Name)
		} else {
			w.stop(where, "find the other one behind "+l.Name+", or the loop: bridge fdb show br "+w.NIC.Bridge,
				"the bridge has learned %s behind %s: another host has it, or there is a loop", e.MAC, l.Name)
		}
		return
	}
}
