package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/internal/kernel/forwarding"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/network/config"
	"vmnet/internal/network/server"
	"vmnet/internal/nstest"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

var errBroken = errors.New("broken by the test")

// at returns a Run that fails in the place of step number i. Killed, it undoes nothing, as after a
// SIGKILL; the step was made then, or not.
func at(i int, killed, made bool) func(context.Context, []step.Step) error {
	return func(ctx context.Context, steps []step.Step) error {
		if !killed {
			if i < len(steps) {
				steps[i].Do = func(context.Context) error { return errBroken }
			}
			return step.Run(ctx, steps, nil)
		}
		for n, s := range steps {
			if n == i && !made {
				return errBroken
			}
			if err := s.Do(ctx); err != nil {
				return err
			}
			if n == i {
				return errBroken
			}
		}
		return nil
	}
}

// steps counts those of a verb, without running them.
func (x *h) steps(verb func() error) (n int) {
	x.Helper()
	x.m.Run = func(_ context.Context, steps []step.Step) error { n = len(steps); return nil }
	if err := verb(); err != nil {
		x.Fatal(err)
	}
	x.m.Run = nil
	return n
}

// full is a network that needs every kind of step.
func full() Wanted {
	n := labNetwork()
	n.Domain, n.MTU = "lab.internal", 9000
	n.Forwards = []config.Forward{{Protocol: "tcp", First: 8080, Last: 8080, Guest: "web", Port: 80}}
	return Wanted{Network: n}
}

// TestLiveCreateFails: an error in the place of each step leaves nothing.
func TestLiveCreateFails(t *testing.T) {
	x := newHost(t)
	before := x.left()
	create := func() error { return x.m.Create(x.ctx(), full()) }
	n := x.steps(create)
	if n < 7 {
		t.Fatalf("only %d steps", n)
	}
	for i := range n {
		x.m.Run = at(i, false, false)
		if err := create(); !errors.Is(err, errBroken) {
			t.Fatalf("step %d: %v", i, err)
		}
		x.wants(fmt.Sprintf("left by an error in step %d", i), x.left(), before)
	}
}

// TestLiveCreateKilled: whatever a killed create has left, apply completes it, or delete removes
// it.
func TestLiveCreateKilled(t *testing.T) {
	x := newHost(t)
	before := x.left()
	create := func() error { return x.m.Create(x.ctx(), full()) }
	for i := range x.steps(create) {
		for _, made := range []bool{false, true} {
			x.m.Run = at(i, true, made)
			if err := create(); !errors.Is(err, errBroken) {
				t.Fatalf("step %d: %v", i, err)
			}
			x.m.Run = nil
			if i%2 == 0 && (i > 0 || made) {
				if _, _, err := x.m.Apply(x.ctx(), "lab"); err != nil {
					t.Fatalf("apply after step %d: %v", i, err)
				}
				x.consistent()
			}
			if err := x.m.Delete(x.ctx(), "lab", false); err != nil && (i > 0 || made) {
				t.Fatalf("delete after step %d: %v", i, err)
			}
			x.wants(fmt.Sprintf("left by a kill in step %d", i), x.left(), before)
		}
	}
}

// TestLiveDeleteCutOff: an interrupted delete is repeated.
func TestLiveDeleteCutOff(t *testing.T) {
	x := newHost(t)
	before := x.left()
	if err := x.m.Create(x.ctx(), full()); err != nil {
		t.Fatal(err)
	}
	for i := range x.steps(func() error { return x.m.Delete(x.ctx(), "lab", false) }) {
		for _, made := range []bool{false, true} {
			x.m.Run = at(i, true, made)
			if err := x.m.Delete(x.ctx(), "lab", false); !errors.Is(err, errBroken) {
				break // fewer steps are left each time
			}
		}
	}
	x.m.Run = nil
	if err := x.m.Delete(x.ctx(), "lab", false); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	x.wants("left", x.left(), before)
	if err := x.m.Delete(x.ctx(), "lab", false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("delete of nothing: %v", err)
	}
}

