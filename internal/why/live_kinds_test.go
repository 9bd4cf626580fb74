package why

import (
	"context"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vmnet/internal/network"
	"vmnet/internal/network/config"
	"vmnet/internal/ovstest"
	"vmnet/internal/vmm/qmptest"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr/nic"
)

// newKinds is a site whose guest is a process that holds files and answers like a QEMU: the
// devices, switches and rules are real, and cost no boot.
func newKinds(t *testing.T) *site {
	t.Helper()
	s := newHost(t)
	s.qemu = qmptest.Start(t, qmptest.Config{Name: s.name})
	return s
}

// TestLiveFaultsOfMacvtaps: net0 and net1 are on up2, beyond which is a bridge.
func TestLiveFaultsOfMacvtaps(t *testing.T) {
	s := newKinds(t)
	s.sh("ip link add br2 up type bridge; ip link set far2 master br2")
	for _, id := range []string{"net0", "net1"} {
		s.plug(nic.Spec{NIC: id, Lower: &nic.Lower{Kind: vtap.Macvtap, Device: "up2", Mode: "bridge"}})
	}
	mode := func(mode string) func(*site) {
		return func(s *site) {
			for _, id := range []string{"net0", "net1"} {
				s.set(id, func(n *nic.Spec) { n.Lower.Mode = mode })
			}
		}
	}
	s.well("net0", s.name+"/net1", "icmp")
	s.well("net0", "outside", "icmp")
	s.breaks([]broken{
		{name: "macvtap: its own host", to: "198.18.0.1", where: "parent device up2", why: "own addresses on up2"},
		{
			name: "macvtap: parent down", make: "ip link set up2 down", mend: "ip link set up2 up",
			where: "macvtap TAP0",
			why:   "up2 is down",
		},
		{
			name: "macvtap: no carrier", make: "ip link set far2 down", mend: "ip link set far2 up",
			where: "macvtap TAP0",
			why:   "up2 has no carrier",
		},
		{
			name: "macvtap: private", do: mode("private"), undo: mode("bridge"), to: "VM/net1",
			where: "parent device up2",
			why:   "mode private",
		},
		{
			name: "macvtap: VEPA without hairpin", do: mode("vepa"), undo: func(*site) {}, to: "VM/net1",
			where: "port far2",
			why:   "no hairpin",
		},
		{
			name: "macvtap: another MAC", where: "macvtap TAP0", why: "takes in only frames for MAC0",
			do: func(s *site) {
				s.qemu.Behave(qmptest.Behaviour{RxFilter: `{"main-mac": "52:54:00:99:99:99", "promiscuous": false}`})
			},
			undo: func(s *site) { s.qemu.Behave(qmptest.Behaviour{}) },
		},
	})
	s.sh("bridge link set dev far2 hairpin on")
	s.well("net0", s.name+"/net1", "icmp")
}

// TestLiveFaultsOfRoutedGuests: net0 has an address of the LAN at up0.
func TestLiveFaultsOfRoutedGuests(t *testing.T) {
	s := newKinds(t)
	s.plug(nic.Spec{NIC: "net0", Routed: "up0", IP: []netip.Addr{netip.MustParseAddr("192.0.2.50")}})
	s.well("net0", "outside", "icmp")
	s.well("net0", "192.0.2.7", "tcp:22")
	s.breaks([]broken{
		{
			name: "routed: nobody answers for it", make: "ip neigh del proxy 192.0.2.50 dev up0",
			mend: "ip neigh add proxy 192.0.2.50 dev up0", where: "proxy entry on up0", why: "to nobody",
		},
		{
			name: "routed: no route to it", make: "ip route del 192.0.2.50 dev TAP0",
			mend:  "ip route add 192.0.2.50 dev TAP0",
			where: "host on TAP0", why: "no route to 192.0.2.50 by its tap",
		},
		{
			name:  "routed: no route to it",
			make:  "sysctl -qw net.ipv4.conf.TAP0.rp_filter=1; ip route replace 192.0.2.50 dev up0",
			mend:  "sysctl -qw net.ipv4.conf.TAP0.rp_filter=0; ip route replace 192.0.2.50 dev TAP0",
			where: "host on TAP0", why: "no route to 192.0.2.50 by its tap",
		},
		{
			name: "routed: not forwarded", make: "sysctl -qw net.ipv4.conf.TAP0.forwarding=0",
			mend: "sysctl -qw net.ipv4.conf.TAP0.forwarding=1", where: "host",
			why: "net.ipv4.conf.TAP0.forwarding is 0",
		},
		{
			name: "Docker",
			make: "nft 'add table ip filter; add chain ip filter DOCKER-USER; add chain ip filter FORWARD " +
				"{ type filter hook forward priority 0; policy drop; }'",
			mend: "nft delete table ip filter", where: "chain ip filter FORWARD", why: "Docker drops it",
		},
		{
			name: "routed: DHCP", frame: "dhcp", where: "host on TAP0", why: "gets no address by DHCP",
		},
	})
	s.well("net0", "outside", "icmp")
	w := s.look() // such a guest answers nobody
	stop := w.Stopped()
	if stop == nil || stop.Where != "ARP at "+s.tap("net0") ||
		!strings.Contains(stop.Why, "192.0.2.50 does not answer") {
		t.Errorf("nobody answers:\n%s", w.Text(80, nil))
	}
	if echo := step(w.Live, "echo from the host"); echo == nil || echo.Verdict != Unknown {
		t.Errorf("a guest need not answer an echo request:\n%s", w.Text(80, nil))
	}
}

