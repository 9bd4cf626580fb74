package why

import (
	"fmt"
	"slices"
	"strings"

	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/network/config"
)

// bridgeLink returns the bridge that the NIC is on, or nil.
func (w *walker) bridgeLink() *rtnl.Link {
	if w.NIC.Link == nil {
		return nil
	}
	return w.at(w.NIC.Link.Master)
}

// bridge follows the frame from the guest's port through the kernel's bridge.
func (w *walker) bridge() {
	br, l := w.bridgeLink(), w.NIC.Link
	if w.placed(br); w.done() {
		return
	}
	w.unseen(PartNetwork, "vmnet network check, as root")
	if w.entersPort(br, l); w.stopped {
		return
	}
	if w.filtered(); w.stopped {
		return
	}
	w.leaveBridge(br)
}

// placed reports whether the tap is on the bridge that it belongs on, and that is up.
func (w *walker) placed(br *rtnl.Link) {
	n := w.NIC
	where := "bridge " + n.Source
	switch want := w.link(n.Source); {
	case br == nil && want == nil && n.Source != "":
		w.stop(where, "vmnet bridge create "+n.Source+", then vmnet reconcile", "it does not exist")
	case br == nil:
		w.stop(n.Type+" "+n.Interface, put(n), "it is on no bridge")
	case n.Source != "" && br.Name != n.Source:
		w.stop(n.Type+" "+n.Interface, put(n), "it is on %s, and belongs on %s", br.Name, n.Source)
	case br.Bridge == nil:
		w.unknown("master "+br.Name, "ip -d link show "+br.Name, "it is no bridge of the kernel, but of kind %q",
			br.Kind)
		w.ended = true
	case !br.Up:
		w.stop(where, "ip link set "+br.Name+" up", "it is down: no frame passes it")
	}
}

// put returns how a tap gets on its bridge.
func put(n *NIC) string {
	if n.Foreign || n.Source == "" {
		return "ip link set " + n.Interface + " master BRIDGE"
	}
	return "vmnet reconcile, or ip link set " + n.Interface + " master " + n.Source
}

// filters reports whether the NIC's bridge keeps VLANs apart.
func (w *walker) filters() bool {
	br := w.bridgeLink()
	return br != nil && br.Bridge != nil && br.Bridge.VLANFiltering
}

// knowsVLANs reports whether the bridge keeps VLANs apart, and those of its ports are known.
func (w *walker) knowsVLANs() bool { return w.filters() && w.Missing[PartVLANs] == "" }

// vlan is the VLAN that the frame belongs to on a bridge that filters; 0 if its port drops it.
func (w *walker) vlan() int {
	if w.Frame.VLAN != 0 {
		return w.Frame.VLAN
	}
	return pvid(w.VLANs[w.NIC.Link.Index])
}

func pvid(vlans []rtnl.VLANs) int {
	for _, v := range vlans {
		if v.PVID {
			return v.First
		}
	}
	return 0
}

// member returns how a port is in a VLAN.
func (w *walker) member(index, vlan int) (rtnl.VLANs, bool) {
	for _, v := range w.VLANs[index] {
		if vlan >= v.First && vlan <= v.Last {
			return v, true
		}
	}
	return rtnl.VLANs{}, false
}

// entersPort reports whether the bridge takes the frame in at a port.
func (w *walker) entersPort(br, l *rtnl.Link) {
	p := l.Port
	where := "port " + l.Name
	if p == nil {
		w.unknown(where, "bridge -d link show dev "+l.Name, "the kernel says nothing of it as a port")
		return
	}
	if w.forwards(br, l); w.stopped {
		return
	}
	fdbUnseen := w.unseen(PartFDB, "bridge fdb show br "+br.Name)
	if p.Locked && !fdbUnseen && !w.learned(w.NIC, l.Index) {
		w.stop(where, fmt.Sprintf("bridge fdb add %s dev %s master static, or bridge link set dev %[2]s locked off",
			w.NIC.mac(), l.Name), "it is locked, and the FDB has no entry of %s for it", w.NIC.mac())
		return
	}
	text := "forwards"
	if !w.filters() {
		w.pass(where, "%s", text+portText(p))
		return
	}
	if w.unseen(PartVLANs, "bridge vlan show") {
		return
	}
	vlan := w.vlan()
	_, isMember := w.member(l.Index, vlan)
	set := "vmnet set --vm " + w.NIC.VM + " --nic " + w.NIC.ID + " --vlan ID"
	if vlan == 0 && len(w.VLANs[l.Index]) > 0 && strings.HasPrefix(w.NIC.Port, "trunk:") {
		w.stop(where, "tag the guest's frames and follow one with --vlan; or vmnet set --native ID",
			"it takes only tagged frames: %s has no native VLAN", w.NIC.Port)
		return
	}
	w.checks(where, fmt.Sprintf("%s, in VLAN %d%s", text, vlan, portText(p)),
		check{
			vlan == 0, "it has no PVID, so the bridge drops untagged frames",
			fmt.Sprintf("bridge vlan add dev %s vid 1 pvid untagged; or %s", l.Name, set),
		},
		check{
			!isMember, fmt.Sprintf("it is not a member of VLAN %d", vlan),
			fmt.Sprintf("bridge vlan add dev %s vid %d; or %s", l.Name, vlan, set),
		},
	)
}