// TestLiveReplaceFails: a change of a network that fails leaves the old one.
func TestLiveReplaceFails(t *testing.T) {
	x := newHost(t)
	n := x.create(labNetwork())
	file, err := os.ReadFile(x.m.Dir.Path("lab"))
	if err != nil {
		t.Fatal(err)
	}
	change := func() error {
		return x.m.Replace(x.ctx(), "lab", func(n *config.Network) error {
			n.Subnet, n.Hosts = netip.MustParsePrefix("10.77.0.0/24"), nil
			return nil
		})
	}
	for i := range x.steps(change) {
		x.m.Run = at(i, false, false)
		if err := change(); !errors.Is(err, errBroken) {
			t.Fatalf("step %d: %v", i, err)
		}
		x.m.Run = nil
		if now, err := os.ReadFile(x.m.Dir.Path("lab")); err != nil || string(now) != string(file) {
			t.Errorf("step %d: the file is %s, %v", i, now, err)
		}
		if _, _, err := x.m.Apply(x.ctx(), "lab"); err != nil { // the server, which was replaced
			t.Fatal(err)
		}
		x.consistent("lab")
	}
	if err := change(); err != nil {
		t.Fatal(err)
	}
	x.consistent("lab")
	x.wants("address", strings.Fields(x.ip(x.host, "-4", "-o", "addr", "show", "dev", n.Name))[3], "10.77.0.1/24")
}

// TestLiveServerKilled: of a server whose dnsmasq is killed nothing is left, and apply starts one.
func TestLiveServerKilled(t *testing.T) {
	x := newHost(t)
	n := x.create(labNetwork())
	const bound = 30 * time.Second // 100 ms on an idle machine
	// dnsmasq and the sender of router advertisements: each with the other.
	for _, victim := range []int{0, 1, 0} {
		port, err := server.Running(x.m.nl, n)
		if err != nil || port == nil {
			t.Fatalf("%v, %v", port, err)
		}
		start := time.Now()
		inside, err := server.Processes(x.m.nl, port)
		if err != nil || len(inside) != 2 {
			t.Fatalf("%d processes, %v", len(inside), err)
		}
		err = errors.Join(inside[victim].Signal(syscall.SIGKILL), inside[0].Close(), inside[1].Close())
		if err != nil {
			t.Fatal(err)
		}
		nstest.Eventually(t, bound, "the server's port goes", func() bool {
			_, err := x.m.nl.LinkByIndex(port.Index)
			return errors.Is(err, fs.ErrNotExist)
		})
		t.Logf("gone after %v", time.Since(start))
		service := x.m.Service.(*inProcess)
		if err := service.Stop(x.ctx(), x.m, n); err == nil || !strings.Contains(err.Error(), "signal: killed") {
			t.Errorf("the server says %v", err)
		}
		c, err := x.m.Check(x.ctx())
		if err != nil || len(c.Differences) != 1 || c.Differences[0].What != "server" {
			t.Fatalf("%+v, %v", c, err)
		}
		if _, _, err := x.m.Apply(x.ctx(), "lab"); err != nil {
			t.Fatal(err)
		}
		x.consistent()
	}
}

