package tapmgr_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"vmnet/internal/kernel/rtnl"
	netconfig "vmnet/internal/network/config"
	"vmnet/internal/nstest"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
	"vmnet/testvm/traffic"
)

// cloned is the client id that the DHCP client of systemd sends in two guests of one image: type
// 255, an IAID, and a DUID that is derived from the machine id (RFC 4361).
const cloned = "0x3d:ff5ee0c2760002000 0ab11a5d1c0ffee0fd00d"

// TestLiveNetwork: guests of a network have addresses and names, the one that it asks for its own;
// they reach each other and the outside, and are reached by a forward; after a detach nothing of
// them is known.
func TestLiveNetwork(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	l := h.labNet()
	ip4, ip6 := l.outside()
	var guests [2]*guest
	var booting sync.WaitGroup
	for i := range guests {
		name := h.name(fmt.Sprintf("P.%d", i+1))
		booting.Go(func() { guests[i] = &guest{testvm.StartT(h, testvm.Config{Name: name}), name} })
	}
	booting.Wait()
	one, two := guests[0], guests[1]

	first, second := h.attach(one.inLab("net0")), h.attach(two.inLab("net0", "10.66.0.20", "fd66:1:2:3::20"))
	if second.Network != "lab" || second.Source != "lab" || nic.FormatIPs(second.IP) != "10.66.0.20,fd66:1:2:3::20" {
		t.Errorf("attached %+v", second)
	}
	id := strings.ReplaceAll(cloned, " ", "")
	got := l.lease(two, second, "-C", "-x", id)
	if got != "lease 10.66.0.20 router 10.66.0.1 dns 10.66.0.2 domain lab.internal" {
		t.Errorf("lease of its own address: %s", got)
	}
	ip := strings.Fields(l.lease(one, first, "-C", "-x", id))[1]
	if a, err := netip.ParseAddr(ip); err != nil || !l.n.Subnet.Contains(a) || ip == "10.66.0.20" {
		t.Errorf("another guest with that client id has %s", ip)
	}
	for g, other := range map[*guest]struct{ name, ip string }{one: {two.name, "10.66.0.20"}, two: {one.name, ip}} {
		name, want := netconfig.Label(other.name), other.ip
		if out := l.sh(g, "nslookup "+name+".lab.internal 10.66.0.2", ""); !strings.Contains(out, want) {
			t.Errorf("%s looks up %s: %s, want %s", g.name, name, out, want)
		}
		l.sh(g, "ping -c 1 -w 10 "+want, "")
		l.sends(g, ip4)
		nstest.Eventually(t, 30*time.Second, "an IPv6 address of "+g.name, func() bool {
			return strings.Contains(l.sh(g, "ip -6 addr show scope global; ip -6 route", ""), "fd66:1:2:3:")
		})
		l.sends(g, ip6)
	}

	if _, err := two.Guest.TCPServe(h.context(10*time.Second), "0.0.0.0:80"); err != nil {
		t.Fatal(err)
	}
	l.forward("10.66.0.20")
	err := l.far.Do(func() error {
		_, err := traffic.SendTCP(h.context(20*time.Second), "192.0.2.2:8080", some)
		return err
	})
	if err != nil {
		t.Errorf("by a forward: %v", err)
	}
	shown, err := l.m.Show(h.context(30*time.Second), "lab")
	if err != nil || len(shown.Guests) != 2 || shown.Guests[1].Name != netconfig.Label(two.name) {
		t.Errorf("shown %+v, %v", shown.Guests, err)
	}
	if diff := h.check(); len(diff) > 0 {
		t.Errorf("check: %+v", diff)
	}
	if err := l.m.Delete(h.context(30*time.Second), "lab", false); err == nil ||
		!strings.Contains(err.Error(), one.name+"/net0, "+two.name+"/net0") {
		t.Errorf("delete with guests: %v", err)
	}
	h.detach(two, "net0")
	nstest.Eventually(t, 30*time.Second, "the server forgets the guest", func() bool {
		return !strings.Contains(l.knows(), "10.66.0.20")
	})
	if err := one.Kill(); err != nil {
		t.Fatal(err)
	}
	nstest.Eventually(t, 30*time.Second, "the server forgets a killed guest", func() bool { return l.knows() == "" })
}