// step returns the step of a place, or nil.
func step(steps []Step, where string) *Step {
	if i := slices.IndexFunc(steps, func(s Step) bool { return s.Where == where }); i >= 0 {
		return &steps[i]
	}
	return nil
}

// TestLiveFaultsOfOpenVSwitch: net0 and net1 are ports of a real Open vSwitch, which is asked what
// it would do with the frame (ofproto/trace).
func TestLiveFaultsOfOpenVSwitch(t *testing.T) {
	s := newKinds(t)
	o := ovstest.New(t, s.ns)
	o.StartSwitch()
	o.AddBridge("br-int")
	s.m.UseDatabases(o.Socket())
	for _, id := range []string{"net0", "net1"} {
		s.plug(nic.Spec{NIC: id, Bridge: "br-int", OVSDB: o.Socket()})
	}
	vsctl := "ovs-vsctl --timeout=30 --db=unix:" + o.Socket() + " "
	ofctl := func(command, flow string) string {
		return "ovs-ofctl " + command + " unix:" + filepath.Join(o.Dir, "br-int.mgmt") + " '" + flow + "'"
	}
	wellTraced := func() {
		s.well("net0", s.name+"/net1", "icmp")
		w := s.follow("net0", s.name+"/net1", "icmp")
		if asked := step(w.Steps, "flows of br-int"); asked == nil || asked.Verdict != Passes {
			t.Errorf("ovs-vswitchd was not asked:\n%s", w.Text(80, nil))
		}
	}
	wellTraced()
	to := "VM/net1"
	s.breaks([]broken{
		{
			name: "OVS: tag", make: vsctl + "set port TAP0 tag=5", mend: vsctl + "clear port TAP0 tag", to: to,
			where: "bridge br-int", why: "VLAN 5 leave TAP1 with a tag",
		},
		{
			name: "OVS: both tags", make: vsctl + "set port TAP0 tag=5 -- set port TAP1 tag=6",
			mend: vsctl + "clear port TAP0 tag -- clear port TAP1 tag", to: to, where: "bridge br-int",
			why: "TAP1 is not in VLAN 5",
		},
		{
			name: "OVS: protected", make: vsctl + "set port TAP0 protected=true -- set port TAP1 protected=true",
			mend: vsctl + "set port TAP0 protected=false -- set port TAP1 protected=false", to: to,
			where: "bridge br-int", why: "protected",
		},
		{
			name: "OVS: link down", make: "ip link set TAP1 down", mend: "ip link set TAP1 up", to: to,
			where: "port TAP1",
			why:   "sees no carrier",
		},
		{
			name: "OVS: a flow drops it", make: ofctl("add-flow", "priority=9,dl_src=MAC0,actions=drop"),
			mend: ofctl("del-flows", "dl_src=MAC0"), to: to, where: "flows of br-int", why: "ovs-vswitchd drops it",
		},
		{
			name: "OVN: no controller", to: to, where: "port TAP0", why: "OVN has installed no flows for lp1",
			make: vsctl + "set Open_vSwitch . external_ids:system-id=hv1 external_ids:ovn-remote=unix:/none " +
				"external_ids:ovn-encap-type=geneve external_ids:ovn-encap-ip=192.0.2.7 -- " +
				"set interface TAP0 external_ids:iface-id=lp1",
			mend: vsctl + "clear Open_vSwitch . external_ids -- remove interface TAP0 external_ids iface-id",
		},
		{
			name: "OVS: another NIC's row", make: vsctl + "set interface TAP0 external_ids:attached-mac=02:00:00:00:00:09",
			mend: vsctl + "set interface TAP0 external_ids:attached-mac=MAC0", to: to, where: "port TAP0",
			why: "left behind by another NIC",
		},
	})
	wellTraced()
	s.breaks([]broken{
		{
			name: "OVS: row deleted", make: vsctl + "del-port TAP0", to: to,
			where: "Open vSwitch", why: "it has no port TAP0",
		},
	})
}

