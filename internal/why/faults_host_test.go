package why

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch/control"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/ovs"
	"vmnet/tapmgr/nic"
)

func set(name, value string) func(*Facts) {
	return func(f *Facts) { f.Settings[name] = value }
}

var hostFaults = []fault{
	{
		"ip_forward off", set("net/ipv4/ip_forward", "0"),
		"host", "net.ipv4.ip_forward is 0", "sysctl -w net.ipv4.ip_forward=1",
	},
	{
		"forwarding off on the bridge", set("net/ipv4/conf/br0/forwarding", "0"), "host", "by br0",
		"sysctl -w net.ipv4.conf.br0.forwarding=1",
	},
	{
		"rp_filter strict", func(f *Facts) { f.Back.Link = indexEth0 },
		"rp_filter", "own route there is by eth0", "rp_filter=0",
	},
	{
		"rp_filter loose without a route", func(f *Facts) {
			f.Settings["net/ipv4/conf/all/rp_filter"], f.Back.Link = "2", 0
		},
		"rp_filter", "by no link", "ip route add 10.0.0.11",
	},
	{
		"no default route", func(f *Facts) { f.Out.Link = 0 },
		"route to outside", "no default route", "ip route add default",
	},
	{
		"no route to a target", func(f *Facts) {
			f.To, f.Out = Target{Address, "10.9.9.9", netip.MustParseAddr("10.9.9.9")}, Route{}
		},
		"route to 10.9.9.9", "no route", "ip route add",
	},
	{
		"out by a link that is down", func(f *Facts) { f.link("eth0").Up = false },
		"route to outside", "eth0 is down", "eth0 up",
	},
	{
		"out by a link without carrier", func(f *Facts) { f.link("eth0").Carrier = false },
		"route to outside", "no carrier", "cable",
	},
	{
		"back where it came from", func(f *Facts) { f.Out.Link = indexBr0 },
		"route to outside", "where it came in", "ip route show",
	},
	{
		"a smaller MTU beyond a parent device", func(f *Facts) {
			f.onMacvtap()
			f.Frame = Frame{Kind: TCP, Port: 1}
			f.link("eth0").MTU = 1400
		},
		"uplink eth0", "larger than 1400", "mtu 1500",
	},
	{
		"full neighbour table", func(f *Facts) { f.Neighbours = NeighbourTable{1024, 1024} },
		"neighbour table", "full", "gc_thresh3=4096",
	},
	{
		"wrong network", func(f *Facts) {
			f.NIC.Addresses[0].IP, f.Back.Addr = netip.MustParseAddr("10.7.0.5"), netip.MustParseAddr("10.7.0.5")
		},
		"host on br0", "it is on another network", "vmnet set --bridge",
	},
	{
		"IPv6 off", func(f *Facts) {
			f.To = Target{Address, "2001:db8::1", netip.MustParseAddr("2001:db8::1")}
			f.Addrs = append(f.Addrs, Addr{indexBr0, netip.MustParsePrefix("2001:db8:1::1/64")})
			f.Settings["net/ipv6/conf/br0/disable_ipv6"] = "1"
		},
		"host on br0", "IPv6 is off", "disable_ipv6=0",
	},
	{
		"IPv6 not forwarded", func(f *Facts) {
			f.To = Target{Address, "2001:db8::1", netip.MustParseAddr("2001:db8::1")}
			f.Addrs = append(f.Addrs, Addr{indexBr0, netip.MustParsePrefix("2001:db8:1::1/64")})
			f.Settings["net/ipv6/conf/all/forwarding"] = "0"
		},
		"host", "net.ipv6.conf.all.forwarding is 0", "forwarding=1",
	},
	{
		"network without a way out", func(f *Facts) { f.lab(); f.Network.NAT = false },
		"network br0", "neither NAT nor an uplink", "--nat",
	},
	{
		"NAT table flushed", func(f *Facts) {
			f.lab()
			f.rules("")
			f.Differences = []Difference{{"rules", "table vmnet-br0", "", "vmnet network apply br0"}}
		},
		"network br0", "rules: want table vmnet-br0, found nothing", "vmnet network apply br0",
	},
	{
		"server of a network ended", func(f *Facts) {
			f.lab()
			f.Frame.Kind = DHCP
			f.Links = slices.DeleteFunc(f.Links, func(l *rtnl.Link) bool { return l.Index == indexServer })
		},
		"server of br0", "no DHCP server runs", "vmnet network apply br0",
	},
	{
		"network without DHCP", func(f *Facts) { f.lab(); f.Frame.Kind, f.Network.DHCP = DHCP, false },
		"network br0", "no DHCP", "dhcp: true",
	},
}