// TestLiveDrift: what somebody changes is seen by check, and mended by apply.
func TestLiveDrift(t *testing.T) {
	x := newHost(t)
	x.create(labNetwork())
	for _, c := range []struct {
		what   string
		change func()
	}{
		{"rules", func() { x.nft("flush ruleset") }},
		{"rules", func() { x.nft("flush chain inet vmnet-lab forward") }},
		{"rules", func() { x.nft("add rule inet vmnet-lab forward accept") }},
		{"address", func() { x.ip(x.host, "addr", "del", "10.66.0.1/24", "dev", "lab") }},
		{"address", func() { x.ip(x.host, "addr", "add", "10.99.0.1/24", "dev", "lab") }},
		{"bridge", func() { x.ip(x.host, "link", "del", "lab") }},
		{"bridge", func() { x.ip(x.host, "link", "set", "lab", "alias", "") }},
		{"sysctl net.ipv4.ip_forward", func() { x.sysctl(x.host, forwarding.IP4, "0") }},
		{"server", func() { x.ip(x.host, "link", "set", "lab-srv", "nomaster") }},
		{"server", func() {
			x.ip(x.host, "link", "set", "lab-srv", "alias", config.ServerMark{Network: "lab", Settings: "0"}.String())
		}},
	} {
		c.change()
		found, err := x.m.Check(x.ctx())
		if err != nil || len(found.Differences) == 0 || found.Differences[0].What != c.what {
			t.Errorf("%s: %+v, %v", c.what, found, err)
		}
		infos, err := x.m.List(x.ctx())
		if err != nil || len(infos) != 1 || infos[0].State == StateUp {
			t.Errorf("%s: %+v, %v", c.what, infos, err)
		}
		if _, changed, err := x.m.Apply(x.ctx(), "lab"); err != nil || !changed {
			t.Fatalf("%s: apply: %v, %v", c.what, changed, err)
		}
		x.consistent()
		if _, changed, err := x.m.Apply(x.ctx(), "lab"); err != nil || changed {
			t.Errorf("%s: a second apply: %v, %v", c.what, changed, err)
		}
	}
}

// TestLiveForeign: what is somebody else's is never touched.
func TestLiveForeign(t *testing.T) {
	x := newHost(t)
	x.ip(x.host, "link", "add", "lab", "type", "bridge")
	before := x.left()
	for what, verb := range map[string]func() error{
		"create": func() error { return x.m.Create(x.ctx(), full()) },
		"apply": func() error {
			if err := x.m.Dir.Write(full().Network); err != nil {
				return err
			}
			_, _, err := x.m.Apply(x.ctx(), "lab")
			return errors.Join(err, x.m.Dir.Remove("lab"))
		},
	} {
		if err := verb(); !errors.Is(err, ErrForeign) {
			t.Errorf("%s: %v", what, err)
		}
		x.wants("after "+what, x.left(), before)
	}
	x.ip(x.host, "link", "del", "lab")
	x.ip(x.host, "link", "add", "lab-srv", "type", "bridge")
	if err := x.m.Create(x.ctx(), full()); err == nil ||
		!strings.Contains(err.Error(), "lab-srv is not the server of network lab") {
		t.Errorf("the server's name is taken: %v", err)
	}
}

// TestLiveTaken: a subnet that is in use is refused with the name of who has it, and not chosen.
func TestLiveTaken(t *testing.T) {
	x := newHost(t)
	x.ip(x.host, "link", "add", "vpn0", "type", "bridge")
	x.ip(x.host, "link", "set", "vpn0", "up")
	x.ip(x.host, "route", "add", "10.66.0.0/16", "dev", "vpn0")
	err := x.m.Create(x.ctx(), full())
	if !errors.Is(err, config.ErrOverlap) ||
		!strings.Contains(err.Error(), "10.66.0.0/24 overlaps 10.66.0.0/16 of vpn0 (bridge)") {
		t.Error(err)
	}
	chosen := &config.Network{Name: "a", Domain: "a.internal"}
	x.create(chosen)
	x.wants("chosen", chosen.Subnet.String(), "172.29.0.0/24")
	if chosen.IPv6.Addr().As16()[0] != 0xfd {
		t.Errorf("IPv6 %s", chosen.IPv6)
	}
	err = x.m.Create(
		x.ctx(),
		Wanted{Network: &config.Network{Name: "b", Domain: "b", Subnet: netip.MustParsePrefix("172.29.0.0/20")}},
	)
	if !errors.Is(err, config.ErrOverlap) || !strings.Contains(err.Error(), "of network a") {
		t.Error(err)
	}
	if err := x.m.Create(x.ctx(), Wanted{Network: &config.Network{Name: "a", Domain: "a"}}); err == nil ||
		!strings.Contains(err.Error(), "network a exists already") {
		t.Error(err)
	}
}

