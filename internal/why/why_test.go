package why

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/leaktest"
	"vmnet/internal/network/config"
	"vmnet/internal/network/firewall"
	"vmnet/internal/network/nft"
	"vmnet/internal/vmm/qmptest"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

func TestMain(m *testing.M) {
	qmptest.Main()
	leaktest.Main(m)
}

// Indexes of the links of the host that tests change.
const (
	indexEth0 = iota + 1
	indexBr0
	indexTap1
	indexTap2
	indexBr1
	indexEth1
	indexTap3
	indexServer
)

var (
	mac1, mac2, mac3 = mac("52:54:00:00:00:01"), mac("52:54:00:00:00:02"), mac("52:54:00:00:00:03")
	address1         = netip.MustParseAddr("10.0.0.11")
	address2         = netip.MustParseAddr("10.0.0.12")
	yesBool, noBool  = true, false
)

func mac(s string) net.HardwareAddr {
	m, err := net.ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return m
}

func port() *rtnl.Port {
	return &rtnl.Port{State: rtnl.Forwarding, PortFlags: rtnl.PortFlags{Learning: true, Flood: true}}
}

func tap(index int, name string, master int) *rtnl.Link {
	return &rtnl.Link{
		Index: index, Name: name, Kind: "tun", Up: true, Carrier: true, MTU: 1500, Master: master, LowerNS: -1,
		Port: port(), Tun: &rtnl.Tun{Tap: true, Attached: true},
	}
}

func guestOn(l *rtnl.Link, vm string, m net.HardwareAddr, bridge string, a netip.Addr) *NIC {
	return &NIC{
		Detail: tapmgr.Detail{
			NIC: nic.NIC{
				VM: vm, ID: "net0", Interface: l.Name, Type: nic.TypeTap, Source: bridge, MAC: m.String(), MTU: 1500,
				State: "forwarding", PID: 100, Queues: 1,
			},
			Bridge: bridge, Holders: []nic.Holder{{PID: 100}},
			Addresses: []nic.Address{{IP: a, From: []string{"lease"}}},
			Guest: &tapmgr.GuestView{
				Device: "vmnet-net0", Plugged: true, MAC: m.String(), RunState: "running", Driver: &yesBool,
				Broken: &noBool,
				LinkUp: &yesBool,
			},
		},
		Link: l, Process: Process{Seen: true},
	}
}

// world is a host on which all is well: P2 and P3 are on br0, which the host forwards to eth0 with
// NAT; br1 has the uplink eth1 and P4. The frame goes from P2 to the outside.
func world() *Facts {
	eth0 := &rtnl.Link{Index: indexEth0, Name: "eth0", Up: true, Carrier: true, MTU: 1500, LowerNS: -1}
	br0 := &rtnl.Link{
		Index: indexBr0, Name: "br0", Kind: "bridge", Up: true, Carrier: true, MTU: 1500, LowerNS: -1,
		Bridge: &rtnl.Bridge{},
	}
	br1 := &rtnl.Link{
		Index: indexBr1, Name: "br1", Kind: "bridge", Up: true, Carrier: true, MTU: 1500, LowerNS: -1,
		Bridge: &rtnl.Bridge{},
	}
	eth1 := &rtnl.Link{
		Index: indexEth1, Name: "eth1", Up: true, Carrier: true, MTU: 1500, LowerNS: -1, Master: indexBr1,
		Port: port(),
	}
	tap1, tap2 := tap(indexTap1, "P2-net0", indexBr0), tap(indexTap2, "P3-net0", indexBr0)
	f := &Facts{
		Frame: Frame{Kind: ICMP}, To: Target{Outside, "outside", beyond},
		NIC:   guestOn(tap1, "P2", mac1, "br0", address1),
		Links: []*rtnl.Link{eth0, br0, tap1, tap2, br1, eth1, tap(indexTap3, "P4-net0", indexBr1)},
		FDB:   []rtnl.FDBEntry{{MAC: mac1, Port: indexTap1}, {MAC: mac2, Port: indexTap2}},
		Addrs: []Addr{
			{indexBr0, netip.MustParsePrefix("10.0.0.1/24")}, {indexEth0, netip.MustParsePrefix("192.0.2.7/24")},
		},
		Out: Route{beyond, indexEth0}, Back: Route{address1, indexBr0},
		Settings: map[string]string{
			"net/ipv4/ip_forward": "1", "net/ipv4/conf/br0/forwarding": "1", "net/ipv4/conf/br0/rp_filter": "1",
			"net/ipv4/conf/all/rp_filter": "0", "net/ipv6/conf/all/forwarding": "1",
		},
		Firewall: &firewall.Host{Ruleset: &nft.Ruleset{}}, Missing: map[Part]string{},
	}
	f.rules(`{"chain":{"family":"ip","table":"nat","name":"POSTROUTING","hook":"postrouting","policy":"accept"}},
{"rule":{"family":"ip","table":"nat","chain":"POSTROUTING","expr":[
{"match":{"op":"==","left":{"meta":{"key":"oifname"}},"right":"eth0"}},{"masquerade":null}]}}`)
	f.Others = []tapmgr.Sighting{
		{NIC: f.NIC.NIC, Addresses: f.NIC.Addresses},
		{
			NIC: nic.NIC{
				VM: "P3", ID: "net0", Interface: "P3-net0", Type: nic.TypeTap, Source: "br0",
				MAC: mac2.String(),
			},
			Addresses: []nic.Address{{IP: address2}},
		},
	}
	return f
}

