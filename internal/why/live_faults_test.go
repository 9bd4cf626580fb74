package why

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"

	"vmnet/bridge/inbound"
	"vmnet/bridge/portsec"
	"vmnet/internal/kernel/announce"
	"vmnet/internal/nstest"
	"vmnet/internal/vmm/qmptest"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

// liveFaults are made by commands. TAP0 stands for the tap of net0, MAC0 for its address.
var liveFaults = []broken{
	{
		name: "bridge down", make: "ip link set br0 down",
		mend:  "ip link set br0 up; ip route replace default via 192.0.2.1 dev up0",
		where: "bridge br0", why: "it is down",
	},
	{
		name: "tap down", make: "ip link set TAP0 down", mend: "ip link set TAP0 up", where: "tap TAP0",
		why: "it is down",
	},
	{
		name: "on no bridge", make: "ip link set TAP0 nomaster", mend: "ip link set TAP0 master br0",
		where: "tap TAP0",
		why:   "it is on no bridge",
	},
	{
		name: "on another bridge", make: "ip link set TAP0 master br1", mend: "ip link set TAP0 master br0",
		where: "tap TAP0", why: "it is on br1, and belongs on br0",
	},
	{
		name: "disabled", make: "bridge link set dev TAP0 state 0", mend: "bridge link set dev TAP0 state 3",
		where: "port TAP0", why: "it is disabled",
	},
	{
		name: "learning", make: "bridge link set dev TAP0 state 2", mend: "bridge link set dev TAP0 state 3",
		where: "port TAP0", why: "learning",
	},
	{
		name: "STP listens",
		make: "ip link set br0 type bridge stp_state 1 forward_delay 3000; ip link set TAP0 nomaster; " +
			"ip link set TAP0 master br0",
		mend: "ip link set br0 type bridge stp_state 0; ip link set br0 type bridge forward_delay 0; " +
			"ip link set TAP0 nomaster; ip link set TAP0 master br0",
		where: "port TAP0", why: "in state listening",
	},
	{
		name: "locked", make: "bridge link set dev TAP0 locked on; ip link set TAP0 type bridge_slave fdb_flush",
		mend: "bridge link set dev TAP0 locked off", where: "port TAP0", why: "it is locked",
	},
	{
		name: "isolated both", make: "bridge link set dev TAP0 isolated on; bridge link set dev TAP1 isolated on",
		mend: "bridge link set dev TAP0 isolated off; bridge link set dev TAP1 isolated off", to: "VM/net1",
		where: "port TAP1", why: "isolated ports",
	},
	{
		name: "neither learned nor flooded",
		make: "bridge link set dev TAP1 learning off flood off; ip link set TAP1 type bridge_slave fdb_flush",
		mend: "bridge link set dev TAP1 learning on flood on", to: "VM/net1", where: "port TAP1",
		why: "no frames to unknown addresses",
	},
	{
		name: "no broadcasts", make: "bridge link set dev TAP1 bcast_flood off",
		mend: "bridge link set dev TAP1 bcast_flood on",
		to:   "VM/net1", frame: "arp", where: "port TAP1", why: "no broadcast frames",
	},
	{
		name: "peer's tap down", make: "ip link set TAP1 down", mend: "ip link set TAP1 up", to: "VM/net1",
		where: "port TAP1", why: "down",
	},
	{
		name: "carrier off", make: "ip link set TAP0 carrier off", mend: "ip link set TAP0 carrier on",
		where: "tap TAP0",
		why:   "its carrier is off",
	},
	{
		name: "ip_forward off", make: "sysctl -qw net.ipv4.ip_forward=0", mend: "sysctl -qw net.ipv4.ip_forward=1",
		where: "host", why: "net.ipv4.ip_forward is 0",
	},
	{
		name: "forwarding off on the bridge", make: "sysctl -qw net.ipv4.conf.br0.forwarding=0",
		mend: "sysctl -qw net.ipv4.conf.br0.forwarding=1", where: "host", why: "net.ipv4.conf.br0.forwarding is 0",
	},
	{
		name: "rp_filter", make: "sysctl -qw net.ipv4.conf.br0.rp_filter=1; ip route add 10.0.0.11/32 dev up0",
		mend: "ip route del 10.0.0.11/32 dev up0; sysctl -qw net.ipv4.conf.br0.rp_filter=0", where: "rp_filter",
		why: "its own route there is by up0",
	},
	{
		name: "no default route", make: "ip route del default", mend: "ip route add default via 192.0.2.1 dev up0",
		where: "route to outside", why: "no default route",
	},
	{
		name: "no route to a target", make: "ip route add unreachable 203.0.113.0/24",
		mend: "ip route del unreachable 203.0.113.0/24", to: "203.0.113.5", where: "route to 203.0.113.5",
		why: "no route",
	},
	{
		name: "Docker",
		make: "nft 'add table ip filter; add chain ip filter DOCKER-USER; add chain ip filter FORWARD " +
			"{ type filter hook forward priority 0; policy drop; }; add rule ip filter FORWARD jump DOCKER-USER; " +
			"add rule ip filter FORWARD ct state established,related accept'",
		mend: "nft delete table ip filter", where: "chain ip filter FORWARD", why: "Docker drops it",
	},
	{
		name: "one port is dropped",
		make: "nft 'add table inet t; add chain inet t f { type filter hook forward priority 0; policy accept; }; " +
			"add rule inet t f ip saddr 10.0.0.0/24 tcp dport { 25, 465 } drop'",
		mend: "nft delete table inet t", frame: "tcp:25", where: "chain inet t f", why: "drops it",
	},
	{
		name: "input dropped",
		make: "nft 'add table inet t; add chain inet t i { type filter hook input priority 0; policy drop; }; " +
			"add rule inet t i iifname != \"br*\" accept'",
		mend: "nft delete table inet t", to: "10.0.0.1", frame: "tcp:22", where: "chain inet t i", why: "drops it",
	},
	{
		name: "a chain of family bridge",
		make: "nft 'add table bridge b; add chain bridge b f { type filter hook forward priority 0; " +
			"policy accept; }; " +
			"add rule bridge b f ether saddr MAC0 drop'",
		mend: "nft delete table bridge b", to: "VM/net1", where: "chain bridge b f", why: "drops it",
	},
	{
		name: "a chain at the tap",
		make: "nft 'add table netdev n; add chain netdev n i " +
			"{ type filter hook ingress device TAP0 priority 0; policy drop; }'",
		mend: "nft delete table netdev n", where: "chain netdev n i", why: "drops it",
	},
	{
		name: "br_netfilter with FORWARD DROP",
		make: "sysctl -qw net.bridge.bridge-nf-call-iptables=1; nft 'add table ip filter; " +
			"add chain ip filter DOCKER; " +
			"add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }'",
		mend: "nft delete table ip filter; sysctl -qw net.bridge.bridge-nf-call-iptables=0", to: "VM/net1",
		where: "chain ip filter FORWARD, by br_netfilter", why: "Docker drops it",
	},
	{name: "no DHCP server", frame: "dhcp", where: "bridge br0", why: "nothing on it serves DHCP"},
	{
		name: "no way out", make: "ip address del 10.0.0.1/24 dev br0", mend: "ip address add 10.0.0.1/24 dev br0",
		where: "bridge br0", why: "nothing leads out of it",
	},
	{
		name: "wrong network", make: "ip address del 10.0.0.1/24 dev br0; ip address add 10.77.0.1/24 dev br0; " +
			"ip neigh replace 10.0.0.11 lladdr MAC0 dev br0 nud permanent",
		mend:  "ip address del 10.77.0.1/24 dev br0; ip address add 10.0.0.1/24 dev br0",
		where: "host on br0", why: "on another network",
	},
	{
		name: "IPv6 off",
		make: "ip address add 2001:db8:1::1/64 dev br0 nodad; sysctl -qw net.ipv6.conf.br0.disable_ipv6=1",
		mend: "sysctl -qw net.ipv6.conf.br0.disable_ipv6=0", to: "2001:db8:2::1", where: "host on br0",
		why: "IPv6 is off",
	},
	{
		name: "static entry elsewhere", make: "bridge fdb replace MAC0 dev TAP1 master static",
		mend: "bridge fdb del MAC0 dev TAP1 master", where: "the answer", why: "leads frames for MAC0 to TAP1",
	},
	{
		name: "learned elsewhere", make: "bridge fdb replace MAC0 dev TAP1 master dynamic",
		mend: "bridge fdb del MAC0 dev TAP1 master", where: "the answer", why: "has learned MAC0 behind TAP1",
	},
	{
		name: "the host has the guest's address", make: "ip address add 10.0.0.11/32 dev up0",
		mend:  "ip address del 10.0.0.11/32 dev up0",
		where: "the answer", why: "the host itself has",
	},
	{
		name: "uplink down", make: "ip link set up1 down", mend: "ip link set up1 up", nic: "net2", where: "port up1",
		why: "down",
	},
	{
		name: "uplink disabled", make: "bridge link set dev up1 state 0", mend: "bridge link set dev up1 state 3",
		nic:   "net2",
		where: "port up1", why: "it is disabled",
	},
	{
		name: "MTU of the uplink", make: "ip link set up1 mtu 1400",
		mend: "ip link set up1 mtu 1500; ip link set br1 mtu 1500",
		nic:  "net2", frame: "tcp:443", where: "port up1", why: "larger than 1400 bytes",
	},
	{
		name: "MTU of the other guest", make: "ip link set TAP1 mtu 1280", mend: "ip link set TAP1 mtu 1500",
		to: "VM/net1", frame: "tcp:443", where: "port TAP1", why: "larger than 1280 bytes",
	},
}

