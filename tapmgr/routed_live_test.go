package tapmgr_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/nstest"
	"vmnet/internal/routed"
	"vmnet/internal/vmm/qmptest"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
	"vmnet/testvm/traffic"
)

// Addresses of the host and of routed guests on the LAN of eth0.
const (
	lanAddr, lanAddr6       = "192.0.2.2", "2001:db8::2"
	lanMachine, lanMachine6 = "192.0.2.1", "2001:db8::1"
	routedAddr, routedAddr6 = "192.0.2.11", "2001:db8::11"
	routedAddr2             = "192.0.2.12"
)

// quietLAN gives the host an uplink eth0 without a carrier: nobody is asked for addresses there,
// which takes a second.
func (h *host) quietLAN() {
	h.Helper()
	for _, name := range []string{"accept_dad", "dad_transmits"} {
		h.setSysctl("net/ipv6/conf/default/"+name, "0")
	}
	h.ip("link", "add", "eth0", "type", "veth", "peer", "name", "lan0")
	h.ip("link", "set", "eth0", "up")
	h.ip("addr", "add", lanAddr+"/24", "dev", "eth0")
	h.ip("addr", "add", lanAddr6+"/64", "dev", "eth0", "nodad")
}

// liveLAN gives the host an uplink eth0 and a machine on its LAN.
func (h *host) liveLAN() {
	h.Helper()
	h.wire()
	h.ip("addr", "add", lanAddr+"/24", "dev", "eth0")
	h.ip("addr", "add", lanAddr6+"/64", "dev", "eth0", "nodad")
	h.farIP("addr", "add", lanMachine+"/24", "dev", "switch0")
	h.farIP("addr", "add", lanMachine6+"/64", "dev", "switch0", "nodad")
}

func (h *host) setSysctl(name, value string) {
	h.Helper()
	if err := h.ns.Do(func() error { return os.WriteFile("/proc/sys/"+name, []byte(value), 0o644) }); err != nil {
		h.Fatal(err)
	}
}

// routing is what the host has of routed guests, as text.
func (h *host) routing() (text string) {
	h.Helper()
	proxies, err := h.nl.Proxies()
	if err != nil {
		h.Fatal(err)
	}
	text = fmt.Sprintln(proxies)
	for _, name := range []string{
		"net/ipv4/conf/eth0/forwarding", "net/ipv6/conf/eth0/forwarding", "net/ipv6/conf/all/forwarding",
		"net/ipv4/ip_forward", "net/ipv6/conf/eth0/accept_ra", "net/ipv6/conf/eth0/proxy_ndp",
	} {
		err := h.ns.Do(func() error {
			value, err := os.ReadFile("/proc/sys/" + name)
			text += name + " " + string(value)
			return err
		})
		if err != nil {
			h.Fatal(err)
		}
	}
	if l, err := h.nl.Link("vmnet-routed"); err == nil {
		text += "memory " + l.Alias
	}
	return text
}

func (g *fakeGuest) routed(nicID string, ips ...string) nic.Spec {
	return routedSpec(g.Name, nicID, ips...)
}

func routedSpec(vm, nicID string, ips ...string) nic.Spec {
	s := nic.Spec{Target: nic.Target{VM: vm}, NIC: nicID, Routed: "eth0", Vhost: nic.VhostOff}
	for _, a := range ips {
		s.IP = append(s.IP, netip.MustParseAddr(a))
	}
	return s
}

