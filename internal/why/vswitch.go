package why

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"strings"

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/control"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/kernel/rtnl"
	"vmnet/tapmgr/nic"
)

// userspaceSwitch follows the frame through the NIC's switch.
func (w *walker) userspaceSwitch() {
	n := w.NIC
	where := "switch " + n.Source
	if n.State == nic.NoSwitch {
		w.stop(where, "vmnet switch run "+n.Source+", then vmnet reconcile",
			"it has ended, or has lost the NIC's port")
		return
	}
	if w.Switch == nil {
		w.unknown(where, "vmnet switch show "+n.Source, "it was not asked: %s", w.Missing[PartSwitch])
		w.ended = true
		return
	}
	in := w.portOf(n)
	if in == nil {
		w.stop(where, "vmnet reconcile", "it has no port for the NIC")
		return
	}
	if w.switchPort(in); w.stopped {
		return
	}
	if w.takesIn(in); w.stopped {
		return
	}
	w.storms(in)
	if w.Peer != nil && w.Peer.Switch && w.Peer.Source == n.Source {
		out := w.portOf(w.Peer)
		if out == nil {
			w.stop(where, "vmnet reconcile", "it has no port for %s", w.Peer.Title())
			return
		}
		w.switchLeaves(in, out)
		return
	}
	w.switchUplink(in)
}

// portOf returns a NIC's port at the switch, or nil.
func (w *walker) portOf(n *NIC) *control.Port {
	i := slices.IndexFunc(w.Switch.Ports, func(p control.Port) bool {
		return p.Name == n.Interface || p.Device == n.Interface
	})
	if i < 0 {
		return nil
	}
	return &w.Switch.Ports[i]
}

// switchPort stops the frame at a port that forwards nothing.
func (w *walker) switchPort(p *control.Port) {
	if p.Stats == nil {
		return
	}
	where := "port " + p.Name
	switch p.Stats.State {
	case vport.StateStopped:
		w.stop(where, "find the loop; the switch tries again by itself",
			"the switch has stopped it, since its own frames come back by it: a loop")
	case vport.StateDown:
		w.stop(where, "ip link set "+p.Device+" up", "it is down")
	}
	if !w.stopped && p.Stats.Ended != "" {
		w.stop(where, "vmnet reconcile", "it has ended: %s", p.Stats.Ended)
	}
}

// takesIn reports whether the switch accepts the guest's frame.
func (w *walker) takesIn(p *control.Port) {
	mac := w.NIC.mac()
	locked := len(p.Config.MACs) > 0 && !slices.ContainsFunc(p.Config.MACs, func(m net.HardwareAddr) bool {
		return m.String() == mac.String()
	})
	vlan := w.switchVLAN(p.Config.Settings)
	drops := ""
	if p.Stats != nil {
		drops = dropped(p.Stats.Drops, "")
	}
	w.checks("port "+p.Name, "takes it in"+inVLAN(vlan)+drops,
		check{
			locked, fmt.Sprintf("it is locked to other addresses, and the guest sends from %s", mac),
			"vmnet set --vm " + w.NIC.VM + " --nic " + w.NIC.ID + " --lock-mac=false",
		},
		check{
			vlan == 0, "it takes no frames " + withTag(w.Frame.VLAN),
			"vmnet set --vm " + w.NIC.VM + " --nic " + w.NIC.ID + " --native ID or --vlan ID",
		},
	)
}

// storms reports that the switch has dropped frames of the same kind over the port's limit, as it
// may drop this one.
func (w *walker) storms(p *control.Port) {
	limit, reason := p.Config.Storm.Broadcast, vswitch.Broadcasts
	if !w.Frame.broadcast() {
		limit, reason = p.Config.Storm.Unknown, vswitch.Unknowns
	}
	if p.Stats == nil || limit == 0 || p.Stats.Drops[reason.String()] == 0 {
		return
	}
	w.unknown("storm limit of "+p.Name,
		"vmnet switch stats "+w.NIC.Source+" counts on while it drops frames; vmnet set --vm "+w.NIC.VM+
			" --nic "+w.NIC.ID+" --storm N",
		"it has dropped %d frames over %d a second (%s), as it may drop this one", p.Stats.Drops[reason.String()],
		limit, reason)
}

func withTag(vlan int) string {
	if vlan == 0 {
		return "without a tag: it is a trunk without a native VLAN"
	}
	return fmt.Sprintf("of VLAN %d", vlan)
}

// switchVLAN is the VLAN in which a port takes the frame in; 0 if it drops it. A port without
// settings is in VLAN 1.
func (w *walker) switchVLAN(s brport.Settings) int {
	tag := w.Frame.VLAN
	switch {
	case tag == 0 && len(s.Trunk) > 0:
		return s.Native
	case tag == 0:
		return max(s.VLAN, 1)
	case carries(s, tag):
		return tag
	}
	return 0
}

// carries reports whether a port is a member of a VLAN.
func carries(s brport.Settings, vlan int) bool {
	if len(s.Trunk) == 0 {
		return vlan == max(s.VLAN, 1)
	}
	return vlan == s.Native || slices.ContainsFunc(s.Trunk, func(r brport.VLANRange) bool {
		return vlan >= r.First && vlan <= r.Last
	})
}

func inVLAN(vlan int) string {
	if vlan <= 1 {
		return ""
	}
	return fmt.Sprintf(", in VLAN %d", vlan)
}