// outside gives the host a cable to another machine, whose addresses it returns, with the port on
// which a server for TCPSend is.
func (l *labNet) outside() (ip4, ip6 string) {
	l.Helper()
	l.far = nstest.New(l)
	l.ip("link", "add", "up0", "type", "veth", "peer", "name", "far0", "netns", l.far.Path())
	for _, end := range []struct {
		run  func(args ...string)
		link string
		n    int
	}{{l.ip, "up0", 2}, {l.farIP, "far0", 1}} {
		end.run("link", "set", end.link, "up")
		end.run("addr", "add", fmt.Sprintf("192.0.2.%d/24", end.n), "dev", end.link)
		end.run("addr", "add", fmt.Sprintf("2001:db8:f::%d/64", end.n), "dev", end.link, "nodad")
	}
	var server *traffic.Server
	err := l.far.Do(func() (err error) { server, err = traffic.ServeTCP("[::]:7"); return err })
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(server.Close)
	return "192.0.2.1:7", "[2001:db8:f::1]:7"
}

// some bytes are enough to see that a connection works.
const some = 1 << 12

// sends demands that a guest reaches a server.
func (l *labNet) sends(g *guest, to string) {
	l.Helper()
	if _, err := g.Guest.TCPSend(l.context(30*time.Second), to, some); err != nil {
		l.Errorf("%s to %s: %v", g.name, to, err)
	}
}

// forward leads connections to port 8080 of the host on to port 80 of a guest.
func (l *labNet) forward(guest string) {
	l.Helper()
	err := l.m.Replace(l.context(30*time.Second), "lab", func(n *netconfig.Network) error {
		n.Forwards = []netconfig.Forward{{Protocol: "tcp", First: 8080, Last: 8080, Guest: guest, Port: 80}}
		return nil
	})
	if err != nil {
		l.Fatal(err)
	}
}

// TestLiveNetworkRefuses: a NIC gets no address that is not free, and the error says who has it.
func TestLiveNetworkRefuses(t *testing.T) {
	h := newHost(t)
	l := h.labNet()
	g, other := h.empty(), h.empty()
	h.attach(other.inLab("net0", "10.66.0.20"))
	refused := func(spec nic.Spec, want string) {
		t.Helper()
		res, err := h.Attach(h.context(20*time.Second), spec)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v, %v, want %q", res, err, want)
		}
		h.nothingLeft(g, "net0")
	}
	for ip, want := range map[string]string{
		"10.66.0.20":    "10.66.0.20 is " + other.name + "/net0's, on ",
		"10.66.0.11":    "10.66.0.11 is host web's, which has MAC 52:54:00:00:66:01",
		"10.66.0.1":     "want an address from 10.66.0.3 to 10.66.0.254 (10.66.0.1 is the host's own",
		"10.67.0.1":     "want an address from 10.66.0.3 to 10.66.0.254",
		"fd66:1:2:3::2": "want an address in fd66:1:2:3::/64 from fd66:1:2:3::3 on",
	} {
		refused(g.inLab("net0", ip), want)
	}
	refused(g.inLab("net0", "10.66.0.21", "10.66.0.22"), "a guest has one address of each IP version")
	if _, err := h.Attach(h.context(20*time.Second), other.inLab("net0", "10.66.0.21")); !errors.Is(
		err,
		nic.ErrExist,
	) ||
		!strings.Contains(err.Error(), "IP is 10.66.0.20, asked for 10.66.0.21") {
		t.Errorf("another address for a NIC that is there: %v", err)
	}
	res, err := h.Attach(h.context(20*time.Second), other.inLab("net0", "10.66.0.20"))
	if err != nil || res.Changed {
		t.Errorf("the same again: %+v, %v", res, err)
	}
	for network, want := range map[string]string{
		"lub": "there is no network lub: want lab",
		"br0": "network br0: there is a device of that name, and it is not a network's",
	} {
		spec := g.inLab("net0")
		spec.Network = network
		refused(spec, want)
	}

	// A name that another guest has.
	twin := h.booted(testvm.Config{Paused: true})
	res, err = h.Attach(h.context(20*time.Second), nic.Spec{
		Target: nic.Target{VM: twin.name, PID: twin.Pid()}, Network: "lab", Vhost: nic.VhostOff,
	})
	if err != nil || len(res.Notices) > 1 {
		t.Errorf("%+v, %v", res.Notices, err)
	}
	res, err = h.Attach(h.context(20*time.Second), twin.inLab("net1"))
	want := fmt.Sprintf("network lab: %s is the name of %s/net0: it is called %[1]s-net1 there",
		netconfig.Label(twin.name), twin.name)
	if err != nil || !strings.Contains(strings.Join(res.Notices, "\n"), want) {
		t.Errorf("%q, %v, want %s", res.Notices, err, want)
	}

	// A network that is not what it was.
	lab, err := h.nl.Link("lab")
	if err == nil {
		err = h.nl.Set(lab.Index, rtnl.Alias("x"))
	}
	if err != nil {
		t.Fatal(err)
	}
	diff := h.check()
	if len(diff) != 3 || diff[0].What != "network" || diff[0].Want != "lab" || diff[0].Found != "" ||
		diff[0].Mend != "vmnet network check lab" {
		t.Errorf("check: %+v", diff)
	}
	if err := h.nl.Set(lab.Index, rtnl.Alias("vmnet network=lab")); err != nil {
		t.Fatal(err)
	}
	l.ip("link", "set", "lab-srv", "name", "was-srv")
	defer l.ip("link", "set", "was-srv", "name", "lab-srv")
	refused(g.inLab("net0", "10.66.0.21"), "its server, which should give the guest its address, does not run")
}

