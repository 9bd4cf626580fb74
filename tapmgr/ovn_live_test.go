package tapmgr_test

import (
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"vmnet/internal/nstest"
	"vmnet/internal/ovstest"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
	"vmnet/testvm/traffic"
)

// chassis is a host whose guests are on OVN's logical network.
type chassis struct {
	*host
	*ovstest.OVS
	vhost nic.Vhost // of its guests
}

// logical is a port of the logical network: g1 is on a switch of its own, and so is g2; a router is
// between them.
type logical struct {
	id, mac, ip, router string
}

var (
	g1 = logical{"g1", "52:54:00:00:71:01", "10.71.0.1", "10.71.0.254"}
	g2 = logical{"g2", "52:54:00:00:72:01", "10.72.0.1", "10.72.0.254"}
)

// newChassis makes two hosts with a cable between them, over which their tunnels go. They forward
// in user space, or in the kernel.
func newChassis(t *testing.T, v *ovstest.OVN, kernel bool) (one, two *chassis) {
	t.Helper()
	var both [2]*chassis
	for i := range both {
		h := newHost(t)
		both[i] = &chassis{h, ovstest.New(t, h.ns), nic.VhostOff}
		if kernel {
			both[i].UseKernel()
			both[i].vhost = nic.VhostAuto
		}
		both[i].StartSwitch()
		h.UseDatabases(both[i].Socket())
	}
	one, two = both[0], both[1]
	one.ip("link", "add", "up0", "up", "type", "veth", "peer", "name", "up0", "netns", two.ns.Path())
	two.ip("link", "set", "up0", "up")
	for i, c := range both {
		address := fmt.Sprintf("192.0.2.%d", i+1)
		device := v.StartChassis(c.OVS, fmt.Sprintf("hv%d", i+1), "up0", address)
		c.ip("addr", "add", address+"/24", "dev", device)
		c.ip("link", "set", device, "up")
	}
	nstest.Eventually(t, 30*time.Second, "OVN makes br-int", func() bool {
		return strings.Contains(one.Vsctl("list-br"), "br-int") && strings.Contains(two.Vsctl("list-br"), "br-int")
	})
	return one, two
}

// makeLogical makes the logical network. OVN gives the guests their addresses, and a rule keeps
// others from port 9 of g2.
func makeLogical(v *ovstest.OVN) {
	args := []string{"lr-add", "r"}
	add := func(command ...string) { args = append(append(args, "--"), command...) }
	for _, p := range []logical{g1, g2} {
		lan, toRouter, options := "lan-"+p.id, "r-"+p.id, "@"+p.id
		routerMAC := strings.Replace(p.mac, "00:00", "00:fe", 1)
		add("ls-add", lan)
		add("lrp-add", "r", "to-"+p.id, routerMAC, p.router+"/24")
		add("lsp-add", lan, toRouter)
		add("lsp-set-type", toRouter, "router")
		add("lsp-set-addresses", toRouter, "router")
		add("lsp-set-options", toRouter, "router-port=to-"+p.id)
		add("--id="+options, "create", "DHCP_Options", "cidr="+p.router[:5]+".0.0/24",
			fmt.Sprintf("options:server_id=%q", p.router), fmt.Sprintf("options:router=%q", p.router),
			fmt.Sprintf("options:server_mac=%q", routerMAC), `options:lease_time="3600"`)
		add("lsp-add", lan, p.id)
		add("lsp-set-addresses", p.id, p.mac+" "+p.ip)
		add("lsp-set-port-security", p.id, p.mac+" "+p.ip)
		add("set", "Logical_Switch_Port", p.id, "dhcpv4_options="+options)
	}
	add("acl-add", "lan-g2", "to-lport", "1000", `outport=="g2" && tcp.dst==9`, "reject")
	v.Nbctl(args...)
}

// spec is what a guest on a logical port is attached by.
func (c *chassis) spec(g *guest, p logical) nic.Spec {
	c.Helper()
	mac, err := net.ParseMAC(p.mac)
	if err != nil {
		c.Fatal(err)
	}
	return nic.Spec{
		Target: nic.Target{VM: g.name}, NIC: "net0", Bridge: "br-int", OVSDB: c.Socket(), IfaceID: p.id, MAC: mac,
		MTU: 1442, Vhost: c.vhost,
	}
}

// plug attaches a guest to a logical port, and returns its lease once OVN has installed the port's
// flows.
func (c *chassis) plug(g *guest, p logical) string {
	c.Helper()
	found := c.attach(c.spec(g, p))
	if err := c.WaitForwarding(c.context(30*time.Second), found); err != nil {
		c.Fatal(err)
	}
	return c.lease(g, found)
}

