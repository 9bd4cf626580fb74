package why

import (
	"slices"

	"vmnet/internal/kernel/rtnl"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr/nic"
)

// parent returns the parent device of a macvtap or ipvtap, or nil.
func (w *walker) parent(n *NIC) *rtnl.Link {
	for _, name := range []string{n.Lower, n.Source} {
		if l := w.link(name); l != nil && name != "" {
			return l
		}
	}
	return nil
}

// parentDevice follows the frame of a macvtap or ipvtap to its parent device.
func (w *walker) parentDevice() {
	n, l := w.NIC, w.parent(w.NIC)
	where := n.Type + " " + n.Interface
	if l == nil {
		w.unknown("parent device "+n.Source, "vmnet show "+n.VM+", as root", "it is not in this network namespace")
		w.ended = true
		return
	}
	ipvtap := n.Type == string(vtap.IPVtap)
	w.checks(where, "mode "+n.Mode+" on "+l.Name,
		check{
			!ipvtap && n.MAC != "" && n.mac().String() != n.MAC && n.Mode != "passthru" && !w.NIC.promiscuous(),
			"the guest uses the address " + n.mac().String() + ", and it takes in only frames for " + n.MAC,
			"in the guest: ip link set dev DEV address " + n.MAC,
		},
		check{
			!ipvtap && n.Mode != "passthru" && slices.Contains(w.Radios, l.Name),
			l.Name + " is a Wi-Fi card: access points take no frames from other addresses than its own",
			"vmnet attach --routed " + l.Name + " --ip ADDRESS, or --ipvtap " + l.Name,
		},
		check{
			ipvtap && n.Mode != "l2" && (w.Frame.Kind == DHCP), "in mode " + n.Mode + " it passes no broadcasts",
			"give the guest its address by hand, or use mode l2",
		},
		check{
			ipvtap && w.borrowed(), "the guest has another address than it may use",
			"vmnet detach, then attach with --ip",
		},
		check{!l.Up, "its parent device " + l.Name + " is down", "ip link set " + l.Name + " up"},
		check{
			!l.Carrier, "its parent device " + l.Name + " has no carrier",
			"plug in its cable, or ip link set its other end up",
		},
	)
	switch {
	case w.stopped:
	case w.To.Kind == Host:
		w.ownHost(l)
	case w.Peer != nil && w.parent(w.Peer) == l && !w.Peer.IsTap():
		w.sibling(l)
	default:
		w.uplink(l)
	}
}

// promiscuous reports whether the guest's device takes in frames for other addresses, as far as the
// host follows that.
func (n *NIC) promiscuous() bool {
	return n.RxFilter == nic.RxMirror && n.Guest != nil && n.Guest.Promiscuous
}

// borrowed reports whether the guest of an ipvtap uses an address that is not the ipvtap's.
func (w *walker) borrowed() bool {
	a := w.NIC.address(w.To.Addr)
	return a.IsValid() && len(w.NIC.IP) > 0 && !slices.Contains(w.NIC.IP, a)
}

// ownHost stops frames for the host behind the parent device, unless the host has a macvlan on it.
func (w *walker) ownHost(parent *rtnl.Link) {
	own := w.own(w.To.Addr)
	switch {
	case own == nil:
		w.uplink(parent)
	case own.Macvlan != nil && own.Lower == parent.Index:
		w.pass("host access "+own.Name, "has %s", w.To.Addr)
		w.chains("input", own.Name, "")
	case own == parent || own.Lower == parent.Index:
		w.stop("parent device "+parent.Name, "vmnet lower "+parent.Name+" --host-access on",
			"the kernel leads nothing from a macvtap to the host's own addresses on %s", own.Name)
	default:
		w.uplink(parent)
	}
}

// sibling follows the frame to another guest on the same parent device.
func (w *walker) sibling(parent *rtnl.Link) {
	where := "parent device " + parent.Name
	from, to := w.NIC.Mode, w.Peer.Mode
	set := "vmnet set --vm " + w.NIC.VM + " --nic " + w.NIC.ID + " --mode bridge"
	switch {
	case from == "bridge" && to == "bridge", w.NIC.Type == string(vtap.IPVtap) && from != "private":
		w.pass(where, "leads it from macvtap to macvtap")
	case from == "private" || to == "private":
		w.stop(where, set+", and the same of the other one", "in mode private a guest reaches no other guest on it")
	default:
		w.reflected(parent, set)
	}
}

// reflected asks whether what is beyond the parent device sends frames back where they came from.
func (w *walker) reflected(parent *rtnl.Link, set string) {
	if peer := w.at(parent.Lower); peer != nil && parent.Kind == "veth" && parent.LowerNS < 0 && peer.Port != nil {
		if peer.Port.Hairpin {
			w.pass("port "+peer.Name, "sends frames back where they came from (hairpin)")
			return
		}
		w.stop("port "+peer.Name, "bridge link set dev "+peer.Name+" hairpin on; or "+set,
			"in mode vepa the next bridge must send frames back, and its port has no hairpin")
		return
	}
	w.unknown("uplink "+parent.Name, "tcpdump -eni "+parent.Name+" shows each frame twice if it does; or "+set,
		"in mode vepa the next switch must send frames back where they came from (reflective relay)")
}
