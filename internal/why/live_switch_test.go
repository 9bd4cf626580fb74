package why

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/control"
	"vmnet/bridge/vswitch/control/server"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/endpoint"
	"vmnet/internal/kernel/announce"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
	"vmnet/tapmgr/nic"
)

// runSwitch runs a switch in the test, whose path and end it returns.
func (s *site) runSwitch() (path string, end func()) {
	s.Helper()
	dir, err := os.MkdirTemp("", "why") // a socket's path must be short
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { _ = os.RemoveAll(dir) })
	path = filepath.Join(dir, "sw")
	l, err := server.Listen(path)
	if err != nil {
		s.Fatal(err)
	}
	sw := vswitch.New(vswitch.Config{})
	srv := server.New(sw, control.Info{Name: path})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, l) }()
	ended := false
	end = func() {
		if ended {
			return
		}
		ended = true
		cancel()
		if err := errors.Join(<-done, sw.Close(), l.Close()); err != nil {
			s.Error(err)
		}
		srv.Close()
	}
	s.Cleanup(end)
	s.m.AskSwitches, s.m.Switches = true, []string{path}
	return path, end
}

// loop gives the switch two uplinks that are connected to each other, and waits until it has
// stopped the first one.
func (s *site) loop(c *control.Client) {
	s.Helper()
	s.sh("ip link add br9 up type bridge")
	for _, name := range []string{"u1", "u2"} {
		s.sh(fmt.Sprintf("ip link add %s up type veth peer name w%[1]s; ip link set w%[1]s up", name))
		files, err := endpoint.PacketFiles(s.ns, name)
		if err != nil {
			s.Fatal(err)
		}
		p := control.Port{Name: name, Kind: control.Packet, Device: name}
		p.Config.NoLoopGuard = name == "u2"
		s.addPort(c, p, files)
	}
	s.sh("ip link set wu1 master br9; ip link set wu2 master br9")
	br, err := nstest.Handle(s, s.ns).LinkByName("br9")
	if err != nil {
		s.Fatal(err)
	}
	broadcast := announce.Frames(mac3, []netip.Addr{address1})
	nstest.Eventually(s, patience, "the switch stops u1", func() bool {
		if err := announce.Send(s.ns, br.Attrs().Index, broadcast...); err != nil {
			s.Fatal(err)
		}
		ports, err := c.Ports(s.ctx())
		return err == nil && slices.ContainsFunc(ports, func(p control.Port) bool {
			return p.Name == "u1" && p.Stats != nil && p.Stats.State == vport.StateStopped
		})
	})
	s.sh("ip link set wu2 nomaster")
}

// sends writes frames to a tap as its VMM does, by a copy of the VMM's descriptor.
func (s *site) sends(id string, frames ...[]byte) {
	s.Helper()
	d, err := s.m.ShowNIC(s.ctx(), s.name, id)
	if err != nil {
		s.Fatal(err)
	}
	process, err := unix.PidfdOpen(d.Holders[0].PID, 0)
	if err != nil {
		s.Fatal(err)
	}
	defer unix.Close(process)
	tap, err := unix.PidfdGetfd(process, d.Holders[0].FDs[0], 0)
	if err != nil {
		s.Fatal(err)
	}
	defer unix.Close(tap)
	for _, f := range frames {
		if _, err := unix.Write(tap, append(make([]byte, 10), f...)); err != nil { // an empty vnet header
			s.Fatal(err)
		}
	}
}