// TestLiveNetworkFaultAtEveryStep: an attach that fails leaves nothing, and the server forgets the
// guest; so does it if QEMU is killed.
func TestLiveNetworkFaultAtEveryStep(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	l := h.labNet()
	g := h.booted(testvm.Config{})
	spec := g.inLab("net0", "10.66.0.20")
	if names := h.stepNames(spec); !strings.Contains(strings.Join(names, " "), "port address ") {
		t.Errorf("steps %q", names)
	}
	forgotten := func() {
		t.Helper()
		nstest.Eventually(t, 30*time.Second, "the server forgets the guest", func() bool { return l.knows() == "" })
	}
	h.faultAtEveryStep(spec, func() { h.nothingLeft(g, "net0"); forgotten() })
	for _, name := range h.stepNames(spec) {
		victim := h.empty()
		spec := victim.inLab("net0", "10.66.0.20")
		h.at(name, func(do func() error) error {
			if err := do(); err != nil {
				return err
			}
			return victim.Kill()
		})
		_, err := h.Attach(h.context(20*time.Second), spec)
		if late := name == "device_add vmnet-net0" || name == "close" || name == "verify"; err == nil && !late {
			t.Errorf("%s: QEMU is killed and the attach succeeds", name)
		}
		h.Run = nil
		name, _ := nic.InterfaceName(victim.name, "net0")
		h.gone(name)
		forgotten()
	}
	h.attach(spec)
	if got := l.knows(); !strings.Contains(got, ",10.66.0.20,") {
		t.Errorf("after an attach the server knows %q", got)
	}
}

// TestLiveNetworkAtStart: a guest that libvirt starts gets its address as one that runs does, and
// the server forgets it if the start comes to nothing.
func TestLiveNetworkAtStart(t *testing.T) {
	h := newHost(t)
	l := h.labNet()
	spec := nic.Spec{
		Target: nic.Target{VM: h.name("N5")}, NIC: "net0", Network: "lab", Vhost: nic.VhostOff,
		IP: []netip.Addr{netip.MustParseAddr("10.66.0.20")},
	}
	res, err := h.Host().Prepare(h.context(20*time.Second), spec)
	if err != nil || res.NIC.Network != "lab" || !strings.Contains(l.knows(), ",10.66.0.20,") {
		t.Fatalf("%+v, %v, the server knows %q", res, err, l.knows())
	}
	if actions, err := h.Host().Release(h.context(20*time.Second), spec.VM); err != nil || len(actions) != 1 {
		t.Errorf("%+v, %v", actions, err)
	}
	h.gone(res.NIC.Interface)
	nstest.Eventually(t, 30*time.Second, "the server forgets the guest", func() bool { return l.knows() == "" })
}
