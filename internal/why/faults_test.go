package why

import (
	"net/netip"
	"slices"

	"vmnet/bridge/inbound"
	"vmnet/internal/kernel/rtnl"
	"vmnet/tapmgr/nic"
)

var faults = slices.Concat(guestFaults, bridgeFaults, hostFaults, firewallFaults, otherFaults)

var guestFaults = []fault{
	{
		"paused", func(f *Facts) { f.NIC.Guest.RunState = "paused" },
		"guest P2/net0", "state paused", `{"execute": "cont"}`,
	},
	{
		"paused by libvirt", func(f *Facts) { f.NIC.Guest.RunState, f.NIC.Via = "paused", nic.ViaLibvirt },
		"guest P2/net0", "state paused", "virsh resume P2",
	},
	{"set_link", func(f *Facts) { f.NIC.Guest.LinkUp = &noBool }, "guest P2/net0", "no carrier", "--link up"},
	{
		"no driver", func(f *Facts) { f.NIC.Guest.Driver = &noBool },
		"guest P2/net0", "no driver", "modprobe virtio_net",
	},
	{
		"broken device", func(f *Facts) { f.NIC.Guest.Broken = &yesBool },
		"guest P2/net0", "error of its driver", "restart",
	},
	{
		"no device", func(f *Facts) { f.NIC.Guest.Plugged = false },
		"guest P2/net0", "no device", "vmnet detach --vm P2",
	},
	{
		"SIGSTOP", func(f *Facts) { f.NIC.Process.Halted = true },
		"guest P2/net0", "stopped by a signal", "kill -CONT 100",
	},
	{
		"no vhost thread", func(f *Facts) { f.NIC.Guest.OnVhost = &yesBool }, "guest P2/net0",
		"vhost thread has ended",
		"vmnet detach",
	},
	{
		"left over", func(f *Facts) { f.NIC.State = nic.LeftOver },
		"guest P2/net0", "no process holds", "vmnet reconcile",
	},
	{
		"incomplete", func(f *Facts) { f.NIC.State = nic.Incomplete },
		"guest P2/net0", "cut short", "vmnet reconcile",
	},
	{
		"prepared", func(f *Facts) { f.NIC.State = nic.Prepared },
		"guest P2/net0", "committed", "vmnet commit --vm P2",
	},
	{
		"gone", func(f *Facts) { f.NIC.State = nic.Gone },
		"guest P2/net0", "deleted under the guest", "then attach",
	},
	{"tap down", func(f *Facts) { f.NIC.Link.Up = false }, "tap P2-net0", "down", "ip link set P2-net0 up"},
	{
		"no reader", func(f *Facts) {
			f.NIC.Link.Tun.Attached, f.NIC.Link.Carrier, f.NIC.Holders = false, false, nil
		},
		"tap P2-net0", "no process reads it", "start its guest",
	},
	{
		"carrier off", func(f *Facts) { f.NIC.Link.Carrier = false },
		"tap P2-net0", "its carrier is off", "--link up",
	},
	{
		"spoofed MAC", func(f *Facts) { f.NIC.PortSecurity, f.NIC.Guest.MAC = "mac", mac3.String() }, "port security",
		"sends from " + mac3.String(), "ip link set dev DEV address " + mac1.String(),
	},
	{
		"spoofed address", func(f *Facts) {
			f.NIC.PortSecurity, f.NIC.IP = "mac,ip", []netip.Addr{netip.MustParseAddr("10.0.0.99")}
		},
		"port security", "the guest has the address 10.0.0.11", "--ip ADDRESS",
	},
	{
		"spoofed ARP", func(f *Facts) {
			f.Frame.Kind = ARP
			f.NIC.PortSecurity, f.NIC.IP = "arp", []netip.Addr{netip.MustParseAddr("10.0.0.99")}
		},
		"port security", "arp drops it", "--ip ADDRESS",
	},
	{
		"tag that port security forbids", func(f *Facts) { f.NIC.PortSecurity, f.Frame.VLAN = "vlan", 7 },
		"port security",
		"vlan drops it", "--port-security none",
	},
	{
		"peer paused", func(f *Facts) { f.toP3(); f.Peer.Guest.RunState = "paused" },
		"guest P3/net0", "paused", "cont",
	},
	{
		"peer without link", func(f *Facts) { f.toP3(); f.Peer.Guest.LinkUp = &noBool },
		"guest P3/net0", "no carrier", "P3",
	},
	{
		"not allowed in", func(f *Facts) {
			f.toP3()
			f.Frame = Frame{Kind: TCP, Port: 80}
			f.Peer.AllowIn = inbound.Rules{{Protocol: inbound.TCP, First: 22, Last: 22}}
		},
		"allow in of P3/net0", "only answers and tcp:22", "--allow-in tcp:80",
	},
	{
		"allowed from elsewhere only", func(f *Facts) {
			f.toP3()
			f.Peer.AllowIn = inbound.Rules{{Protocol: inbound.ICMP, From: netip.MustParsePrefix("192.0.2.0/24")}}
		},
		"allow in of P3/net0", "only answers", "--allow-in icmp",
	},
}

