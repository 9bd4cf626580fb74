package why

import (
	"fmt"
	"slices"

	"vmnet/internal/kernel/rtnl"
)

// routedGuest follows the packet of a guest whose addresses the host routes to its tap.
func (w *walker) routedGuest() {
	n := w.NIC
	up := w.link(n.Source)
	if up == nil {
		w.stop("uplink "+n.Source, "bring it back; or vmnet detach, then attach with another --routed",
			"it does not exist")
		return
	}
	if n.Link == nil {
		return
	}
	src := n.address(w.To.Addr)
	w.checks("host on "+n.Interface, "answers for the router",
		check{
			w.Frame.Kind == DHCP, "a routed guest gets no address by DHCP",
			"give it the address by hand: vmnet show " + n.VM + " has its configuration",
		},
		check{
			src.IsValid() && len(n.IP) > 0 && !slices.Contains(n.IP, src),
			fmt.Sprintf("the guest has the address %s, and the host routes %v to it", src, n.IP),
			"give the guest one of these, or vmnet detach, then attach with --ip",
		},
		check{
			w.Back.Addr.IsValid() && w.Back.Link != n.Link.Index && w.Missing[PartRoutes] == "",
			fmt.Sprintf("the host has no route to %s by its tap", w.Back.Addr), "vmnet reconcile",
		},
	)
	if w.stopped || w.Frame.Kind == ARP {
		return
	}
	if w.unsourced(n.Link); w.stopped {
		return
	}
	if w.To.Kind == Host {
		w.chains("input", n.Link.Name, "")
		return
	}
	if w.forwarding(n.Link); w.stopped {
		return
	}
	if w.unseen(PartRoutes, "ip route get "+w.To.Addr.String()) {
		w.ended = true
		return
	}
	out := w.at(w.Out.Link)
	if out == nil {
		w.noRoute()
		return
	}
	w.pass("route to "+w.To.Name, "by %s", out.Name)
	if w.chains("forward", n.Link.Name, out.Name); w.stopped {
		return
	}
	if out == up {
		if w.proxied(up); w.stopped {
			return
		}
		w.uplink(up)
	}
}

// proxied reports whether the host answers for the guest's address on the uplink.
func (w *walker) proxied(up *rtnl.Link) {
	a := w.Back.Addr
	if !a.IsValid() || w.unseen(PartProxies, "ip neighbour show proxy dev "+up.Name) {
		return
	}
	if !slices.ContainsFunc(w.Proxies, func(p rtnl.Proxy) bool { return p.Link == up.Index && p.Addr == a }) {
		w.stop("proxy entry on "+up.Name, "vmnet reconcile, or ip neighbour add proxy "+a.String()+" dev "+up.Name,
			"the host answers on %s to nobody who asks for %s, so no answers come", up.Name, a)
		return
	}
	w.pass("proxy entry on "+up.Name, "the host answers for %s", a)
}