// functionFaults are those that take more than commands.
func (s *site) functionFaults() []broken {
	cable := func(name string) (off, on func(*site)) {
		return func(s *site) { s.in(s.beyond, "ip link set "+name+" down") },
			func(s *site) { s.in(s.beyond, "ip link set "+name+" up") }
	}
	far0Off, far0On := cable("far0")
	far1Off, far1On := cable("far1")
	var served net.PacketConn
	var stop func()
	return []broken{
		{
			name: "host's uplink without carrier", do: far0Off, undo: far0On, where: "route to outside",
			why: "up0 has no carrier",
		},
		{
			name: "uplink without carrier", nic: "net2", do: far1Off, undo: far1On, where: "port up1",
			why: "it has no carrier",
		},
		{
			name: "DHCP server behind a firewall", frame: "dhcp", where: "chain inet t i", why: "drops it",
			make: "nft 'add table inet t; add chain inet t i { type filter hook input priority 0; policy accept; }; " +
				"add rule inet t i udp dport 67 drop'",
			mend: "nft delete table inet t",
			do: func(s *site) {
				err := s.ns.Do(func() (err error) { served, err = net.ListenPacket("udp4", ":67"); return err })
				if err != nil {
					s.Fatal(err)
				}
			},
			undo: func(*site) { _ = served.Close() },
		},
		{
			name: "duplicate MAC", where: "the answer", why: "has the MAC address MAC0 as well",
			do: func(s *site) {
				mac, err := net.ParseMAC(s.macs["net0"])
				if err != nil {
					s.Fatal(err)
				}
				s.plug(nic.Spec{NIC: "net5", Bridge: "br0", MAC: mac})
			},
			undo: func(s *site) { s.unplug("net5") },
		},
		{
			name: "duplicate address", where: "the answer", why: "has the address 10.0.0.11 as well",
			do: func(s *site) {
				s.plug(nic.Spec{
					NIC: "net5", Bridge: "br0", Security: nic.Security{Checks: portsec.IP},
					IP: []netip.Addr{netip.MustParseAddr("10.0.0.11")},
				})
			},
			undo: func(s *site) { s.unplug("net5") },
		},
		{
			name: "spoofed address", where: "port security", why: "the guest has the address 10.0.0.11",
			do: func(s *site) {
				s.set("net0", func(n *nic.Spec) {
					n.Security.Checks, n.IP = portsec.IP, []netip.Addr{netip.MustParseAddr("10.0.0.99")}
				})
			},
			undo: func(s *site) { s.set("net0", func(n *nic.Spec) { n.Security.Checks, n.IP = 0, nil }) },
		},
		{
			name: "not allowed in", to: "VM/net1", frame: "tcp:80", where: "allow in of VM/net1",
			why: "only answers and tcp:22",
			do: func(s *site) {
				s.set("net1", func(n *nic.Spec) {
					n.AllowIn = inbound.Rules{{Protocol: inbound.TCP, First: 22, Last: 22}}
				})
			},
			undo: func(s *site) { s.set("net1", func(n *nic.Spec) { n.AllowIn = nil }) },
		},
		{
			name: "vhost thread ended", where: "guest VM/net0", why: "its vhost thread has ended",
			do: func(s *site) {
				s.qemu.Behave(qmptest.Behaviour{VirtioStatus: `{"vhost-started": true, "status": {"statuses": [` +
					`"VIRTIO_CONFIG_S_DRIVER_OK: Driver setup and ready"]}}`})
			},
			undo: func(s *site) { s.qemu.Behave(qmptest.Behaviour{}) },
		},
		{
			name: "full queue", to: "VM/net1", where: "queue of TAP1", why: "the guest does not read it",
			do:   func(s *site) { stop = s.floods("br0") },
			undo: func(*site) { stop() },
		},
	}
}