// TestRouted: a routed NIC is listed, shown, compared and detached like others, and the last one
// leaves nothing on the host.
func TestRouted(t *testing.T) {
	h, g := fakeTest(t)
	h.quietLAN()
	before := h.routing()
	spec := g.routed("net0", routedAddr6, routedAddr)
	res, err := g.tryAttach(spec)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(strings.Join(res.Notices, "\n"), "net.ipv4.conf.eth0.forwarding=1") {
		t.Errorf("no notice says that the host forwards: %q", res.Notices)
	}
	n := res.NIC
	if n.Type != nic.TypeRouted || n.Source != "eth0" || n.State != nic.Up ||
		nic.FormatIPs(n.IP) != routedAddr+","+routedAddr6 {
		t.Errorf("%+v", n)
	}
	details, err := h.Show(h.context(10*time.Second), g.Name)
	if err != nil || len(details) != 1 || details[0].GuestConfig == nil || details[0].Lower != "" ||
		details[0].RxFilter != "" || !strings.Contains(details[0].GuestConfig.CloudInit, n.MAC) {
		t.Errorf("show %+v, %v", details, err)
	}
	if got := h.check(); len(got) > 0 {
		t.Errorf("check %+v", got)
	}
	h.reconciled()
	if res, err := g.tryAttach(spec); err != nil || res.Changed {
		t.Errorf("the same again: %+v, %v", res, err)
	}
	if _, err := g.tryAttach(g.routed("net0", routedAddr2)); !errors.Is(err, nic.ErrExist) ||
		!strings.Contains(err.Error(), "IP is") {
		t.Errorf("with another address: %v", err)
	}
	two := h.fake(qmptest.Config{})
	if _, err := two.tryAttach(two.routed("net0", routedAddr2)); err != nil {
		t.Error(err)
	}
	for _, guest := range []*fakeGuest{g, two} {
		if _, err := guest.tryDetach("net0", 20*time.Second, false); err != nil {
			t.Error(err)
		}
	}
	g.nothingLeft()
	if after := h.routing(); after != before {
		t.Errorf("left:\n%s\nbefore:\n%s", after, before)
	}
}