func drop(table, hook, rules string) string {
	return `{"chain":{"family":"` + table + `","table":"filter","name":"C",` +
		`"hook":"` + hook + `","policy":"drop"}}` + rules
}

func mark(family, chain string) string {
	return `,{"chain":{"family":"` + family + `","table":"filter","name":"` + chain + `"}}`
}

var firewallFaults = []fault{
	{
		"Docker", func(f *Facts) { f.rules(drop("ip", "forward", mark("ip", "DOCKER-USER"))) },
		"chain ip filter C", "Docker", "iptables -I DOCKER-USER -i br0",
	},
	{
		"ufw", func(f *Facts) { f.rules(drop("ip", "forward", mark("ip", "ufw-user-forward"))) },
		"chain ip filter C", "ufw", "ufw route allow in on br0",
	},
	{
		"firewalld", func(f *Facts) {
			f.rules(`{"chain":{"family":"inet","table":"firewalld","name":"filter_FORWARD",
"hook":"forward","policy":"accept"}},
{"rule":{"family":"inet","table":"firewalld","chain":"filter_FORWARD","expr":[{"reject":null}]}}`)
		},
		"chain inet firewalld", "firewalld drops it", "firewall-cmd --zone=trusted",
	},
	{
		"ufw, to the host", func(f *Facts) {
			f.toHost()
			f.rules(drop("ip", "input", mark("ip", "ufw-user-input")))
		},
		"chain ip filter C", "ufw", "ufw allow in on br0",
	},
	{
		"DHCP to a host whose firewall drops it", func(f *Facts) {
			f.Frame.Kind, f.ServesDHCP = DHCP, true
			f.rules(drop("inet", "input", ""))
		},
		"chain inet filter C", "drops it", "br0",
	},
	{
		"br_netfilter with FORWARD DROP", func(f *Facts) {
			f.toP3()
			f.Settings["net/bridge/bridge-nf-call-iptables"] = "1"
			f.rules(drop("ip", "forward", mark("ip", "DOCKER")))
		},
		"chain ip filter C, by br_netfilter", "Docker", "bridge-nf-call-iptables=0",
	},
	{
		"a chain of family bridge", func(f *Facts) {
			f.toP3()
			f.rules(`{"chain":{"family":"bridge","table":"b","name":"f","hook":"forward","policy":"accept"}},
{"rule":{"family":"bridge","table":"b","chain":"f","expr":[
{"match":{"op":"==","left":{"meta":{"key":"iifname"}},"right":"P2-*"}},{"drop":null}]}}`)
		},
		"chain bridge b f", "the table b drops it", "nft delete rule",
	},
	{
		"a chain at the tap", func(f *Facts) {
			f.rules(`{"chain":{"family":"netdev","table":"n","name":"i","dev":"P2-net0",
"hook":"ingress","policy":"accept"}},
{"rule":{"family":"netdev","table":"n","chain":"i","expr":[
{"match":{"op":"==","left":{"payload":{"protocol":"ether","field":"saddr"}},
"right":"` + mac1.String() + `"}},{"drop":null}]}}`)
		},
		"chain netdev n i", "drops it", "nft delete rule",
	},
	{
		"one port is dropped", func(f *Facts) {
			f.Frame = Frame{Kind: TCP, Port: 25}
			f.rules(`{"chain":{"family":"inet","table":"t","name":"f","hook":"forward","policy":"accept"}},
{"rule":{"family":"inet","table":"t","chain":"f","expr":[
{"match":{"op":"==","left":{"payload":{"protocol":"tcp","field":"dport"}},"right":{"set":[25,465]}}},{"drop":null}]}}`)
		},
		"chain inet t f", "drops it", "nft insert rule inet t f",
	},
}

