package why

import (
	"fmt"
	"net/netip"

	"vmnet/internal/ovs"
)

// flows adds what ovs-vswitchd itself says of the frame (ofproto/trace).
func (w *walker) flows(in *ovs.Port, out string) {
	where := "flows of " + in.Bridge
	switch t := w.Trace; {
	case t == nil:
		w.unknown(where, "ovs-appctl ofproto/trace "+in.Bridge+" in_port="+in.Name, "ovs-vswitchd was not asked: %s",
			w.Missing[PartTrace])
	case t.Actions == "drop":
		w.stop(where, "ovs-ofctl dump-flows "+in.Bridge+" shows them", "ovs-vswitchd drops it")
	case out != "" && !t.Ports[out]:
		w.stop(where, "ovs-ofctl dump-flows "+in.Bridge+" shows them", "they lead it not to %s, but: %s", out,
			t.Actions)
	default:
		w.pass(where, "datapath actions: %s", t.Actions)
	}
}

// flow describes the frame as ovs-ofctl(8) does.
func (w *walker) flow(in *ovs.Port) string {
	src, dst := w.NIC.address(w.To.Addr), w.To.Addr
	to := "02:00:00:00:00:01"
	switch {
	case w.Frame.broadcast():
		to = broadcastMAC
	case w.Peer != nil:
		to = w.Peer.mac().String()
	}
	f := fmt.Sprintf("in_port=%d,dl_src=%s,dl_dst=%s", in.OFPort, w.NIC.mac(), to)
	if w.Frame.VLAN != 0 {
		f += fmt.Sprintf(",dl_vlan=%d", w.Frame.VLAN)
	}
	if dst.Is6() {
		return f + ",dl_type=0x86dd"
	}
	add := func(field string, a netip.Addr) {
		if a.Is4() {
			f += "," + field + "=" + a.String()
		}
	}
	switch w.Frame.Kind {
	case ARP:
		f += ",dl_type=0x0806,arp_op=1"
		add("arp_spa", src)
		add("arp_tpa", dst)
		return f
	case DHCP:
		return f + ",dl_type=0x0800,nw_proto=17,nw_src=0.0.0.0,nw_dst=255.255.255.255,tp_src=68,tp_dst=67"
	case ICMP:
		f += ",dl_type=0x0800,nw_proto=1,icmp_type=8"
	case TCP:
		f += fmt.Sprintf(",dl_type=0x0800,nw_proto=6,tp_dst=%d", w.Frame.Port)
	case UDP:
		f += fmt.Sprintf(",dl_type=0x0800,nw_proto=17,tp_dst=%d", w.Frame.Port)
	}
	add("nw_src", src)
	add("nw_dst", dst)
	return f
}