// rules replaces the rules of the host by objects of libnftables-json(5).
func (f *Facts) rules(objects string) {
	r, err := nft.Parse([]byte(`{"nftables":[` + objects + `]}`))
	if err != nil {
		panic(err)
	}
	f.Firewall = &firewall.Host{Ruleset: r}
}

func (f *Facts) filterVLANs() {
	f.link("br0").Bridge.VLANFiltering = true
	f.VLANs = map[int][]rtnl.VLANs{}
	for _, index := range []int{indexBr0, indexTap1, indexTap2} {
		f.VLANs[index] = []rtnl.VLANs{{First: 1, Last: 1, PVID: true, Untagged: true}}
	}
}

// toP3 has the frame go to P3.
func (f *Facts) toP3() {
	f.Peer = guestOn(f.link("P3-net0"), "P3", mac2, "br0", address2)
	f.To, f.Out = Target{Guest, "P3", address2}, Route{address2, indexBr0}
}

func (f *Facts) toHost() {
	f.To = Target{Host, "10.0.0.1", netip.MustParseAddr("10.0.0.1")}
}

// onBr1 moves the guest to the bridge with an uplink.
func (f *Facts) onBr1() {
	f.NIC = guestOn(f.link("P4-net0"), "P4", mac3, "br1", netip.MustParseAddr("192.0.2.40"))
	f.FDB, f.Back = nil, Route{netip.MustParseAddr("192.0.2.40"), indexEth0}
}

// onMap has the guest in a VLAN of br1, whose only way out is a device with a segment for VLAN 10.
// The device's port is in VLAN 11 as well, which it maps to none.
func (f *Facts) onMap(vlan int) {
	f.onBr1()
	f.link("br1").Bridge.VLANFiltering = true
	vx := f.link("eth1")
	vx.Kind, vx.VXLAN = "vxlan", &rtnl.VXLAN{External: true, VNIFilter: true}
	f.VLANs = map[int][]rtnl.VLANs{
		indexTap3: {{First: vlan, Last: vlan, PVID: true, Untagged: true}},
		indexEth1: {{First: 10, Last: 10, Tunnel: 10010}, {First: 11, Last: 11}},
	}
}

// lab makes br0 the bridge of a network with NAT and a server.
func (f *Facts) lab() {
	f.Network = &config.Network{
		Name: "br0", NAT: true, DHCP: true, Subnet: netip.MustParsePrefix("10.0.0.0/24"),
	}
	server := &rtnl.Link{
		Index: indexServer, Name: f.Network.ServerLink(), Kind: "veth", Up: true, Carrier: true, MTU: 1500,
		Master: indexBr0, Port: port(), LowerNS: -1, Alias: config.ServerMark{Network: "br0"}.String(),
	}
	f.Links = append(f.Links, server)
}