// claims returns how often the chassis has taken a logical port, also from another chassis.
func (c *chassis) claims(p logical) int {
	c.Helper()
	log, err := os.ReadFile(c.ControllerLog())
	if err != nil {
		c.Fatal(err)
	}
	return strings.Count(string(log), "Claiming lport "+p.id+" ") +
		strings.Count(string(log), "Changing chassis for lport "+p.id+" ")
}

// foreignPasses reports whether g2 answers a ping of g1's guest from an address that is not its
// own.
func (c *chassis) foreignPasses(g *guest) bool {
	c.Helper()
	const other = "10.71.0.99"
	link, err := g.Guest.WaitNIC(c.context(20*time.Second), g1.mac)
	if err != nil {
		c.Fatal(err)
	}
	return c.sh(g, "ip addr add "+other+"/24 dev "+link.Name+" 2>/dev/null; busybox ping -c 1 -W 1 -I "+other+" "+g2.ip+
		" | grep -c '1 packets received' || :", "") == "1"
}

// TestLiveOVN: OVN gives guests of two hosts addresses, routes between them, and keeps its rules. A
// guest that is killed and starts on the other host loses nothing, because its row goes.
func TestLiveOVN(t *testing.T) {
	t.Parallel()
	v := ovstest.NewOVN(t)
	makeLogical(v)
	one, two := newChassis(t, v, false)
	guests := make([]*guest, 3)
	var booting sync.WaitGroup
	for i := range guests {
		name := one.name("P")
		booting.Go(func() { guests[i] = &guest{testvm.StartT(t, testvm.Config{Name: name}), name} })
	}
	booting.Wait()
	a, b, again := guests[0], guests[1], guests[2]
	for c, tc := range map[*chassis]struct {
		g *guest
		p logical
	}{one: {a, g1}, two: {b, g2}} {
		if got := c.plug(tc.g, tc.p); !strings.HasPrefix(got, "lease "+tc.p.ip+" router "+tc.p.router) {
			t.Errorf("%s by OVN's DHCP: %s", tc.p.id, got)
		}
	}
	pings := func(from *guest) {
		t.Helper()
		ping := func(p traffic.Ping) traffic.PingResult {
			p.Addr = g2.ip
			got, err := from.Guest.PingWith(one.context(40*time.Second), p)
			if err != nil {
				t.Fatal(err)
			}
			return got
		}
		ping(traffic.Ping{Count: 30, UntilFirst: true}) // tunnels and the router learn addresses
		if got := ping(traffic.Ping{Count: 20, Timeout: 20 * time.Second}); got.Received != 20 {
			t.Errorf("%d of 20 pings across hosts are answered", got.Received)
		}
	}
	pings(a)

	for _, port := range []string{":7", ":9"} {
		if _, err := b.Guest.TCPServe(one.context(20*time.Second), "0.0.0.0"+port); err != nil {
			t.Fatal(err)
		}
	}
	send := func(port string) error {
		_, err := a.Guest.TCPSend(one.context(30*time.Second), g2.ip+port, some)
		return err
	}
	if err := send(":7"); err != nil {
		t.Errorf("TCP across hosts: %v", err)
	}
	if err := send(":9"); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("OVN's rule rejects port 9: %v", err)
	}
	foreign := func() bool { return one.foreignPasses(a) }
	if foreign() {
		t.Error("port security lets another source address pass")
	}
	v.Nbctl("lsp-set-port-security", "g1", "--", "acl-del", "lan-g2")
	nstest.Eventually(t, 30*time.Second, "another address passes without port security", foreign)
	nstest.Eventually(t, 30*time.Second, "port 9 passes without the rule", func() bool { return send(":9") == nil })

	if err := a.Kill(); err != nil {
		t.Fatal(err)
	}
	tap, _ := nic.InterfaceName(a.name, "net0")
	one.gone(tap)
	if _, err := one.Reconcile(one.context(20*time.Second), false); err != nil {
		t.Fatal(err)
	}
	if got := two.plug(again, g1); !strings.HasPrefix(got, "lease "+g1.ip) {
		t.Errorf("on the other host: %s", got)
	}
	pings(again)
	if one.claims(g1) != 1 || two.claims(g1) != 1 {
		t.Errorf("hosts claimed the guest's port %d and %d times, want each once", one.claims(g1), two.claims(g1))
	}
	for _, c := range []*chassis{one, two} {
		if checked, err := c.Check(c.context(20 * time.Second)); err != nil || len(checked.Differences) > 0 {
			t.Errorf("check: %+v, %v", checked, err)
		}
	}
}