// TestLiveForwardingIsSetBack: by the last network that needs it, where nobody has changed it.
func TestLiveForwardingIsSetBack(t *testing.T) {
	x := newHost(t)
	was := func() string {
		ip4, _, err4 := x.m.settings().Read(forwarding.IP4)
		ip6, _, err6 := x.m.settings().Read(forwarding.IP6)
		if err := errors.Join(err4, err6); err != nil {
			t.Fatal(err)
		}
		return ip4 + ip6
	}
	for _, name := range []string{"a", "b"} {
		x.create(&config.Network{Name: name, NAT: true})
	}
	x.wants("with two networks", was(), "11")
	for i, want := range []string{"11", "00"} {
		if err := x.m.Delete(x.ctx(), []string{"a", "b"}[i], false); err != nil {
			t.Fatal(err)
		}
		x.wants(fmt.Sprintf("after %d deletes", i+1), was(), want)
	}
	x.sysctl(x.host, forwarding.IP4, "1")
	x.create(&config.Network{Name: "c", NAT: true})
	if err := x.m.Delete(x.ctx(), "c", false); err != nil {
		t.Fatal(err)
	}
	x.wants("where it was on", was(), "10")
}

// TestLiveDefaultRouteSurvives: a host that has its IPv6 route from a router advertisement keeps it
// when it begins to forward.
func TestLiveDefaultRouteSurvives(t *testing.T) {
	x := newHost(t)
	x.ip(x.host, "-6", "route", "del", "default")
	x.ip(x.host, "-6", "route", "add", "default", "via", wanIP6, "dev", "up0", "proto", "ra")
	x.create(&config.Network{Name: "a", NAT: true})
	accept := func() string {
		value, _, err := x.m.settings().Read(forwarding.AcceptRA("up0"))
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
	x.wants("accept_ra", accept(), "2")
	if err := x.m.Delete(x.ctx(), "a", false); err != nil {
		t.Fatal(err)
	}
	x.wants("accept_ra after delete", accept(), "1")
}

// TestLiveNoIPv6: where IPv6 is disabled, none is chosen, and one that is asked for is an error.
func TestLiveNoIPv6(t *testing.T) {
	x := newHost(t)
	x.sysctl(x.host, "net/ipv6/conf/default/disable_ipv6", "1")
	before := x.left()
	n := x.create(&config.Network{Name: "a", NAT: true})
	if n.IPv6.IsValid() {
		t.Errorf("chosen: %s", n.IPv6)
	}
	x.consistent()
	if err := x.m.Delete(x.ctx(), "a", false); err != nil {
		t.Fatal(err)
	}
	if err := x.m.Create(x.ctx(), full()); err == nil || !strings.Contains(err.Error(), "IPv6 is disabled here") {
		t.Error(err)
	}
	x.wants("left", x.left(), before)
}

// TestLiveManyNetworks: 64 networks, without servers.
func TestLiveManyNetworks(t *testing.T) {
	x := newHost(t)
	const many = 64
	for i := range many {
		n := &config.Network{Name: fmt.Sprintf("n%d", i), NAT: true, Domain: "x"}
		if err := x.m.Create(x.ctx(), Wanted{n, true}); err != nil {
			t.Fatal(err)
		}
	}
	x.consistent()
	infos, err := x.m.List(x.ctx())
	if err != nil || len(infos) != many {
		t.Errorf("%d networks, %v", len(infos), err)
	}
}

// TestLiveBrokenFile: a network whose file cannot be read is listed, does not disturb others, and
// can be deleted.
func TestLiveBrokenFile(t *testing.T) {
	x := newHost(t)
	x.create(labNetwork())
	x.create(&config.Network{Name: "good", NAT: true, Subnet: netip.MustParsePrefix("10.77.0.0/24")})
	if err := os.WriteFile(x.m.Dir.Path("lab"), []byte("subnet: x\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	infos, err := x.m.List(x.ctx())
	if err != nil || len(infos) != 2 || infos[0].State != StateUp || infos[1].State != StateBroken ||
		!strings.Contains(infos[1].Error, "lab.yaml:1:9: ") {
		t.Errorf("%+v, %v", infos, err)
	}
	c, err := x.m.Check(x.ctx())
	if err != nil || len(c.Differences) != 1 || c.Differences[0].What != "file" {
		t.Errorf("%+v, %v", c, err)
	}
	if err := x.m.Delete(x.ctx(), "lab", false); err != nil {
		t.Fatal(err)
	}
	if br, _, err := x.m.bridge("lab"); br != nil || err != nil {
		t.Errorf("%v, %v", br, err)
	}
}

// TestLiveGuestClaims: a guest that claims another's name or address gets neither.
func TestLiveGuestClaims(t *testing.T) {
	x := newHost(t)
	x.create(labNetwork())
	x.guest("lab", webMAC).lease("")
	evil := x.guest("lab", dbMAC)
	if _, err := x.run(evil.ns, "busybox", "udhcpc", "-f", "-n", "-q", "-t", "2", "-T", "1", "-i", "eth0",
		"-r", "10.66.0.11", "-x", "hostname:web", "-s", "/bin/true"); err != nil {
		t.Fatal(err)
	}
	leases, err := x.m.Leases(x.ctx(), labNetwork())
	if err != nil || len(leases) != 2 {
		t.Fatalf("%+v, %v", leases, err)
	}
	for _, l := range leases {
		if l.MAC == dbMAC && l.IP.String() == "10.66.0.11" {
			t.Errorf("the address of another: %+v", l)
		}
	}
	x.resolves(x.host, "10.66.0.2", "web.lab.internal", "10.66.0.11")
}

// TestLiveForwardingOfRoutedGuests: what a network has turned on stays for a guest whose addresses
// are routed, and the last of the two sets it back, whichever that is.
func TestLiveForwardingOfRoutedGuests(t *testing.T) {
	x := newHost(t)
	alias, err := nic.Record{
		VM: "P2", NIC: "net0", Type: nic.TypeRouted, Source: "up0", MAC: nic.DefaultMAC("P2", "net0"),
		IP: []netip.Addr{netip.MustParseAddr("203.0.113.9")}, Model: nic.DefaultModel, Queues: 1,
	}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	routes := x.m.routed()
	guest := func() (kill func()) {
		tap, err := tun.Create(x.host, "P2-net0", false)
		if err != nil {
			t.Fatal(err)
		}
		l, err := x.m.nl.Link("P2-net0")
		if err == nil {
			err = x.m.nl.SetQuiet(l.Index, rtnl.Alias(alias), rtnl.Up(true))
		}
		if err != nil {
			t.Fatal(err)
		}
		nics, err := routes.NICs()
		if err != nil || len(nics) != 1 {
			t.Fatal(nics, err)
		}
		if err := routes.Mend(t.Context(), nics[0]); err != nil {
			t.Fatal(err)
		}
		return func() {
			if err := tap.Close(); err != nil {
				t.Fatal(err)
			}
			nstest.Eventually(t, patience, "the tap is gone", func() bool {
				_, err := x.m.nl.Link("P2-net0")
				return errors.Is(err, fs.ErrNotExist)
			})
			if _, err := routes.Tidy(t.Context(), false); err != nil {
				t.Fatal(err)
			}
		}
	}
	forwards := func() string {
		all, _, err := x.m.settings().Read(forwarding.IP4)
		if err != nil {
			t.Fatal(err)
		}
		up, _, err := x.m.settings().Read("net/ipv4/conf/up0/forwarding")
		if err != nil {
			t.Fatal(err)
		}
		return all + up
	}
	create := func() { x.create(&config.Network{Name: "a", NAT: true}) }
	deleted := func() {
		if err := x.m.Delete(x.ctx(), "a", false); err != nil {
			t.Fatal(err)
		}
	}
	create()
	kill := guest()
	deleted()
	x.wants("the guest alone, after the network", forwards(), "11")
	kill()
	x.wants("neither", forwards(), "00")

	kill = guest()
	x.wants("the guest alone", forwards(), "01")
	create()
	kill()
	x.wants("the network alone", forwards(), "11")
	deleted()
	x.wants("neither, in the other order", forwards(), "00")

	kill = guest()
	create()
	deleted()
	x.wants("the guest, around a network", forwards(), "11")
	kill()
	x.wants("neither, at the end", forwards(), "00")
}