// onMacvtap puts the guest on eth0 by a macvtap.
func (f *Facts) onMacvtap() {
	f.NIC.Link = &rtnl.Link{
		Index: 50, Name: "P2-net0", Kind: "macvtap", Up: true, Carrier: true, MTU: 1500, Lower: indexEth0, LowerNS: 7,
		Macvlan: &rtnl.Macvlan{},
	}
	n := &f.NIC.NIC
	n.Type, n.Source, n.Mode = "macvtap", "eth0", "bridge"
	f.NIC.Bridge, f.NIC.Lower, f.NIC.Netns, f.Others = "", "eth0", "/proc/100/fd/9", nil
}

// siblings puts P3 on eth0 as well.
func (f *Facts) siblings(mode string) {
	f.onMacvtap()
	f.toP3()
	p := *f.NIC
	p.VM, p.MAC, p.Guest = "P3", mac2.String(), f.Peer.Guest
	f.NIC.Mode, p.Mode = mode, mode
	f.Peer = &p
}

// onSwitch puts P2 and P3 on a userspace switch with an uplink.
func (f *Facts) onSwitch() *Switch {
	f.toP3()
	f.Others = nil
	for _, n := range []*NIC{f.NIC, f.Peer} {
		n.Source, n.Switch, n.Link.Master, n.Link.Port = "sw0", true, 0, nil
	}
	f.Switch = &Switch{Ports: []control.Port{
		{Name: "P2-net0", Kind: control.Tap, Device: "P2-net0", Stats: &vport.Stats{}},
		{Name: "P3-net0", Kind: control.Tap, Device: "P3-net0", Stats: &vport.Stats{}},
	}}
	return f.Switch
}

// onSwitchUplink sends the frame out of the switch, by the port that it returns.
func (f *Facts) onSwitchUplink() *control.Port {
	s := f.onSwitch()
	s.Ports = append(s.Ports, control.Port{Name: "up", Kind: control.Packet, Device: "eth1", Stats: &vport.Stats{}})
	f.Peer, f.To = nil, Target{Outside, "outside", beyond}
	return &s.Ports[len(s.Ports)-1]
}

// onOVS puts P2 and P3 on a bridge of Open vSwitch.
func (f *Facts) onOVS() {
	f.toP3()
	f.Others = nil
	for _, n := range []*NIC{f.NIC, f.Peer} {
		n.Source, n.Type, n.Link.Master, n.Link.Port = "br-int", nic.TypeOVS, 0, nil
		f.OVS = append(f.OVS, ovs.Port{
			Name: n.Interface, Bridge: "br-int", OFPort: len(f.OVS) + 1, LinkUp: true,
			MAC: n.MAC,
		})
	}
	f.Trace = &Trace{Actions: "2", Ports: map[string]bool{"P3-net0": true}}
}

// routed makes the guest one whose address the host routes.
func (f *Facts) routed() {
	f.NIC.Type, f.NIC.Source, f.NIC.Link.Master, f.NIC.Link.Port = nic.TypeRouted, "eth0", 0, nil
	a := netip.MustParseAddr("192.0.2.40")
	f.NIC.IP, f.Back = []netip.Addr{a}, Route{a, indexTap1}
	f.NIC.Addresses = []nic.Address{{IP: a, From: []string{"lease"}}}
	f.Proxies, f.Others = []rtnl.Proxy{{Link: indexEth0, Addr: a}}, nil
}