// movedBridge: a port of which br3 has the address leaves it, and the guest sends to that address.
func (s *site) movedBridge() {
	s.Helper()
	was := mac("02:00:00:00:00:03")
	s.sh("ip link add br3 up type bridge forward_delay 0; ip address add 10.3.0.1/24 dev br3; " +
		"ip link add low3 address " + was.String() + " type veth peer name low4; ip link set low3 master br3")
	s.plug(nic.Spec{NIC: "net6", Bridge: "br3"})
	defer s.unplug("net6")
	own := mac(s.macs["net6"])
	frame := append(append(append([]byte{}, was...), own...), make([]byte, 48)...)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				s.sends("net6", frame)
			}
		}
	}()
	defer func() { close(stop); <-done }()
	if found := step(s.lookAt("net6").Live, neighbours); found != nil {
		s.Errorf("the bridge has the address: %+v", found)
	}
	s.sh("ip link del low3; ip link set br3 address 02:00:00:00:00:04") // vmnet has had it keep its address
	b := broken{name: "bridge MAC moved", where: neighbours, why: "which nothing on br3 has"}
	w := s.lookAt("net6")
	if found := step(w.Live, b.where); found == nil || !strings.Contains(found.Why, b.why) {
		s.Errorf("want %s; found\n%s", b.why, w.Text(80, nil))
	} else {
		s.documented(b.name, found)
	}
}

// floods sends broadcasts at a device until stop is called.
func (s *site) floods(device string) (stop func()) {
	l, err := nstest.Handle(s, s.ns).LinkByName(device)
	if err != nil {
		s.Fatal(err)
	}
	broadcasts := announce.Frames(mac3, slices.Repeat([]netip.Addr{address1}, 200))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			if err := announce.Send(s.ns, l.Attrs().Index, broadcasts...); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	return func() {
		cancel()
		if err := <-done; err != nil {
			s.Error(err)
		}
	}
}

// unplug takes a NIC from the guest.
func (s *site) unplug(id string) {
	s.Helper()
	if _, err := s.m.Detach(s.ctx(), tapmgr.DetachSpec{Target: nic.Target{VM: s.name}, NIC: id}); err != nil {
		s.Fatal(err)
	}
}