// TestNoFault: where all is well, no fault is named, and nothing is unknown.
func TestNoFault(t *testing.T) {
	for name, change := range map[string]func(*Facts){
		"outside":          func(*Facts) {},
		"outside, tcp":     func(f *Facts) { f.Frame = Frame{Kind: TCP, Port: 443} },
		"arp":              func(f *Facts) { f.Frame.Kind = ARP },
		"VLANs":            (*Facts).filterVLANs,
		"to P3":            (*Facts).toP3,
		"to P3, arp":       func(f *Facts) { f.toP3(); f.Frame.Kind = ARP },
		"to P3 with VLANs": func(f *Facts) { f.toP3(); f.filterVLANs() },
		"to the host":      (*Facts).toHost,
		"uplink":           (*Facts).onBr1,
		"uplink, mapped":   func(f *Facts) { f.onMap(10) },
		"uplink of a VLAN that is not mapped": func(f *Facts) {
			f.onMap(30)
			f.Links = append(f.Links, &rtnl.Link{
				Index: indexServer, Name: "eth2", Up: true, Carrier: true, MTU: 1500, LowerNS: -1, Master: indexBr1,
				Port: port(),
			})
			f.VLANs[indexServer] = []rtnl.VLANs{{First: 30, Last: 30}}
		},
		"uplink, dhcp":  func(f *Facts) { f.onBr1(); f.Frame.Kind = DHCP },
		"network":       (*Facts).lab,
		"network, dhcp": func(f *Facts) { f.lab(); f.Frame.Kind = DHCP },
		"a switch": func(f *Facts) {
			f.onSwitch()
			f.rules(`{"chain":{"family":"netdev","table":"vmnet-switch-P2-net0","name":"ingress",` +
				`"dev":"P2-net0","hook":"ingress","policy":"drop"}}`) // by which the switch takes its frames
		},
		"dhcp of the host": func(f *Facts) { f.Frame.Kind, f.ServesDHCP = DHCP, true },
		"an address that port security knows": func(f *Facts) {
			f.NIC.PortSecurity, f.NIC.IP = "all", []netip.Addr{address1}
		},
	} {
		f := world()
		change(f)
		for _, s := range Follow(f).Steps {
			if s.Verdict != Passes {
				t.Errorf("%s: %+v", name, s)
			}
		}
	}
}

// fault is a fault of a host on which all else is well, and what the walk ends with.
type fault struct {
	name             string
	change           func(*Facts)
	where, why, cure string
}

// TestFaults: the walk ends at each fault, with its reason and cure.
func TestFaults(t *testing.T) {
	seen := map[string]bool{}
	for _, tc := range faults {
		if seen[tc.name] {
			t.Errorf("%s is there twice", tc.name)
		}
		seen[tc.name] = true
		t.Run(tc.name, func(t *testing.T) {
			f := world()
			tc.change(f)
			w := Follow(f)
			s := w.Stopped()
			if s == nil {
				t.Fatalf("nothing stops it:\n%s", w.Text(80, nil))
			}
			if !strings.HasPrefix(s.Where, tc.where) || !strings.Contains(s.Why, tc.why) ||
				!strings.Contains(s.Cure, tc.cure) {
				t.Errorf("%+v", *s)
			}
			if last := w.Steps[len(w.Steps)-1]; last.Verdict != Stops {
				t.Errorf("the walk goes on: %+v", last)
			}
			for line := range strings.Lines(w.Text(80, nil)) {
				if n := len(strings.TrimRight(line, "\n")); n > 80 && strings.Contains(strings.TrimSpace(line), " ") {
					t.Errorf("%d columns: %s", n, line)
				}
			}
		})
	}
	t.Logf("%d faults", len(faults))
}