// TestRoutedRefused: addresses and uplinks that a guest cannot have, with who has them.
func TestRoutedRefused(t *testing.T) {
	h, g := fakeTest(t)
	h.quietLAN()
	other := h.fake(qmptest.Config{})
	if _, err := other.tryAttach(other.routed("net0", routedAddr)); err != nil {
		t.Fatal(err)
	}
	h.ip("route", "add", "192.0.2.40/32", "dev", "br0")
	h.ip("neigh", "add", "proxy", "192.0.2.50", "dev", "eth0")
	h.ip("link", "add", "port0", "type", "veth", "peer", "name", "port1")
	h.ip("link", "set", "port0", "master", "br0")
	on := func(uplink string) func(*nic.Spec) { return func(s *nic.Spec) { s.Routed = uplink } }
	ip := func(a string) func(*nic.Spec) {
		return func(s *nic.Spec) { s.IP = []netip.Addr{netip.MustParseAddr(a)} }
	}
	for want, edit := range map[string]func(*nic.Spec){
		"the routed guest on " + other.link("net0"): ip(routedAddr),
		"the host has 192.0.2.2 itself, on eth0":    ip(lanAddr),
		"the host has 2001:db8::2 itself, on eth0":  ip(lanAddr6),
		"127.9.9.9":                       ip("127.9.9.9"),
		"routes 192.0.2.40 by br0":        ip("192.0.2.40"),
		"means all of 192.0.2.0/24":       ip("192.0.2.255"),
		"answers for 192.0.2.50 on eth0":  ip("192.0.2.50"),
		"link-local addresses":            ip("fe80::11"),
		"needs an address":                func(s *nic.Spec) { s.IP = nil },
		"no Ethernet or Wi-Fi":            on("lo"),
		"port0 is a port of br0":          on("port0"),
		"ip link shows the devices":       on("eth9"),
		"IPv6 needs at least 1280":        func(s *nic.Spec) { ip(routedAddr6)(s); s.MTU = 1000 },
		"settings of a port":              func(s *nic.Spec) { s.Port.Isolated = true },
		"on a bridge, on a network, on a": func(s *nic.Spec) { s.Bridge = "br0" },
	} {
		spec := g.routed("net0", routedAddr2)
		edit(&spec)
		if _, err := g.tryAttach(spec); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	h.setSysctl("net/ipv6/conf/eth0/disable_ipv6", "1")
	_, err := g.tryAttach(g.routed("net0", routedAddr6))
	if err == nil || !strings.Contains(err.Error(), "net.ipv6.conf.eth0.disable_ipv6=0") {
		t.Errorf("without IPv6: %v", err)
	}
	g.has()
}

// TestRoutedFaults: an error at each step of an attach leaves nothing, and a kill what reconcile
// removes, or a NIC that works.
func TestRoutedFaults(t *testing.T) {
	h, g := fakeTest(t)
	h.quietLAN()
	spec := g.routed("net0", routedAddr, routedAddr6)
	before := h.routing()
	h.faultAtEveryStep(spec, func() {
		g.nothingLeft()
		if after := h.routing(); after != before {
			t.Errorf("left:\n%s\nbefore:\n%s", after, before)
		}
	})
	for _, name := range h.stepNames(spec) {
		g := h.fake(qmptest.Config{})
		spec := g.routed("net0", routedAddr, routedAddr6)
		g.killedAttach(spec, name)
		h.settled()
		if diff := h.check(); len(diff) > 0 {
			t.Errorf("killed at %s: reconcile leaves %+v", name, diff)
		}
		if nics, err := h.List(g.Name); err != nil || len(nics) == 1 && nics[0].State != nic.Up {
			t.Errorf("killed at %s: %+v, %v", name, nics, err)
		}
		if _, err := g.tryDetach("net0", 20*time.Second, false); err != nil {
			t.Errorf("killed at %s: detach: %v", name, err)
		}
		if after := h.routing(); after != before {
			t.Errorf("killed at %s, left:\n%s\nbefore:\n%s", name, after, before)
		}
	}
}

// TestRoutedDetach: an error at each step of a detach, and a forced one, which ends the answers for
// the guest at once.
func TestRoutedDetach(t *testing.T) {
	h, g := fakeTest(t)
	h.quietLAN()
	before := h.routing()
	spec := g.routed("net0", routedAddr, routedAddr6)
	detach := tapmgr.DetachSpec{Target: spec.Target, NIC: "net0"}
	if _, err := g.tryAttach(spec); err != nil {
		t.Fatal(err)
	}
	names := h.stepNamesOf(func() error {
		_, err := h.Detach(h.context(20*time.Second), detach)
		return err
	})
	if !slices.Contains(names, "tidy") {
		t.Fatalf("steps %q", names)
	}
	for _, name := range names {
		if _, err := g.tryAttach(spec); err != nil {
			t.Fatal(err)
		}
		h.at(name, func(func() error) error { return errFault })
		if _, err := h.Detach(h.context(20*time.Second), detach); !errors.Is(err, errFault) {
			t.Errorf("%s: %v", name, err)
		}
		h.Run = nil
		if _, err := h.Detach(h.context(20*time.Second), detach); err != nil {
			t.Errorf("%s: again: %v", name, err)
		}
		h.settled()
		if after := h.routing(); after != before {
			t.Errorf("%s, left:\n%s\nbefore:\n%s", name, after, before)
		}
	}
	if _, err := g.tryAttach(spec); err != nil {
		t.Fatal(err)
	}
	h.at("netdev_del", func(func() error) error { return errFault })
	if _, err := g.tryDetach("net0", 20*time.Second, true); !errors.Is(err, errFault) {
		t.Error(err)
	}
	if after := h.routing(); after != before {
		t.Errorf("cut off, left:\n%s\nbefore:\n%s", after, before)
	}
	if got := h.check(); len(got) != 1 || got[0].What != "detach" {
		t.Errorf("check %+v", got)
	}
}

// TestRoutedGuestKilled: the tap of a guest that is killed goes with it. Its entries and the
// settings stay until reconcile, which check says.
func TestRoutedGuestKilled(t *testing.T) {
	h, g := fakeTest(t)
	h.quietLAN()
	before := h.routing()
	if _, err := g.tryAttach(g.routed("net0", routedAddr, routedAddr6)); err != nil {
		t.Fatal(err)
	}
	g.Kill()
	h.gone(g.link("net0"))
	left := h.check()
	if len(left) < 4 || left[0].MendedBy != nic.MendReconcile || left[0].Interface != "eth0" ||
		!strings.Contains(left[0].Found, "proxy entry of "+routedAddr) {
		t.Errorf("check %+v", left)
	}
	for _, dry := range []bool{true, false} {
		actions, err := h.Reconcile(h.context(10*time.Second), dry)
		if err != nil || len(actions) != len(left) {
			t.Errorf("dry %v: %+v, %v", dry, actions, err)
		}
	}
	if after := h.routing(); after != before {
		t.Errorf("left:\n%s\nbefore:\n%s", after, before)
	}
}

// TestRoutedDrift: check sees what somebody has changed, the same attach and reconcile restore it,
// and a renamed uplink is followed.
func TestRoutedDrift(t *testing.T) {
	h, g := fakeTest(t)
	h.quietLAN()
	spec := g.routed("net0", routedAddr, routedAddr6)
	if _, err := g.tryAttach(spec); err != nil {
		t.Fatal(err)
	}
	tap := g.link("net0")
	for want, change := range map[string]func(){
		"no proxy entry of " + routedAddr: func() {
			h.ip("link", "set", "eth0", "down")
			h.ip("link", "set", "eth0", "up")
		},
		"no route of " + routedAddr:           func() { h.ip("route", "del", routedAddr) },
		"no address fe80::1/64":               func() { h.ip("addr", "del", "fe80::1/64", "dev", tap) },
		"no sysctl net.ipv4.conf." + tap + "": func() { h.setSysctl("net/ipv4/conf/"+tap+"/rp_filter", "0") },
	} {
		for name, mend := range map[string]func() error{
			"reconcile": func() error { h.settled(); return nil },
			"attach":    func() error { _, err := g.tryAttach(spec); return err },
			"watch":     func() error { _, err := h.KeepRouted(h.context(10 * time.Second)); return err },
		} {
			change()
			if got := h.check(); len(got) != 1 || got[0].What != "routing" || !strings.Contains(got[0].Found, want) {
				t.Errorf("%s: check %+v", want, got)
			}
			if err := mend(); err != nil {
				t.Errorf("%s by %s: %v", want, name, err)
			}
			if got := h.check(); len(got) > 0 {
				t.Errorf("%s by %s: %+v", want, name, got)
			}
		}
	}
	h.ip("link", "set", "eth0", "name", "up0")
	if got := h.check(); len(got) > 0 {
		t.Errorf("renamed: %+v", got)
	}
	if res, err := g.tryAttach(spec); err != nil || res.Changed || res.NIC.Source != "up0" {
		t.Errorf("renamed: %+v, %v", res, err)
	}
	h.ip("link", "del", "up0")
	if got := h.check(); len(got) != 1 || !strings.Contains(got[0].Found, "no eth0") ||
		got[0].MendedBy != nic.MendAdmin {
		t.Errorf("without its uplink: %+v", got)
	}
	if _, err := g.tryDetach("net0", 20*time.Second, false); err != nil {
		t.Error(err)
	}
	g.nothingLeft()
}

// TestLiveRoutedGuest: a real guest that is configured as attach says reaches the LAN, the host and
// another guest, and is reached, with IPv4 and IPv6; an address that a machine has is refused.
func TestLiveRoutedGuest(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.liveLAN()
	g := h.booted(testvm.Config{})
	_, err := h.Attach(h.context(20*time.Second), routedSpec(g.name, "net0", lanMachine))
	if !errors.Is(err, routed.ErrTaken) || !strings.Contains(err.Error(), farMAC) {
		t.Errorf("%s is a machine's: %v", lanMachine, err)
	}
	n := h.attach(routedSpec(g.name, "net0", routedAddr, routedAddr6))
	h.configures(g, n)
	other := h.booted(testvm.Config{Paused: true}) // whose tap answers nothing, and is routed to all the same
	h.attach(routedSpec(other.name, "net0", routedAddr2))
	for _, to := range []string{lanMachine, lanMachine6, lanAddr, lanAddr6} {
		h.pings(g, to)
	}
	for _, to := range []string{routedAddr, routedAddr6} {
		nstest.Eventually(t, 30*time.Second, "the LAN reaches "+to, func() bool {
			return h.far.Do(func() error {
				_, err := traffic.SendPing(h.context(20*time.Second), traffic.Ping{Addr: to, Timeout: time.Second})
				return err
			}) == nil
		})
	}
	if err := g.Kill(); err != nil {
		t.Fatal(err)
	}
	h.gone(n.Interface)
	h.settled()
	if proxies, err := h.nl.Proxies(); err != nil || len(proxies) != 1 || proxies[0].Addr.String() != routedAddr2 {
		t.Errorf("after a kill: %+v, %v", proxies, err)
	}
}

// configures has a guest use a routed NIC as attach says.
func (h *host) configures(g *guest, n nic.NIC) {
	h.Helper()
	ctx := h.context(60 * time.Second)
	link, err := g.Guest.WaitNIC(ctx, n.MAC)
	if err != nil {
		h.Fatal(err)
	}
	c := n.GuestConfig()
	if err := g.Guest.Up(ctx, link.Name); err != nil {
		h.Fatal(err)
	}
	for _, a := range c.Addresses {
		if err := g.Guest.AddAddr(ctx, link.Name, a); err != nil {
			h.Fatal(err)
		}
	}
	for _, to := range c.Gateways {
		if err := g.Guest.AddDefaultRouteOn(ctx, link.Name, to); err != nil {
			h.Fatal(err)
		}
	}
}

// TestLiveLibvirtRouted: a libvirt guest gets a routed tap by its name, and both its detach and the
// guest's end with a reconcile leave nothing.
func TestLiveLibvirtRouted(t *testing.T) {
	h := newLibvirtHost(t)
	h.quietLAN()
	before := h.routing()
	g := h.domain(testvm.Domain{})
	spec := routedSpec(g.Name, "net0", routedAddr, routedAddr6)
	spec.Target = h.target(g)
	n := h.attach(spec)
	if n.Via != nic.ViaLibvirt || n.State != nic.Up {
		t.Errorf("%+v", n)
	}
	if got := h.check(); len(got) > 0 {
		t.Errorf("check %+v", got)
	}
	if err := g.Guest.UseNIC(h.context(30*time.Second), n.MAC, routedAddr+"/32"); err != nil {
		t.Fatal(err)
	}
	h.take(g, "net0")
	h.gone(n.Interface)
	if after := h.routing(); after != before {
		t.Errorf("left:\n%s\nbefore:\n%s", after, before)
	}
	n = h.attach(spec)
	h.virt.Virsh("destroy", g.Name)
	h.gone(n.Interface)
	h.settled()
	if after := h.routing(); after != before {
		t.Errorf("left after the guest:\n%s\nbefore:\n%s", after, before)
	}
}

// TestRoutedServe: what a helper makes for a user, and what is left if the user gives up: nothing.
func TestRoutedServe(t *testing.T) {
	h := newUserHost(t)
	h.quietLAN()
	before := h.routing()
	request := strings.Replace(tapRequest, `"bridge":"br0"`, `"routed":"eth0","ip":["`+routedAddr+`"]`, 1)
	for _, plugged := range []bool{true, false} {
		client, done := h.serving(func(s nic.Spec) error {
			if s.Routed != "eth0" || len(s.IP) != 1 || s.Bridge != "" {
				return errFault
			}
			return nil
		})
		if err := client.Send([]byte(request)); err != nil {
			t.Fatal(err)
		}
		answer, queues, err := client.Receive(4096)
		if err != nil || len(queues) != 2 {
			t.Fatalf("%s with %d files, %v", answer, len(queues), err)
		}
		if proxies, err := h.nl.Proxies(); err != nil || len(proxies) != 1 {
			t.Errorf("entries %+v, %v", proxies, err)
		}
		if plugged {
			if err := client.Send([]byte(`{"plugged":true}`)); err != nil {
				t.Fatal(err)
			}
			if answer, _, err = client.Receive(4096); err != nil || strings.Contains(string(answer), "error") {
				t.Errorf("%s, %v", answer, err)
			}
		}
		fdpass.CloseAll(queues)
		_ = client.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
		h.gone("P3-net0")
		if plugged { // as its guest's end leaves it
			h.settled()
		}
		if after := h.routing(); after != before {
			t.Errorf("plugged %v, left:\n%s\nbefore:\n%s", plugged, after, before)
		}
	}
}

// TestRoutedLaunch: the NIC of a VMM that is yet to start, beside one on a bridge; a fault at a
// step of the second leaves nothing of the first.
func TestRoutedLaunch(t *testing.T) {
	h := newUserHost(t)
	h.quietLAN()
	before := h.routing()
	specs := []nic.Spec{routedSpec("P3", "net0", routedAddr), {
		Target: nic.Target{VM: "P3"}, NIC: "net1", Bridge: "br0", Vhost: nic.VhostOff,
	}}
	h.at("net1 port", func(func() error) error { return errFault })
	if _, err := h.tryLaunch(h.context(20*time.Second), specs...); !errors.Is(err, errFault) {
		t.Error(err)
	}
	h.Run = nil
	if after := h.routing(); after != before {
		t.Errorf("left:\n%s\nbefore:\n%s", after, before)
	}
	l, err := h.tryLaunch(h.context(20*time.Second), specs...)
	if err != nil {
		t.Fatal(err)
	}
	if n := l.NICs[0].NIC; n.Type != nic.TypeRouted || n.State != nic.Up {
		t.Errorf("%+v", n)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	h.gone("P3-net0")
	h.settled()
	if after := h.routing(); after != before {
		t.Errorf("left:\n%s\nbefore:\n%s", after, before)
	}
}