// leaves has the frame leave the switch by a VXLAN port, and then by a tun to the host's IP.
func (s *site) leaves(c *control.Client) {
	s.Helper()
	segment := vport.VXLAN{VNI: 7, Remotes: []netip.Addr{netip.MustParseAddr("203.0.113.9")}}
	files, err := endpoint.VXLANFiles(s.ns, segment)
	if err != nil {
		s.Fatal(err)
	}
	s.addPort(c, control.Port{Name: "vx", Kind: control.VXLAN, VXLAN: &segment}, files)
	s.well("net0", "outside", "arp")
	far1 := func(state string) func(*site) {
		return func(s *site) { s.in(s.beyond, "ip link set far1"+state) }
	}
	s.breaks([]broken{
		{
			name: "switch: VXLAN without a route", make: "ip route del default",
			mend:  "ip route add default via 192.0.2.1 dev up0",
			where: "port vx", why: "no route of the host leads to 203.0.113.9",
		},
		{
			name: "switch: VXLAN by a link that is down", make: "ip route add 203.0.113.9 dev up1", do: far1(" down"),
			undo:  far1(" up"),
			mend:  "ip route del 203.0.113.9 dev up1",
			where: "port vx", why: "203.0.113.9 by up1, which is down or has no carrier",
		},
	})
	if err := c.RemovePort(s.ctx(), "vx"); err != nil {
		s.Fatal(err)
	}
	t, err := tun.CreateTun(s.ns, "tun0")
	if err != nil {
		s.Fatal(err)
	}
	s.sh("ip address add 10.9.0.1/24 dev tun0; ip link set tun0 up")
	host := control.Port{
		Name: "tun0", Kind: control.Tun, Device: "tun0",
		Tun:    &vport.Tun{Addresses: []netip.Prefix{netip.MustParsePrefix("10.9.0.1/24")}},
		Config: vport.Config{MACs: []net.HardwareAddr{mac3}},
	}
	s.addPort(c, host, t.Queues())
	s.well("net0", "10.9.0.1", "tcp:22")
	s.breaks([]broken{
		{
			name: "ip_forward off", make: "sysctl -qw net.ipv4.ip_forward=0",
			mend:  "sysctl -qw net.ipv4.ip_forward=1",
			where: "host", why: "net.ipv4.ip_forward is 0",
		},
		{
			name: "input dropped", to: "10.9.0.1", frame: "tcp:22",
			make: "nft 'add table inet t; add chain inet t i { type filter hook input priority 0; policy accept; }; " +
				"add rule inet t i iifname tun0 drop'",
			mend: "nft delete table inet t", where: "chain inet t i", why: "drops it",
		},
		{
			name: "switch: tun down", to: "10.9.0.1", make: "ip link set tun0 down", mend: "ip link set tun0 up",
			where: "host on tun0", why: "it is down",
		},
	})
	if err := c.RemovePort(s.ctx(), "tun0"); err != nil {
		s.Fatal(err)
	}
}

// addPort gives the switch a port, and its files away.
func (s *site) addPort(c *control.Client, p control.Port, files []*os.File) {
	s.Helper()
	err := c.AddPort(s.ctx(), p, files...)
	for _, f := range files {
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		s.Fatal(err)
	}
}

// TestLiveFaultsOfSwitches: net0 and net1 are on a switch in userspace.
func TestLiveFaultsOfSwitches(t *testing.T) {
	s := newKinds(t)
	path, end := s.runSwitch()
	for _, id := range []string{"net0", "net1"} {
		s.plug(nic.Spec{NIC: id, Switch: &nic.Switch{Name: path, By: nic.ByTap}})
	}
	c, err := control.Dial(s.ctx(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	was := map[string]vport.Config{}
	ports, err := c.Ports(s.ctx())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range ports {
		was[p.Name] = p.Config
	}
	change := func(change func(*vport.Config), ids ...string) func(*site) {
		return func(s *site) {
			for _, id := range ids {
				cfg := was[s.tap(id)]
				change(&cfg)
				if err := c.SetPort(s.ctx(), s.tap(id), cfg); err != nil {
					s.Fatal(err)
				}
			}
		}
	}
	back := change(func(*vport.Config) {}, "net0", "net1")
	s.well("net0", s.name+"/net1", "icmp")
	s.breaks([]broken{
		{
			name: "switch: another VLAN", do: change(func(c *vport.Config) { c.VLAN = 20 }, "net1"), undo: back,
			to:    "VM/net1",
			where: "port TAP1", why: "not in VLAN 1",
		},
		{
			name: "switch: isolated both", do: change(func(c *vport.Config) { c.Isolated = true }, "net0", "net1"),
			undo: back,
			to:   "VM/net1", where: "port TAP1", why: "isolated ports",
		},
		{
			name: "switch: locked to another address", undo: back, to: "VM/net1", where: "port TAP0",
			why: "locked to other",
			do:  change(func(c *vport.Config) { c.MACs = append(c.MACs[:0:0], mac3) }, "net0"),
		},
		{
			name: "switch: down", make: "ip link set TAP1 down", mend: "ip link set TAP1 up", to: "VM/net1",
			where: "port TAP1",
			why:   "it is down",
		},
		{name: "switch: no uplink", where: "switch " + path, why: "nothing leads out of it"},
	})
	s.well("net0", s.name+"/net1", "icmp")
	change(func(c *vport.Config) { c.Storm.Broadcast = 1 }, "net0")(s)
	broadcasts := announce.Frames(mac3, slices.Repeat([]netip.Addr{address1}, 20))
	s.sends("net0", broadcasts...)
	s.named(broken{
		name: "storm limit", to: "VM/net1", frame: "arp", where: "storm limit of TAP0", why: "it has dropped",
		maybe: true,
	})
	back(s)
	s.leaves(c)
	s.loop(c)
	s.named(broken{name: "switch: loop", frame: "arp", where: "port u1", why: "a loop"})
	end()
	s.named(broken{name: "switch ended", where: "switch " + path, why: "has ended"})
}