// switchLeaves reports whether the switch sends the frame out of a port.
func (w *walker) switchLeaves(in, out *control.Port) {
	if w.switchPort(out); w.stopped {
		return
	}
	vlan := w.switchVLAN(in.Config.Settings)
	known := w.Frame.broadcast() || w.Peer == nil ||
		slices.ContainsFunc(w.Switch.Learned, func(e control.FDBEntry) bool {
			return e.Port == out.Name && e.MAC == w.Peer.mac().String()
		})
	w.checks("port "+out.Name, "gets it"+inVLAN(vlan),
		check{
			in.Config.Isolated && out.Config.Isolated,
			"it and " + in.Name + " are isolated ports, which exchange no frames",
			"vmnet set --vm " + w.NIC.VM + " --nic " + w.NIC.ID + " --isolated=false",
		},
		check{
			!carries(out.Config.Settings, vlan), fmt.Sprintf("it is not in VLAN %d, which the guest is in", vlan),
			w.resetPort(out, fmt.Sprintf(" --vlan %d", vlan), fmt.Sprintf(",vlan=%d", vlan)),
		},
		check{
			!known && out.Config.NoFlood, "it gets no frames to unknown addresses, and its guest's was not learned",
			w.resetPort(out, " --no-flood=false", ""),
		},
	)
}

// resetPort returns how the port by which the frame leaves gets another setting: that of a guest's
// NIC by the flag, any other port by being added again, with the option.
func (w *walker) resetPort(p *control.Port, flag, option string) string {
	if w.Peer != nil {
		return "vmnet set --vm " + w.Peer.VM + " --nic " + w.Peer.ID + flag
	}
	name := w.NIC.Source
	return "vmnet switch remove-port " + name + " " + p.Name + ", then vmnet switch add-port " + name + " --" + p.Kind +
		" " + addArgument(p) + option
}

// switchExit returns the port that leads out of the switch, and its link if it has one: a device
// that is no guest's or, without one, other hosts or the host's IP.
func (w *walker) switchExit() (exit *control.Port, link *rtnl.Link) {
	for i := range w.Switch.Ports {
		p := &w.Switch.Ports[i]
		switch l := w.link(p.Device); {
		case p.Kind == control.Tun && l != nil && w.To.Kind == Host && w.own(w.To.Addr) == l:
			return p, l
		case p.Kind == control.Packet && (l == nil || l.Tun == nil):
			return p, l
		case exit == nil && (p.Kind == control.VXLAN || p.Kind == control.Tun):
			exit, link = p, l
		}
	}
	return exit, link
}

// addArgument is how add-port names a port.
func addArgument(p *control.Port) string {
	if p.Tun != nil {
		argument := p.Device
		for _, a := range p.Tun.Addresses {
			argument += ",address=" + a.String()
		}
		return argument
	}
	if p.VXLAN == nil {
		return p.Device
	}
	argument := fmt.Sprintf("%s,vni=%d", p.Name, p.VXLAN.VNI)
	for _, a := range p.VXLAN.Remotes {
		argument += ",remote=" + a.String()
	}
	return argument
}

// leavesSwitch follows the frame out of the switch by a port. Its link is nil if it has none here.
func (w *walker) leavesSwitch(p *control.Port, l *rtnl.Link) {
	switch {
	case p.Kind == control.Tun && l != nil:
		w.enterHost("host on "+l.Name, l)
		return
	case p.VXLAN != nil:
		w.tunnelled(p)
	case l != nil:
		w.below(l)
	}
	w.pass("uplink "+p.Where(), "the frame leaves the switch; vmnet switch capture %s shows what comes back",
		w.NIC.Source)
}

// tunnelled stops the frame at a VXLAN port if the host reaches none of the other hosts.
func (w *walker) tunnelled(p *control.Port) {
	if w.unseen(PartRoutes, "ip route get "+p.VXLAN.Remotes[0].String()) {
		return
	}
	where, why, cure := "port "+p.Name, "", ""
	for _, a := range p.VXLAN.Remotes {
		l := w.at(w.Switch.Ways[a])
		switch {
		case l == nil:
			why, cure = fmt.Sprintf("no route of the host leads to %s, to which it sends", a),
				fmt.Sprintf("ip route add %s via ROUTER", a)
		case !l.Up || l.Tun == nil && !l.Carrier && l.Bridge == nil:
			why, cure = fmt.Sprintf("the host reaches %s by %s, which is down or has no carrier", a, l.Name),
				"ip link set "+l.Name+" up, and look at its cable"
		default:
			return
		}
	}
	w.stop(where, cure, "%s", why)
}

// switchUplink follows the frame to the port that leads out of the switch.
func (w *walker) switchUplink(in *control.Port) {
	if p, l := w.switchExit(); p != nil {
		if w.switchLeaves(in, p); !w.stopped {
			w.leavesSwitch(p, l)
		}
		return
	}
	var names []string
	for _, p := range w.Switch.Ports {
		if p.Name != in.Name {
			names = append(names, p.Name)
		}
	}
	w.stop("switch "+w.NIC.Source, "vmnet switch add-port "+w.NIC.Source+" --packet DEVICE",
		"nothing leads out of it: its other ports are %s", cmp.Or(strings.Join(names, ", "), "none"))
}
