package config

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"vmnet/bridge/vxlan"
)

// onUplink is a network with everything that one on a LAN may have.
func onUplink() *Network {
	return &Network{
		Name: "lan", Domain: "lan.internal", DHCP: true, Subnet: netip.MustParsePrefix("192.168.1.0/24"),
		Hosts: []Host{{"web", net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}, netip.MustParseAddr("192.168.1.11")}},
		Uplink: &Uplink{
			Device: "eth1", Move: Confirmed, Router: netip.MustParseAddr("192.168.1.1"),
			Range: Range{netip.MustParseAddr("192.168.1.200"), netip.MustParseAddr("192.168.1.220")},
		},
	}
}

// onSegment is a network on a VXLAN segment with these other hosts; none if the first is empty.
func onSegment(remotes ...string) *Network {
	v := vxlan.Config{VNI: 100, Local: netip.MustParseAddr("192.0.2.1")}
	for _, r := range remotes {
		if r != "" {
			v.Remotes, v.Port = append(v.Remotes, netip.MustParseAddr(r)), 4790
		}
	}
	u := NewVXLAN("far", v)
	return &Network{Name: "seg", Domain: "seg.internal", MTU: 1450, Uplink: &u}
}

// onMap is a network with a segment for each of several VLANs.
func onMap() *Network {
	u := NewVXLAN("far", vxlan.Config{
		Map:     vxlan.Map{{First: 10, Last: 10, VNI: 10010}, {First: 20, Last: 29, VNI: 20020}},
		Local:   netip.MustParseAddr("192.0.2.1"),
		Remotes: []netip.Addr{netip.MustParseAddr("192.0.2.2")},
	})
	return &Network{Name: "far", Domain: "far.internal", MTU: 1450, Uplink: &u}
}

// TestSegmentMTU: a file without an MTU has what Ethernet between the hosts leaves.
func TestSegmentMTU(t *testing.T) {
	for text, want := range map[string]int{
		"local: 192.0.2.1}}":                       1450,
		"local: \"fd00::1\"}}":                     1430,
		"local: 192.0.2.1, mtu: 1500}}":            1500,
		"local: 192.0.2.1}}\nmtu: 1400":            1400,
		"local: 192.0.2.1, mtu: 1400}}\nmtu: 1400": 1400,
	} {
		n, err := Parse("f", "seg", []byte("uplink: {vxlan: {id: 7, "+text))
		if err != nil || n.MTU != want || n.Uplink.Device != "vx7" {
			t.Errorf("%s: %+v, %v", text, n, err)
		}
	}
}

func TestSplitVLAN(t *testing.T) {
	for device, want := range map[string]string{
		"eth1": "", "eth1.100": "eth1 100", "br0.1.4094": "br0.1 4094", "eth1.0": "", "eth1.4095": "", "eth1.": "",
		".1": "", "eth1.01": "", "eth1.+1": "", "eth1.x": "",
	} {
		parent, vlan, ok := SplitVLAN(device)
		got := ""
		if ok {
			got = fmt.Sprint(parent, " ", vlan)
		}
		if got != want {
			t.Errorf("%s: %q, want %q", device, got, want)
		}
	}
}