var otherFaults = []fault{
	{
		"macvtap to its own host", func(f *Facts) {
			f.onMacvtap()
			f.To = Target{Host, "192.0.2.7", netip.MustParseAddr("192.0.2.7")}
		},
		"parent device eth0", "own addresses", "vmnet lower eth0 --host-access on",
	},
	{
		"macvtap on a device that is down", func(f *Facts) { f.onMacvtap(); f.link("eth0").Up = false },
		"macvtap P2-net0", "eth0 is down", "eth0 up",
	},
	{
		"macvtap without carrier", func(f *Facts) { f.onMacvtap(); f.link("eth0").Carrier = false },
		"macvtap P2-net0", "no carrier", "cable",
	},
	{
		"macvtap on Wi-Fi", func(f *Facts) { f.onMacvtap(); f.Radios = []string{"eth0"} },
		"macvtap P2-net0", "Wi-Fi", "--ipvtap eth0",
	},
	{
		"macvtap with another MAC", func(f *Facts) { f.onMacvtap(); f.NIC.Guest.MAC = mac3.String() },
		"macvtap P2-net0", "takes in only", "address " + mac1.String(),
	},
	{
		"private macvtaps", func(f *Facts) { f.siblings("private") },
		"parent device eth0", "mode private", "--mode bridge",
	},
	{
		"VEPA without hairpin", func(f *Facts) {
			f.siblings("vepa")
			f.link("eth0").Kind, f.link("eth0").Lower = "veth", indexEth1
			f.link("eth1").Kind = "veth"
		},
		"port eth1", "no hairpin", "hairpin on",
	},
	{
		"ipvtap in mode l3 and DHCP", func(f *Facts) {
			f.onMacvtap()
			f.NIC.Type, f.NIC.Mode, f.Frame.Kind = "ipvtap", "l3", DHCP
		},
		"ipvtap P2-net0", "no broadcasts", "l2",
	},
	{
		"ipvtap with another address", func(f *Facts) {
			f.onMacvtap()
			f.NIC.Type, f.NIC.Mode, f.NIC.IP = "ipvtap", "l2", []netip.Addr{address2}
		},
		"ipvtap P2-net0", "another address than it may use", "--ip",
	},
	{
		"switch ended", func(f *Facts) { f.onSwitch(); f.NIC.State = nic.NoSwitch },
		"switch sw0", "has ended", "vmnet switch run sw0",
	},
	{
		"port stopped for a loop", func(f *Facts) { f.onSwitch().Ports[0].Stats.State = vport.StateStopped },
		"port P2-net0", "a loop", "find the loop",
	},
	{
		"switch's port down", func(f *Facts) { f.onSwitch().Ports[1].Stats.State = vport.StateDown },
		"port P3-net0", "down", "P3-net0 up",
	},
	{
		"switch's port missing", func(f *Facts) { s := f.onSwitch(); s.Ports = s.Ports[1:] },
		"switch sw0", "no port for the NIC", "vmnet reconcile",
	},
	{
		"other VLANs at a switch", func(f *Facts) { f.onSwitch().Ports[1].Config.VLAN = 20 }, "port P3-net0",
		"not in VLAN 1", "vmnet set --vm P3 --nic net0 --vlan 1",
	},
	{
		"another VLAN at a switch's uplink", func(f *Facts) { f.onSwitchUplink().Config.VLAN = 20 }, "port up",
		"not in VLAN 1", "vmnet switch remove-port sw0 up, then vmnet switch add-port sw0 --packet eth1,vlan=1",
	},
	{
		"another VLAN at a switch's VXLAN port", func(f *Facts) {
			p := f.onSwitchUplink()
			p.Kind, p.Device, p.Config.VLAN = control.VXLAN, "", 20
			p.VXLAN = &vport.VXLAN{VNI: 77, Remotes: []netip.Addr{netip.MustParseAddr("192.0.2.2")}}
		}, "port up", "not in VLAN 1",
		"then vmnet switch add-port sw0 --vxlan up,vni=77,remote=192.0.2.2,vlan=1",
	},
	{
		"unknown addresses at a switch", func(f *Facts) {
			f.onSwitch().Ports[1].Config.NoFlood = true
			f.Frame.Kind = ICMP
		},
		"port P3-net0", "unknown addresses", "vmnet set --vm P3 --nic net0 --no-flood=false",
	},
	{
		"trunk of a switch without a native VLAN", func(f *Facts) {
			f.onSwitch().Ports[0].Config.Trunk = []brport.VLANRange{{First: 5, Last: 6}}
		},
		"port P2-net0", "trunk without a native", "--native",
	},
	{
		"isolated at a switch", func(f *Facts) {
			s := f.onSwitch()
			s.Ports[0].Config.Isolated, s.Ports[1].Config.Isolated = true, true
		},
		"port P3-net0", "isolated ports",
		"vmnet set --vm P2 --nic net0 --isolated=false",
	},
	{
		"nothing leads out of a switch", func(f *Facts) {
			for i := range f.onSwitch().Ports {
				f.Switch.Ports[i].Kind = control.Packet // as a tap is given to a switch
			}
			f.Peer, f.To = nil, Target{Outside, "outside", beyond}
		},
		"switch sw0", "nothing leads out of it: its other ports are P3-net0",
		"vmnet switch add-port sw0 --packet DEVICE",
	},
	{
		"stale OVS row", func(f *Facts) {
			f.onOVS()
			f.OVS[0].OFPort, f.OVS[0].Error = -1,
				"could not open network device"
		},
		"port P2-net0", "could not open", "vmnet reconcile",
	},
	{
		"no OVS row", func(f *Facts) { f.onOVS(); f.OVS = f.OVS[1:] },
		"Open vSwitch", "no port P2-net0", "vmnet reconcile",
	},
	{
		"OVS row of another NIC", func(f *Facts) { f.onOVS(); f.OVS[0].MAC = mac3.String() },
		"port P2-net0", "left behind", "vmnet reconcile",
	},
	{
		"OVS without carrier", func(f *Facts) { f.onOVS(); f.OVS[1].LinkUp = false },
		"port P3-net0", "no carrier", "P3-net0 up",
	},
	{
		"OVS VLAN mismatch", func(f *Facts) { f.onOVS(); f.OVS[0].Settings.VLAN, f.OVS[1].Settings.VLAN = 5, 6 },
		"bridge br-int", "not in VLAN 5", "tag=5",
	},
	{
		"OVS tags what the peer gets", func(f *Facts) { f.onOVS(); f.OVS[0].Settings.VLAN = 5 },
		"bridge br-int", "VLAN 5 leave P3-net0 with a tag", "tag=5",
	},
	{
		"OVS port with a tag for one without", func(f *Facts) { f.onOVS(); f.OVS[1].Settings.VLAN = 5 },
		"bridge br-int", "not in VLAN 0", "clear port P3-net0 tag",
	},
	{
		"OVS ports protected", func(f *Facts) {
			f.onOVS()
			f.OVS[0].Settings.Isolated, f.OVS[1].Settings.Isolated = true, true
		},
		"bridge br-int", "protected", "protected=false",
	},
	{
		"OVN without flows", func(f *Facts) { f.onOVS(); f.OVS[0].IsOVNs, f.OVS[0].IfaceID = true, "x" },
		"port P2-net0", "no flows", "ovn-nbctl",
	},
	{
		"a flow drops it", func(f *Facts) { f.onOVS(); f.Trace = &Trace{Actions: "drop"} },
		"flows of br-int", "drops it", "dump-flows",
	},
	{
		"no proxy entry", func(f *Facts) { f.routed(); f.Proxies = nil },
		"proxy entry on eth0", "to nobody", "vmnet reconcile",
	},
	{
		"no route to a routed guest", func(f *Facts) { f.routed(); f.Back.Link = indexEth0 },
		"host on P2-net0", "no route", "vmnet reconcile",
	},
	{
		"routed guest, not forwarded", func(f *Facts) { f.routed(); f.Settings["net/ipv4/ip_forward"] = "0" },
		"host", "ip_forward is 0", "=1",
	},
	{
		"routed guest with another address", func(f *Facts) { f.routed(); f.NIC.Addresses[0].IP = address1 },
		"host on P2-net0", "the host routes", "--ip",
	},
	{
		"routed guest and DHCP", func(f *Facts) { f.routed(); f.Frame.Kind = DHCP },
		"host on P2-net0", "by DHCP", "by hand",
	},
}

// TestOtherPorts: a switch without an uplink is said to have the ports that it has.
func TestOtherPorts(t *testing.T) {
	for ports, want := range map[int]string{1: "none", 2: "P3-net0"} {
		f := world()
		s := f.onSwitch()
		s.Ports = s.Ports[:ports]
		f.Peer, f.To = nil, Target{Outside, "outside", beyond}
		stop := Follow(f).Stopped()
		if stop == nil || !strings.HasSuffix(stop.Why, "its other ports are "+want) {
			t.Errorf("%d ports: %+v, want %s", ports, stop, want)
		}
	}
}
