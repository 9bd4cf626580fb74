package why

import (
	"fmt"
	"slices"

	"vmnet/internal/ovs"
)

// openVSwitch follows the frame through the NIC's bridge of Open vSwitch.
func (w *walker) openVSwitch() {
	n := w.NIC
	where := "Open vSwitch"
	if reason, missing := w.Missing[PartOVS]; missing {
		w.unknown(where, "ovs-vsctl show, as root", "its database was not read: %s", reason)
		w.ended = true
		return
	}
	in := w.row(n)
	if in == nil {
		w.stop(where, "vmnet reconcile", "it has no port %s", n.Interface)
		return
	}
	if w.ovsPort(in, n); w.stopped {
		return
	}
	if w.Peer != nil && w.Peer.IsOVS() {
		out := w.row(w.Peer)
		if out == nil {
			w.stop(where, "vmnet reconcile", "it has no port %s", w.Peer.Interface)
			return
		}
		if w.ovsPort(out, w.Peer); w.stopped {
			return
		}
		w.ovsBetween(in, out)
		return
	}
	w.ovsOut(in)
}

// row returns the row of a NIC's port, or nil.
func (w *walker) row(n *NIC) *ovs.Port {
	i := slices.IndexFunc(w.OVS, func(p ovs.Port) bool { return p.Name == n.Interface })
	if i < 0 {
		return nil
	}
	return &w.OVS[i]
}

// ovsPort stops the frame at a port that Open vSwitch cannot use.
func (w *walker) ovsPort(p *ovs.Port, n *NIC) {
	text := fmt.Sprintf("OpenFlow port %d of %s", p.OFPort, p.Bridge)
	if vlan := p.Settings.String(); vlan != "" {
		text += ", " + vlan
	}
	trouble := p.Trouble()
	w.checks("port "+p.Name, text,
		check{
			trouble != "", "Open vSwitch cannot use it: " + trouble,
			"vmnet reconcile; ovs-vsctl del-port " + p.Name + " removes a row that was left behind",
		},
		check{p.Bridge == "", "no bridge has it", "vmnet reconcile"},
		check{
			n.Source != "" && p.Bridge != "" && p.Bridge != n.Source, "it is on " + p.Bridge + ", and belongs on " +
				n.Source,
			"vmnet reconcile",
		},
		check{!p.LinkUp, "Open vSwitch sees no carrier on it", "ip link set " + p.Name + " up, or vmnet reconcile"},
		check{
			p.MAC != "" && n.MAC != "" && p.MAC != n.MAC,
			"its row is for " + p.MAC + ": it was left behind by another NIC", "vmnet reconcile",
		},
		check{
			p.IsOVNs && p.IfaceID != "" && !p.Installed, "OVN has installed no flows for " + p.IfaceID,
			"ovn-nbctl lsp-list SWITCH must have it; systemctl status ovn-controller",
		},
	)
}

// ovsBetween reports whether two ports of one bridge exchange frames, as far as its rows say.
func (w *walker) ovsBetween(in, out *ovs.Port) {
	vlan := w.ovsVLAN(in)
	w.checks("bridge "+in.Bridge, "the ports' rows let it pass",
		check{in.Bridge != out.Bridge, out.Name + " is on another bridge, " + out.Bridge, "vmnet set --bridge " +
			in.Bridge},
		check{
			in.Settings.Isolated && out.Settings.Isolated, "both ports are protected, which exchange no frames",
			"ovs-vsctl set port " + out.Name + " protected=false",
		},
		check{
			!w.ovsCarries(out, vlan), fmt.Sprintf("%s is not in VLAN %d, which the guest is in", out.Name, vlan),
			ovsTag(out, vlan),
		},
		check{
			in.Settings.VLAN != 0 && out.Settings.VLAN == 0 && len(out.Settings.Trunk) == 0,
			fmt.Sprintf("frames of VLAN %d leave %s with a tag, which the guest there does not expect", vlan, out.Name),
			ovsTag(out, vlan),
		},
	)
	if !w.stopped {
		w.flows(in, out.Name)
	}
}

// ovsTag returns how a port gets into a VLAN; 0 is that of untagged frames.
func ovsTag(p *ovs.Port, vlan int) string {
	if vlan == 0 {
		return "ovs-vsctl clear port " + p.Name + " tag"
	}
	return fmt.Sprintf("ovs-vsctl set port %s tag=%d", p.Name, vlan)
}

// ovsVLAN is the VLAN in which a port takes the frame in.
func (w *walker) ovsVLAN(p *ovs.Port) int {
	switch s := p.Settings; {
	case s.VLAN != 0:
		return s.VLAN
	case w.Frame.VLAN != 0:
		return w.Frame.VLAN
	default:
		return s.Native
	}
}

// ovsCarries reports whether a port is in a VLAN. One without settings carries all of them.
func (w *walker) ovsCarries(p *ovs.Port, vlan int) bool {
	s := p.Settings
	switch {
	case s.VLAN != 0:
		return s.VLAN == vlan
	case len(s.Trunk) == 0:
		return true
	}
	return carries(s, vlan)
}

// ovsOut follows the frame out of the bridge.
func (w *walker) ovsOut(in *ovs.Port) {
	w.flows(in, "")
	if w.stopped {
		return
	}
	for _, p := range w.OVS {
		if p.Bridge != in.Bridge || p.Name == in.Name {
			continue
		}
		if l := w.link(p.Name); l != nil && l.Tun == nil || p.Type != "" && p.Type != "internal" {
			if !w.ovsCarries(&p, w.ovsVLAN(in)) {
				w.stop("port "+p.Name, ovsTag(&p, w.ovsVLAN(in)), "it is not in VLAN %d, which the guest is in",
					w.ovsVLAN(in))
				return
			}
			if l != nil {
				if w.below(l); w.stopped {
					return
				}
			}
			w.pass("uplink "+p.Name, "the frame leaves this host")
			return
		}
	}
	w.unknown("bridge "+in.Bridge, "ovs-appctl ofproto/trace "+in.Bridge+" in_port="+in.Name,
		"none of its ports is seen to lead out of this host; its flows decide")
}