func TestUplinkErrors(t *testing.T) {
	const dhcp = "uplink: eth1\ndhcp: true\nsubnet: 192.168.1.0/24\n"
	const seg = "uplink: {vxlan: {id: 1, local: 192.0.2.1, "
	const mapped = "uplink: {vxlan: {local: 192.0.2.1, map: "
	const up, one = "uplink: eth1\n", "{name: a, mac: \"52:54:00:00:00:01\", ip: "
	const lan = dhcp + "dhcp-range: 192.168.1.200-192.168.1.220\n"
	for text, want := range map[string]string{
		"uplink: \"a b\"":                       "1:9: uplink \"a b\": want the name of an interface",
		"uplink: abcdefghijklmnop":              "uplink \"abcdefghijklmnop\": want the name of an interface",
		"uplink: \"..\"":                        "want the name of an interface",
		"uplink: lan":                           "the bridge of the network has this name",
		"subnet: 10.0.0.0/24\nrouter: 10.0.0.1": "are about an uplink (write uplink: eth1)",
		up + "nat: true":                        "need no nat",
		up + "ipv6: fd66:1:2:3::/64":            "whose router announces ipv6",
		up + "mtu: 9000":                        "which has an MTU already (remove mtu)",
		up + "isolated: true":                   "so they cannot be isolated",
		up + "forwards: [{from: \"tcp:1\", to: \"10.0.0.1\"}]": "forwards do not work",
		"uplink: {}":                                               "uplink is empty (write uplink: eth1)",
		"uplink: {bond: eth1}":                                     "1:10: ",
		"uplink: {vxlan: {id: 0}}":                                 "1:22: id is \"0\": want 1 to 16777215",
		"uplink: {vxlan: {id: 1}}":                                 "it needs an address of this host",
		"uplink: {vxlan: {id: 1, local: x}}":                       "local \"x\": want the address of a host",
		"uplink: {vxlan: {id: 1, local: 224.0.0.1}}":               "want the unicast address of a host",
		"uplink: {vxlan: {id: 1, local: 192.0.2.1, remote: 1}}":    "1:",
		seg + "remote: [192.0.2.1]}}":                              "it is the local one",
		seg + "remote: [\"fd00::1\"]}}":                            "of the other IP version",
		seg + "mtu: 1000}}":                                        "mtu is \"1000\": want 1280",
		seg + "mtu: 1400}}\nmtu: 1500":                             "they are the same MTU (remove one)",
		seg + "port: 0}}":                                          "port is \"0\": want 1",
		seg + "}}\nmove-address: true":                             "no addresses of the host to move",
		mapped + "x}}":                                             "1:41: map \"x\": want VLAN:VNI",
		mapped + "\"10:1,11:1\"}}":                                 "VNI 1 is there twice",
		"uplink: {vxlan: {map: \"10:1\"}}":                         "map 10:1: it needs an address of this host",
		seg + "map: \"10:1\"}}":                                    "VNI 1 and a map of VLANs: want one of them",
		seg + "}}\nnat: true":                                      "need no nat",
		up + "move-address: maybe":                                 "2:15: move-address is neither true nor false",
		up + "subnet: 192.168.1.0/24":                              "are for a DHCP server (write dhcp: true)",
		up + "dhcp: true":                                          "needs a range of addresses",
		up + "dhcp: true\ndhcp-range: 192.168.1.200-192.168.1.220": "needs the LAN's subnet",
		dhcp + "dhcp-range: 192.168.1.220-192.168.1.200":           "the lower one first",
		dhcp + "dhcp-range: 192.168.2.1-192.168.2.9":               "want addresses of hosts in 192.168.1.0/24",
		dhcp + "dhcp-range: 192.168.1.200-192.168.1.255":           "want addresses of hosts in 192.168.1.0/24",
		mapped + "\"10:1\"}}\ndhcp: true":                          "each VLAN is a LAN of its own",
		lan + "router: 192.168.2.1":                                "router 192.168.2.1: want the address of a host in",
		lan + "router: 192.168.1.210":                              "it is in dhcp-range 192.168.1.200-192.168.1.220",
		lan + "router: \"::1\"":                                    "want an IPv4 address",
		lan + "hosts: [" + one + "10.0.0.1}]":                      "want the address of a host in the LAN's subnet",
		lan + "hosts: [" + one + "192.168.1.200}]":                 "the DHCP server or the router has it",
	} {
		if _, err := Parse("f", "lan", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s:\n%v, want %s", text, err, want)
		}
	}
}

func TestUplinkAddresses(t *testing.T) {
	n := onUplink()
	first, last := n.Leased()
	if got := n.Server().String(); got != "192.168.1.200/24" {
		t.Errorf("server %s", got)
	}
	if first.String() != "192.168.1.201" || last.String() != "192.168.1.220" || n.Gateway().String() != "192.168.1.1" {
		t.Errorf("%s to %s by %s", first, last, n.Gateway())
	}
	if len(n.Addresses()) > 0 || len(n.Prefixes()) != 1 {
		t.Errorf("%v, %v", n.Addresses(), n.Prefixes())
	}
	n.Hosts[0].IP = netip.Addr{}
	if err := n.ChooseIPs(); err == nil || !strings.Contains(err.Error(), "web=52:54:00:00:00:01,ADDRESS") {
		t.Error(err)
	}
}
