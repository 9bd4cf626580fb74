package why

import (
	"fmt"
	"strings"

	"vmnet/internal/kernel/rtnl"
)

// hostSide returns the link by which the host itself is on the NIC's segment: the bridge, or a VLAN
// subinterface of it. It is nil if the host has no address there.
func (w *walker) hostSide(br *rtnl.Link) *rtnl.Link {
	vlan := w.Frame.VLAN
	if w.knowsVLANs() {
		vlan = w.vlan()
	}
	for _, l := range w.Links {
		if l.Kind == "vlan" && l.Lower == br.Index && l.LowerNS < 0 && l.VLAN == vlan && vlan != 0 &&
			len(w.on(l.Index, w.To.Addr)) > 0 {
			return l
		}
	}
	if len(w.on(br.Index, w.To.Addr)) == 0 || !w.filters() && vlan != 0 {
		return nil
	}
	return br
}

// reachHost follows the frame from the bridge into the host's own stack.
func (w *walker) reachHost(br, in *rtnl.Link) {
	where := "host on " + in.Name
	if w.knowsVLANs() {
		vlan := w.vlan()
		m, isMember := w.member(br.Index, vlan)
		asPVID := in == br && pvid(w.VLANs[br.Index]) == vlan
		if !isMember || in == br && !asPVID && !m.Untagged {
			w.stop(where, fmt.Sprintf("bridge vlan add dev %s vid %d pvid untagged self", br.Name, vlan),
				"the bridge itself is not in VLAN %d, which the guest is in", vlan)
			return
		}
	}
	if w.bridgeChains("input", ""); w.stopped {
		return
	}
	w.enterHost(where, in)
}

// enterHost follows the packet from a link of the host to the host itself, or on to others.
func (w *walker) enterHost(where string, in *rtnl.Link) {
	addrs := w.on(in.Index, w.To.Addr)
	src := w.NIC.address(w.To.Addr)
	fits := false
	for _, p := range addrs {
		fits = fits || p.Contains(src)
	}
	names := strings.Trim(fmt.Sprint(addrs), "[]")
	w.checks(where, "has "+names,
		check{!in.Up, "it is down", "ip link set " + in.Name + " up"},
		check{
			w.To.Addr.Is6() && w.Settings["net/ipv6/conf/"+in.Name+"/disable_ipv6"] == "1", "IPv6 is off there",
			"sysctl -w net.ipv6.conf." + in.Name + ".disable_ipv6=0",
		},
		check{
			src.IsValid() && len(addrs) > 0 && !fits,
			fmt.Sprintf("the guest has the address %s, and %s is %s: it is on another network", src, in.Name, names),
			"give the guest an address of it, or put it where it belongs: vmnet set --bridge or --network",
		},
	)
	if w.stopped {
		return
	}
	if w.crowded(); w.stopped || w.Frame.Kind == ARP {
		return
	}
	if w.unsourced(in); w.stopped {
		return
	}
	if w.chains("prerouting", in.Name, ""); w.stopped {
		return
	}
	if w.To.Kind == Host {
		w.chains("input", in.Name, "")
		return
	}
	w.route(in)
}

// crowded stops what needs another neighbour where the kernel has no room for one.
func (w *walker) crowded() {
	if t := w.Neighbours; t.Most > 0 && t.Entries >= t.Most {
		w.stop("neighbour table", fmt.Sprintf("sysctl -w net.ipv4.neigh.default.gc_thresh3=%d", 4*t.Most),
			"it is full: %d of %d entries, so the host learns no further MAC address", t.Entries, t.Most)
	}
}

// unsourced stops a packet that the kernel drops because of its source (rp_filter).
func (w *walker) unsourced(in *rtnl.Link) {
	const strict, loose = "1", "2"
	if w.To.Addr.Is6() || !w.Back.Addr.IsValid() || w.unseen(PartRoutes, "ip route get "+w.Back.Addr.String()) {
		return
	}
	all, own := "net/ipv4/conf/all/rp_filter", "net/ipv4/conf/"+in.Name+"/rp_filter"
	mode := max(w.Settings[all], w.Settings[own]) // the kernel takes the higher one
	way := "no link"
	if l := w.at(w.Back.Link); l != nil {
		way = l.Name
	}
	if mode == strict && w.Back.Link != in.Index || mode == loose && w.Back.Link == 0 {
		cure := fmt.Sprintf("ip route add %s dev %s; or sysctl -w net.ipv4.conf.all.rp_filter=0 "+
			"net.ipv4.conf.%[2]s.rp_filter=0", w.Back.Addr, in.Name)
		w.stop("rp_filter", cure, "the host drops what comes from %s by %s: its own route there is by %s", w.Back.Addr,
			in.Name, way)
	}
}