func portText(p *rtnl.Port) string {
	text := ""
	if p.Isolated {
		text += ", isolated"
	}
	if !p.Learning {
		text += ", learns no addresses"
	}
	return text
}

// forwards stops a frame at a port that STP, or an administrator, keeps from forwarding.
func (w *walker) forwards(br, l *rtnl.Link) {
	cure := "ip link set " + l.Name + " up"
	switch s := l.Port.State; s {
	case rtnl.Forwarding:
	case rtnl.Listening, rtnl.Learning:
		w.stop("port "+l.Name, "wait; or ip link set "+br.Name+" type bridge stp_state 0 forward_delay 0",
			"STP has it in state %s, and lets it forward in some seconds", s)
	case rtnl.Blocking:
		w.stop("port "+l.Name, "find the loop; or ip link set "+br.Name+" type bridge stp_state 0, if there is none",
			"STP blocks it, since it sees a loop")
	default:
		if br.Up && l.Up && l.Carrier {
			cure = "bridge link set dev " + l.Name + " state 3"
		}
		w.stop("port "+l.Name, cure, "it is %s", s)
	}
}

// learned reports whether the FDB has a guest's address behind a port.
func (w *walker) learned(n *NIC, port int) bool {
	return slices.ContainsFunc(w.FDB, func(e rtnl.FDBEntry) bool {
		return e.Port == port && e.MAC.String() == n.mac().String()
	})
}

// leaveBridge finds by which port, or to which host, the frame leaves the bridge.
func (w *walker) leaveBridge(br *rtnl.Link) {
	if w.Peer != nil && w.Peer.Link != nil && w.Peer.Link.Master == br.Index {
		w.leavesBy(br, w.Peer.Link, w.Frame.broadcast())
		return
	}
	host := w.hostSide(br)
	if w.To.Kind == Host && host != nil {
		w.reachHost(br, host)
		return
	}
	if w.Frame.Kind == DHCP && w.servedHere(br) {
		return
	}
	uplinks := w.uplinks(br)
	switch {
	case len(uplinks) > 0:
		out := uplinks[0]
		if i := slices.IndexFunc(uplinks, w.carries); i >= 0 {
			out = uplinks[i]
		}
		if w.radio(out); !w.stopped { // before a carrier is asked for, which it may lack without a network
			w.leavesBy(br, out, true)
		}
		if !w.stopped {
			w.uplink(out)
		}
	case host != nil && w.Frame.Kind == DHCP:
		w.stop("bridge "+br.Name, "vmnet network create NAME --nat --dhcp, then vmnet set --vm "+w.NIC.VM+" --nic "+
			w.NIC.ID+" --network NAME; or start a DHCP server on "+br.Name,
			"nothing on it serves DHCP, and it has no uplink")
	case host != nil:
		w.reachHost(br, host)
	case w.To.Addr.Is6() && w.Settings["net/ipv6/conf/"+br.Name+"/disable_ipv6"] == "1":
		w.stop("host on "+br.Name,
			"sysctl -w net.ipv6.conf."+br.Name+".disable_ipv6=0, and give it its addresses again",
			"IPv6 is off there")
	default:
		w.stop("bridge "+br.Name, "ip link set CARD master "+br.Name+", or ip address add ADDRESS/24 dev "+br.Name,
			"nothing leads out of it: it has no uplink, and the host has no address on it")
	}
}

// uplinks lists the ports of a bridge that lead out of the host. Ports to containers count where
// nothing else does.
func (w *walker) uplinks(br *rtnl.Link) (found []*rtnl.Link) {
	if w.Network != nil && w.Network.Uplink == nil {
		return nil
	}
	var veths []*rtnl.Link
	for _, l := range w.Links {
		_, isServer := config.ParseServerMark(l.Alias)
		switch {
		case l.Master != br.Index || l.Tun != nil || isServer:
		case l.Kind == "veth":
			veths = append(veths, l)
		default:
			found = append(found, l)
		}
	}
	if len(found) > 0 || w.hostSide(br) != nil && w.To.Kind == Outside && w.Frame.Kind != DHCP {
		return found
	}
	return veths
}

// carries reports whether the frame's VLAN leaves by a port.
func (w *walker) carries(l *rtnl.Link) bool {
	if !w.knowsVLANs() {
		return true
	}
	v, isMember := w.member(l.Index, w.vlan())
	return isMember && (v.Tunnel != 0 || l.VXLAN == nil || !l.VXLAN.VNIFilter)
}