var bridgeFaults = []fault{
	{
		"on no bridge", func(f *Facts) { f.NIC.Link.Master, f.NIC.Link.Port = 0, nil },
		"tap P2-net0", "on no bridge", "vmnet reconcile",
	},
	{
		"on another bridge", func(f *Facts) { f.NIC.Link.Master = indexBr1 },
		"tap P2-net0", "on br1, and belongs on br0", "master br0",
	},
	{
		"bridge is gone", func(f *Facts) {
			f.NIC.Link.Master = 0
			f.Links = slices.DeleteFunc(f.Links, func(l *rtnl.Link) bool { return l.Name == "br0" })
		},
		"bridge br0", "does not exist", "vmnet bridge create br0",
	},
	{
		"bridge down", func(f *Facts) { f.link("br0").Up = false },
		"bridge br0", "it is down", "ip link set br0 up",
	},
	{
		"STP learns", func(f *Facts) { f.NIC.Link.Port.State = rtnl.Learning },
		"port P2-net0", "learning", "stp_state 0",
	},
	{
		"STP blocks", func(f *Facts) { f.NIC.Link.Port.State = rtnl.Blocking },
		"port P2-net0", "STP blocks it", "stp_state 0",
	},
	{
		"port disabled", func(f *Facts) { f.NIC.Link.Port.State = rtnl.Disabled },
		"port P2-net0", "disabled", "state 3",
	},
	{
		"locked", func(f *Facts) { f.NIC.Link.Port.Locked, f.FDB = true, nil },
		"port P2-net0", "locked", "bridge fdb add " + mac1.String(),
	},
	{
		"no PVID", func(f *Facts) { f.filterVLANs(); f.VLANs[indexTap1][0].PVID = false },
		"port P2-net0", "no PVID", "pvid untagged",
	},
	{
		"trunk without a native VLAN", func(f *Facts) {
			f.filterVLANs()
			f.NIC.Port = "trunk:10"
			f.VLANs[indexTap1] = []rtnl.VLANs{{First: 10, Last: 10}}
		},
		"port P2-net0", "only tagged frames", "--vlan",
	},
	{
		"VLAN missing on the guest's port", func(f *Facts) { f.filterVLANs(); f.Frame.VLAN = 7 }, "port P2-net0",
		"not a member of VLAN 7", "vid 7",
	},
	{
		"VLAN missing on the peer's port", func(f *Facts) {
			f.toP3()
			f.filterVLANs()
			f.VLANs[indexTap1] = []rtnl.VLANs{{First: 10, Last: 10, PVID: true, Untagged: true}}
		},
		"port P3-net0", "not a member of VLAN 10", "bridge vlan add dev P3-net0 vid 10",
	},
	{
		"VLAN missing on the uplink", func(f *Facts) {
			f.onBr1()
			f.link("br1").Bridge.VLANFiltering = true
			f.VLANs = map[int][]rtnl.VLANs{indexTap3: {{First: 10, Last: 10, PVID: true, Untagged: true}}}
		},
		"port eth1", "not a member of VLAN 10", "bridge vlan add dev eth1 vid 10",
	},
	{
		"VLAN in no segment", func(f *Facts) { f.onMap(30) },
		"port eth1", "VLAN 30 is not in its map: its frames reach no other host", "vmnet bridge create br1 --vxlan-map",
	},
	{
		"VLAN of the device, without a VNI", func(f *Facts) { f.onMap(11) },
		"port eth1", "VLAN 11 is not in its map", "vmnet bridge create br1 --vxlan-map",
	},
	{
		"answers in another VLAN", func(f *Facts) {
			f.toP3()
			f.filterVLANs()
			f.VLANs[indexTap2] = []rtnl.VLANs{{First: 1, Last: 1, Untagged: true}, {First: 2, Last: 2, PVID: true}}
		},
		"port P3-net0", "answers belong to VLAN 2, not 1", "pvid",
	},
	{
		"a tag that the peer does not expect", func(f *Facts) {
			f.toP3()
			f.filterVLANs()
			f.VLANs[indexTap2][0].Untagged = false
		},
		"port P3-net0", "with a tag", "untagged",
	},
	{
		"host not in the VLAN", func(f *Facts) { f.filterVLANs(); delete(f.VLANs, indexBr0) }, "host on br0",
		"not in VLAN 1", "pvid untagged self",
	},
	{
		"isolated both", func(f *Facts) { f.toP3(); f.NIC.Link.Port.Isolated, f.Peer.Link.Port.Isolated = true, true },
		"port P3-net0", "isolated ports", "isolated off",
	},
	{
		"neither learned nor flooded", func(f *Facts) {
			f.toP3()
			f.Peer.Link.Port.Learning, f.Peer.Link.Port.Flood, f.FDB = false, false, nil
		},
		"port P3-net0", "no frames to unknown addresses", "flood on",
	},
	{
		"no broadcasts", func(f *Facts) { f.toP3(); f.Frame.Kind, f.Peer.Link.Port.NoBroadcast = ARP, true },
		"port P3-net0", "no broadcast", "bcast_flood on",
	},
	{
		"peer's port down", func(f *Facts) { f.toP3(); f.Peer.Link.Up = false },
		"port P3-net0", "down", "ip link set P3-net0 up",
	},
	{
		"uplink down", func(f *Facts) { f.onBr1(); f.link("eth1").Up = false },
		"port eth1", "down", "ip link set eth1 up",
	},
	{
		"uplink without carrier", func(f *Facts) { f.onBr1(); f.link("eth1").Carrier = false },
		"port eth1", "no carrier", "cable",
	},
	{
		"uplink blocked", func(f *Facts) { f.onBr1(); f.link("eth1").Port.State = rtnl.Blocking }, "port eth1",
		"STP blocks it",
		"find the loop",
	},
	{
		"Wi-Fi as uplink", func(f *Facts) { f.onBr1(); f.Radios = []string{"eth1"} },
		"uplink eth1", "Wi-Fi", "--routed eth1",
	},
	{
		"MTU of the uplink", func(f *Facts) {
			f.onBr1()
			f.Frame = Frame{
				Kind: TCP,
				Port: 443,
			}
			f.link("eth1").MTU = 1400
		},
		"port eth1", "larger than 1400 bytes", "mtu 1500",
	},
	{
		"MTU of the peer", func(f *Facts) { f.toP3(); f.Frame = Frame{Kind: TCP, Port: 1}; f.Peer.Link.MTU = 1280 },
		"port P3-net0", "larger than 1280 bytes", "mtu 1500",
	},
	{
		"no way out", func(f *Facts) {
			f.Addrs = nil
		},
		"bridge br0", "nothing leads out of it", "master br0",
	},
	{
		"no DHCP server", func(f *Facts) { f.Frame.Kind = DHCP },
		"bridge br0", "nothing on it serves DHCP",
		"vmnet network create NAME --nat --dhcp, then vmnet set --vm P2 --nic net0 --network NAME",
	},
	{
		"duplicate MAC", func(f *Facts) { f.Others[1].MAC = mac1.String() }, "the answer",
		"P3/net0 (P3-net0) has the MAC",
		"--mac",
	},
	{
		"MAC learned elsewhere", func(f *Facts) { f.FDB[0].Port = indexTap2 }, "the answer", "has learned " +
			mac1.String(),
		"bridge fdb show br br0",
	},
	{
		"static entry elsewhere", func(f *Facts) {
			f.FDB[0] = rtnl.FDBEntry{
				MAC: mac1, Port: indexTap2,
				Static: true,
			}
		},
		"the answer", "an entry that was added", "bridge fdb del",
	},
	{
		"duplicate address", func(f *Facts) { f.Others[1].Addresses = []nic.Address{{IP: address1}} }, "the answer",
		"has the address 10.0.0.11 as well", "another address",
	},
	{
		"the host's address", func(f *Facts) {
			f.Addrs = append(f.Addrs, Addr{indexEth0, netip.MustParsePrefix("10.0.0.11/32")})
		},
		"the answer", "the host itself has", "another address",
	},
}