// route follows a packet that the host is to forward.
func (w *walker) route(in *rtnl.Link) {
	if w.Network != nil && w.Network.Uplink == nil && !w.Network.NAT && w.To.Kind == Outside {
		w.stop("network "+w.Network.Name,
			"vmnet network create with --nat, or add nat: to its file and vmnet network apply",
			"it has no way out by its file: neither NAT nor an uplink")
		return
	}
	if w.forwarding(in); w.stopped {
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
	w.checks("route to "+w.To.Name, "by "+out.Name,
		check{!out.Up, out.Name + " is down", "ip link set " + out.Name + " up"},
		check{
			out.Tun == nil && !out.Carrier && out.Bridge == nil, out.Name + " has no carrier",
			"plug in its cable, or ip link set its other end up",
		},
		check{
			out.Index == in.Index && w.To.Kind == Outside, "the packet would leave by " + in.Name +
				" where it came in",
			"ip route show default",
		},
	)
	for _, hook := range []string{"forward", "postrouting"} {
		if !w.stopped {
			w.chains(hook, in.Name, out.Name)
		}
	}
	if !w.stopped {
		w.differs()
	}
	if !w.stopped {
		w.translated(in, out)
	}
	if !w.stopped && w.To.Kind != Guest {
		w.uplink(out)
	}
}

// noRoute stops a packet that the host cannot send on.
func (w *walker) noRoute() {
	where := "route to " + w.To.Name
	if w.To.Kind == Outside {
		w.stop(where, "ip route add default via ROUTER", "the host has no default route")
		return
	}
	w.stop(where, fmt.Sprintf("ip route get %s says why; ip route add %[1]s via ROUTER", w.To.Addr),
		"no route of the host leads there")
}

// forwarding stops a packet that the host does not forward.
func (w *walker) forwarding(in *rtnl.Link) {
	all, own := "net/ipv4/ip_forward", "net/ipv4/conf/"+in.Name+"/forwarding"
	if w.To.Addr.Is6() {
		all, own = "net/ipv6/conf/all/forwarding", "net/ipv6/conf/"+in.Name+"/forwarding"
	}
	dots := func(name string) string { return strings.ReplaceAll(name, "/", ".") }
	switch {
	case w.Settings[all] == "0":
		w.stop("host", "sysctl -w "+dots(all)+"=1", "it forwards no packets: %s is 0", dots(all))
	case w.Settings[own] == "0":
		w.stop("host", "sysctl -w "+dots(own)+"=1", "it forwards nothing that comes by %s: %s is 0", in.Name,
			dots(own))
	default:
		w.pass("host", "forwards packets")
	}
}

// differs stops the packet where its network lacks what its file says.
func (w *walker) differs() {
	for _, d := range w.Differences {
		if d.What == "rules" || d.What == "address" || strings.HasPrefix(d.What, "sysctl") {
			found := d.Found
			if found == "" {
				found = "nothing"
			}
			w.stop("network "+w.Network.Name, d.Mend, "%s: want %s, found %s", d.What, d.Want, found)
			return
		}
	}
}

// translated reports whether hosts beyond the uplink can answer a private address.
func (w *walker) translated(in, out *rtnl.Link) {
	src := w.NIC.address(w.To.Addr)
	if w.To.Kind != Outside || !src.IsValid() || !src.IsPrivate() || w.Firewall == nil {
		return
	}
	translates, sure := w.Firewall.Translates(w.ip("", out.Name))
	switch {
	case translates && sure:
		w.pass("NAT", "the packet leaves by %s with the address of the host", out.Name)
	case translates:
		w.pass("NAT", "a rule may give the packet the address of the host")
	default:
		w.unknown("NAT", fmt.Sprintf("nft add rule ip nat POSTROUTING oifname %s masquerade, or a network with --nat",
			out.Name),
			"no rule gives the packet the address of the host: what is beyond %s must have a route back to %s",
			out.Name, src)
	}
}

// servedHere follows a client's message to a DHCP server of this host, and reports whether there is
// one, or should be.
func (w *walker) servedHere(br *rtnl.Link) bool {
	n := w.Network
	switch {
	case n != nil && n.DHCP && n.Uplink == nil:
		l := w.link(n.ServerLink())
		if l == nil || l.Master != br.Index {
			w.stop("server of "+n.Name, "vmnet network apply "+n.Name, "no DHCP server runs on the network")
			return true
		}
		if w.leavesBy(br, l, true); !w.stopped {
			w.pass("server of "+n.Name, "runs")
		}
		return true
	case n != nil && n.Uplink == nil:
		w.stop("network "+n.Name, "give the guest an address by hand, or dhcp: true in its file",
			"its file says no DHCP")
		return true
	}
	host := w.hostSide(br)
	if host == nil || !w.ServesDHCP {
		return false
	}
	where := "host on " + host.Name
	if w.bridgeChains("input", ""); w.stopped {
		return true
	}
	w.pass(where, "a program of the host serves DHCP")
	w.chains("input", host.Name, "")
	return true
}