// mapped stops a frame whose VLAN is in no segment of a VXLAN device with a map.
func (w *walker) mapped(br, l *rtnl.Link) {
	if l.VXLAN == nil || !l.VXLAN.VNIFilter || w.carries(l) {
		return
	}
	cure := "vmnet bridge create " + br.Name + " --vxlan-map, with that VLAN"
	if w.Network != nil {
		cure = "that VLAN in the map of network " + w.Network.Name + ", then vmnet network apply " + w.Network.Name
	}
	w.stop("port "+l.Name, cure, "VLAN %d is not in its map: its frames reach no other host", w.vlan())
}

// leavesBy reports whether the bridge sends the frame out of a port.
func (w *walker) leavesBy(br, l *rtnl.Link, isFlooded bool) {
	p := l.Port
	where := "port " + l.Name
	if p == nil {
		w.unknown(where, "bridge -d link show dev "+l.Name, "the kernel says nothing of it as a port")
		return
	}
	if !l.Up {
		w.stop(where, "ip link set "+l.Name+" up", "it is down")
		return
	}
	if l.Tun == nil && !l.Carrier {
		w.stop(where, "plug in its cable, or ip link set its other end up", "it has no carrier")
		return
	}
	if w.forwards(br, l); w.stopped {
		return
	}
	if w.mapped(br, l); w.stopped {
		return
	}
	known := w.Peer != nil && w.learned(w.Peer, l.Index)
	in := w.NIC.Link.Port
	vlan := 0
	if w.knowsVLANs() {
		vlan = w.vlan()
	}
	membership, isMember := w.member(l.Index, vlan)
	w.checks(where, w.leavesText(l, known, vlan, membership),
		check{
			p.Isolated && in != nil && in.Isolated,
			fmt.Sprintf("it and %s are isolated ports, which exchange no frames", w.NIC.Link.Name),
			"vmnet set --vm " + w.NIC.VM + " --nic " + w.NIC.ID + " --isolated=false; or bridge link set dev " +
				l.Name +
				" isolated off",
		},
		check{
			l == w.NIC.Link && !p.Hairpin, "the frame would leave where it came in", "bridge link set dev " + l.Name +
				" hairpin on",
		},
		check{
			vlan != 0 && !isMember, fmt.Sprintf("it is not a member of VLAN %d, which the guest is in", vlan),
			fmt.Sprintf("bridge vlan add dev %s vid %d", l.Name, vlan),
		},
		check{
			w.Peer != nil && vlan != 0 && isMember && !membership.Untagged && !strings.HasPrefix(w.Peer.Port,
				"trunk:"),
			fmt.Sprintf("frames of VLAN %d leave it with a tag, which the guest there does not expect", vlan),
			fmt.Sprintf("bridge vlan add dev %s vid %d untagged", l.Name, vlan),
		},
		check{
			!isFlooded && !known && !p.Flood && w.Missing[PartFDB] == "",
			"it gets no frames to unknown addresses, and its guest's was not learned",
			"bridge link set dev " + l.Name + " flood on; or learning on, and have its guest send something",
		},
		check{
			isFlooded && w.Frame.broadcast() && p.NoBroadcast, "it gets no broadcast frames",
			"bridge link set dev " + l.Name + " bcast_flood on",
		},
	)
	if !w.stopped {
		w.bridged(l.Name)
	}
	if !w.stopped {
		w.fits(where, l)
	}
	if !w.stopped && w.Peer != nil && vlan != 0 {
		w.answersIn(l, vlan)
	}
}

func (w *walker) leavesText(l *rtnl.Link, known bool, vlan int, m rtnl.VLANs) string {
	text := "forwards"
	switch {
	case w.Frame.broadcast():
		text += ", gets broadcasts"
	case known:
		text += ", the address was learned there"
	case w.Missing[PartFDB] != "":
	default:
		text += ", gets what has an unknown address"
	}
	if vlan != 0 {
		text += fmt.Sprintf(", in VLAN %d", vlan)
		if !m.Untagged {
			text += " (tagged)"
		}
	}
	return text + fmt.Sprintf(", MTU %d", l.MTU)
}

// answersIn stops the answer of a peer whose untagged frames belong to another VLAN.
func (w *walker) answersIn(l *rtnl.Link, vlan int) {
	m, _ := w.member(l.Index, vlan)
	if back := pvid(w.VLANs[l.Index]); m.Untagged && back != vlan {
		w.stop("port "+l.Name, fmt.Sprintf("bridge vlan add dev %s vid %d pvid untagged", l.Name, vlan),
			"its guest's answers belong to VLAN %d, not %d", back, vlan)
	}
}

// fits reports whether a link takes frames as large as the guest's.
func (w *walker) fits(where string, l *rtnl.Link) {
	if w.NIC.MTU <= l.MTU || l.MTU == 0 {
		return
	}
	why := fmt.Sprintf("it drops what is larger than %d bytes, and the guest's MTU is %d", l.MTU, w.NIC.MTU)
	cure := fmt.Sprintf("ip link set %s mtu %d; or in the guest: ip link set dev DEV mtu %d", l.Name, w.NIC.MTU, l.MTU)
	if w.Frame.Kind == TCP || w.Frame.Kind == UDP {
		w.stop(where, cure, "%s", why)
		return
	}
	w.unknown(where, cure, "%s", why)
}