// noServer is the service of networks without a server.
type noServer struct{}

func (noServer) Start(context.Context, *network.Manager, *config.Network) error { return nil }
func (noServer) Stop(context.Context, *network.Manager, *config.Network) error  { return nil }
func (noServer) Text(*config.Network) string                                    { return "" }
func (noServer) AtBoot(context.Context, *config.Network) bool                   { return true }

// TestLiveFaultsOfNetworks: net0 is on a network with NAT.
func TestLiveFaultsOfNetworks(t *testing.T) {
	s := newKinds(t)
	m := &network.Manager{NS: s.ns, Dir: s.dir, State: t.TempDir(), Service: noServer{}}
	if err := m.Open(); err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	subnet := netip.MustParsePrefix("10.0.0.0/24")
	n := &config.Network{Name: "lab", NAT: true, Subnet: subnet, Domain: "lab.internal"}
	err := m.Create(s.ctx(), network.Wanted{Network: n})
	if err != nil {
		t.Fatal(err)
	}
	s.plug(nic.Spec{NIC: "net0", Bridge: "lab"})
	change := func(change func(*config.Network)) func(*site) {
		return func(s *site) {
			now := *n
			change(&now)
			if err := s.dir.Write(&now); err != nil {
				s.Fatal(err)
			}
		}
	}
	s.sh("ip neigh replace 10.0.0.11 lladdr " + s.macs["net0"] + " dev lab nud permanent")
	s.well("net0", "outside", "tcp:443")
	s.breaks([]broken{
		{
			name: "ip_forward off", make: "sysctl -qw net.ipv4.ip_forward=0",
			mend:  "sysctl -qw net.ipv4.ip_forward=1",
			where: "host", why: "ip_forward is 0",
		},
		{
			name: "Docker",
			make: "nft 'add table ip filter; add chain ip filter DOCKER-USER; add chain ip filter FORWARD " +
				"{ type filter hook forward priority 0; policy drop; }'",
			mend: "nft delete table ip filter", where: "chain ip filter FORWARD", why: "Docker drops it",
		},
		{
			name: "network: no DHCP", frame: "dhcp", where: "network lab", why: "its file says no DHCP",
		},
		{
			name: "network: its server has ended", do: change(func(n *config.Network) { n.DHCP = true }),
			undo: change(func(n *config.Network) { n.DHCP = false }), frame: "dhcp", where: "server of lab",
			why: "no DHCP server runs",
		},
		{
			name: "network: its server cannot be reached", frame: "dhcp", where: "port " + n.ServerLink(),
			why:  "it is down",
			do:   change(func(n *config.Network) { n.DHCP = true }),
			undo: change(func(n *config.Network) { n.DHCP = false }),
			make: "ip link add " + n.ServerLink() + " type veth peer name served; ip link set " + n.ServerLink() +
				" master lab alias '" + config.ServerMark{Network: "lab", Settings: "x"}.String() + "'",
			mend: "ip link del " + n.ServerLink(),
		},
		{
			name: "network: no way out", do: change(func(n *config.Network) { n.NAT = false }),
			undo: change(func(n *config.Network) { n.NAT = true }), where: "network lab",
			why: "neither NAT nor an uplink",
		},
		{
			name: "network: masquerade flushed", make: "nft flush ruleset", where: "network lab", why: "rules: want",
		},
	})
	if _, _, err := m.Apply(s.ctx(), "lab"); err != nil {
		t.Fatal(err)
	}
	s.well("net0", "outside", "tcp:443")
}
