package network

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"vmnet/internal/kernel/forwarding"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/network/config"
	"vmnet/internal/network/nft"
	"vmnet/internal/network/server"
	"vmnet/internal/network/tool"
	"vmnet/internal/nstest"
)

const (
	webMAC = "52:54:00:00:66:01"
	dbMAC  = "52:54:00:00:66:02"
)

// labNetwork is a network with a host.
func labNetwork() *config.Network {
	web, _ := net.ParseMAC(webMAC)
	return &config.Network{
		Name: "lab", NAT: true, DHCP: true, Subnet: netip.MustParsePrefix("10.66.0.0/24"),
		IPv6:  netip.MustParsePrefix("fd66:1:2:3::/64"),
		Hosts: []config.Host{{Name: "web", MAC: web, IP: netip.MustParseAddr("10.66.0.11")}},
	}
}

// TestLiveNetwork: two guests get addresses and names, reach each other and the world, and are not
// reached from there but by forwards; nothing is left when the network is deleted.
func TestLiveNetwork(t *testing.T) {
	x := newHost(t)
	before := x.left()
	n := x.create(labNetwork())
	x.consistent()
	if _, changed, err := x.m.Apply(x.ctx(), "lab"); err != nil || changed {
		t.Errorf("a second apply: %v, changed %v", err, changed)
	}

	web, db := x.guest("lab", webMAC), x.guest("lab", dbMAC)
	told, err := web.dhcp("")
	x.wants("lease of web", told, "lease 10.66.0.11 router 10.66.0.1 dns 10.66.0.2 domain lab.internal")
	if err != nil {
		t.Fatal(err)
	}
	db.lease("db")
	for _, name := range []string{"web", "web.lab.internal", "db.lab.internal"} {
		want := web.ip
		if strings.HasPrefix(name, "db") {
			want = db.ip
		}
		x.resolves(db.ns, "10.66.0.2", name, want)
	}
	leases, err := x.m.Leases(x.ctx(), labNetwork())
	if err != nil || len(leases) != 2 {
		t.Errorf("leases: %+v, %v", leases, err)
	}

	web6 := web.globalIPv6(n.IPv6)
	db.globalIPv6(n.IPv6)
	x.answers(x.wan, ":7")
	x.wants("out by IPv4", x.ask(web.ns, wanIP+":7"), hostIP)
	x.wants("out by IPv6", x.ask(web.ns, "["+wanIP6+"]:7"), hostIP6)

	x.answers(web.ns, ":80")
	x.ip(x.wan, "route", "add", "10.66.0.0/24", "via", hostIP)
	x.ip(x.wan, "-6", "route", "add", n.IPv6.String(), "via", hostIP6)
	x.wants("from a guest", x.ask(db.ns, "10.66.0.11:80"), db.ip)
	x.drops("unasked by IPv4", x.wan, "10.66.0.11:80")
	x.drops("unasked by IPv6", x.wan, "["+web6+"]:80")

	if err := x.m.Delete(x.ctx(), "lab", false); err == nil ||
		!strings.Contains(err.Error(), "guests are on it: g1, g2") {
		t.Errorf("delete with guests: %v", err)
	}
	x.consistent()
	if err := x.m.Delete(x.ctx(), "lab", true); err != nil {
		t.Fatal(err)
	}
	if routes := x.ip(web.ns, "-6", "route", "show", "default"); routes != "" {
		t.Errorf("after the end of their router, guests have %s", routes)
	}
	for _, port := range []string{"g1", "g2"} {
		x.ip(x.host, "link", "del", port)
	}
	x.wants("left", x.left(), before)
}

// TestLiveMTU: a network's bridge has its MTU, whatever its ports have and others set.
func TestLiveMTU(t *testing.T) {
	x := newHost(t)
	n := labNetwork()
	n.MTU = 9000
	x.create(n)
	x.guest("lab", webMAC).lease("") // both have ports with an MTU of 1500
	mtu := func() int {
		t.Helper()
		l, err := x.m.nl.Link("lab")
		if err != nil {
			t.Fatal(err)
		}
		return l.MTU
	}
	if got := mtu(); got != 9000 {
		t.Errorf("MTU %d", got)
	}
	x.consistent()
	x.ip(x.host, "link", "set", "lab", "mtu", "1400")
	c, err := x.m.Check(x.ctx())
	if err != nil || len(c.Differences) != 1 || c.Differences[0].What != "mtu" || c.Differences[0].Found != "1400" {
		t.Errorf("%+v, %v", c, err)
	}
	for _, want := range []bool{true, false} {
		if _, changed, err := x.m.Apply(x.ctx(), "lab"); err != nil || changed != want {
			t.Errorf("apply: %v, %v", changed, err)
		}
	}
	if got := mtu(); got != 9000 {
		t.Errorf("MTU %d after apply", got)
	}
	x.consistent()
}

func TestLiveForwards(t *testing.T) {
	x := newHost(t)
	n := labNetwork()
	n.Forwards = []config.Forward{
		{Protocol: "tcp", First: 8080, Last: 8080, Guest: "web", Port: 80},
		{Protocol: "tcp", First: 9000, Last: 9001, Listen: netip.MustParseAddr(hostIP), Guest: "web"},
	}
	x.create(n)
	web, db := x.guest("lab", webMAC).lease(""), x.guest("lab", dbMAC).lease("")
	x.answers(web.ns, ":80")
	x.answers(web.ns, ":9001")
	x.wants("from outside", x.ask(x.wan, hostIP+":8080"), wanIP)
	x.wants("from the host", x.ask(x.host, hostIP+":8080"), "10.66.0.1")
	x.wants("from a guest", x.ask(db.ns, hostIP+":8080"), "10.66.0.1")
	x.wants("from a guest, to the bridge's address", x.ask(db.ns, "10.66.0.1:8080"), "10.66.0.1")
	x.wants("from the guest itself", x.ask(web.ns, hostIP+":8080"), "10.66.0.1")
	x.wants("of a range", x.ask(x.wan, hostIP+":9001"), wanIP)
	if got := x.ask(db.ns, "10.66.0.1:9001"); !strings.Contains(got, "refused") {
		t.Errorf("to another address than it listens on: %q", got)
	}

	if x.bridgeNetfilter("1") {
		x.wants("from a guest, with br_netfilter", x.ask(db.ns, hostIP+":8080"), "10.66.0.1")
		x.wants("from outside, with br_netfilter", x.ask(x.wan, hostIP+":8080"), wanIP)
		x.bridgeNetfilter("0")
	}

	web6 := web.globalIPv6(n.IPv6)
	err := x.m.Replace(x.ctx(), "lab", func(n *config.Network) error {
		n.Forwards = append(
			n.Forwards[1:],
			config.Forward{Protocol: "tcp", First: 8081, Last: 8081, Guest: web6, Port: 80},
		)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	x.consistent()
	x.wants("by IPv6", x.ask(x.wan, "["+hostIP6+"]:8081"), wanIP6)
	if got := x.ask(x.wan, hostIP+":8080"); !strings.Contains(got, "refused") {
		t.Errorf("removed: %q", got)
	}

	other := &config.Network{
		Name:   "other",
		NAT:    true,
		Domain: "x",
		Subnet: netip.MustParsePrefix("10.67.0.0/24"),
		Forwards: []config.Forward{
			{Protocol: "tcp", First: 9001, Last: 9001, Guest: "10.67.0.9"},
		},
	}
	err = x.m.Create(x.ctx(), Wanted{Network: other})
	if err == nil || !strings.Contains(err.Error(), "forward tcp:9001: network lab has tcp:9000-9001") {
		t.Errorf("ports of another network: %v", err)
	}
	broken := func(n *config.Network) error {
		n.Forwards = append(n.Forwards, config.Forward{Protocol: "tcp", First: 1, Last: 1, Guest: "nobody"})
		return nil
	}
	if err := x.m.Replace(x.ctx(), "lab", broken); err == nil || !strings.Contains(err.Error(), "no host nobody") {
		t.Errorf("an unknown guest: %v", err)
	}
	x.consistent()
}

// TestLiveUpstream: names of the world are asked of the host's name servers, also when they change,
// and when they are on its loopback interface.
func TestLiveUpstream(t *testing.T) {
	x := newHost(t)
	x.m.Resolv = filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.Chmod(filepath.Dir(filepath.Dir(x.m.Resolv)), 0o755); err != nil { // for dnsmasq's user
		t.Fatal(err)
	}
	resolv := func(text string) {
		if err := os.WriteFile(x.m.Resolv, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	noted := func() string { return strings.Join(x.m.UpstreamNotices(labNetwork()), "\n") }
	resolv("# none\n")
	n := x.create(labNetwork())
	if !strings.Contains(noted(), x.m.Resolv+" names no name server") {
		t.Errorf("without a name server: %q", noted())
	}
	g := x.guest("lab", webMAC).lease("")
	x.nameServer(x.wan, wanIP, "outside.test", "192.0.2.7")
	resolv("nameserver " + wanIP + "\n")
	x.resolves(g.ns, "10.66.0.2", "outside.test", "192.0.2.7")
	x.wants("notices", noted(), "")

	// The host's loopback interface: each name is known by one of the name servers only. All of
	// them have an answer that dnsmasq gets by TCP only.
	x.ip(x.host, "link", "set", "lo", "up")
	const long = 30
	var texts []string
	for i := range long {
		texts = append(texts, fmt.Sprintf("--txt-record=long.test,%03d%s", i, strings.Repeat("x", 200)))
	}
	addresses := []string{"127.0.0.1", "127.0.0.53", "::1", "127.0.1.1"}
	for i, address := range addresses {
		x.nameServer(x.host, address, fmt.Sprintf("host%d.test", i), fmt.Sprintf("192.0.2.%d", 10+i), texts...)
	}
	resolv("nameserver " + strings.Join(addresses, "\nnameserver ") + "\n")
	for i := range addresses {
		x.resolves(g.ns, "10.66.0.2", fmt.Sprintf("host%d.test", i), fmt.Sprintf("192.0.2.%d", 10+i))
	}
	x.wants("notices", noted(), "")
	nstest.Eventually(t, patience, "a long answer", func() bool {
		ctx, cancel := context.WithTimeout(x.ctx(), patience)
		defer cancel()
		got, err := x.resolver(g.ns, "10.66.0.2").LookupTXT(ctx, "long.test")
		return err == nil && len(got) == long
	})
	x.consistent()

	// The relay has no privilege, and goes when no name server needs it; the server ends with it.
	pid := 0
	nstest.Eventually(t, patience, "one relay", func() bool {
		relays := x.children(server.RelayVerb)
		if len(relays) == 1 {
			pid = relays[0]
		}
		return len(relays) == 1
	})
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"CapPrm:\t0000000000000000\n", "CapAmb:\t0000000000000000\n", "NoNewPrivs:\t1\n"} {
		if !strings.Contains(string(status), line) {
			t.Errorf("the relay has no %q:\n%s", line, status)
		}
	}
	if strings.Contains(string(status), "Uid:\t0\t") {
		t.Error("the relay is root's")
	}
	resolv("nameserver " + wanIP + "\n")
	nstest.Eventually(t, patience, "no relay", func() bool { return len(x.children(server.RelayVerb)) == 0 })
	resolv("nameserver 127.0.1.1\n")
	nstest.Eventually(t, patience, "a relay again", func() bool {
		relays := x.children(server.RelayVerb)
		return len(relays) == 1 && syscall.Kill(relays[0], syscall.SIGKILL) == nil
	})
	nstest.Eventually(t, patience, "the end of the server", func() bool {
		port, err := server.Running(x.m.nl, n)
		return err == nil && port == nil
	})
	if err := x.m.Service.Stop(x.ctx(), x.m, n); err == nil || !strings.Contains(err.Error(), "signal: killed") {
		t.Errorf("the server says %v", err)
	}
}

// children returns the processes of this test that run the command verb of the test binary.
func (x *h) children(verb []string) (pids []int) {
	x.Helper()
	want := "\x00" + strings.Join(verb, "\x00") + "\x00"
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		x.Fatal(err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil || !strings.Contains(string(text), want) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		if err != nil {
			x.Fatal(err)
		}
		status, err := os.ReadFile(filepath.Join(filepath.Dir(f), "status"))
		if err == nil && strings.Contains(string(status), fmt.Sprintf("\nPPid:\t%d\n", os.Getpid())) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// nameServer answers for one name in ns until the test ends. args of dnsmasq(8) may add more.
func (x *h) nameServer(ns *netns.NS, address, name, ip string, args ...string) {
	x.Helper()
	program, err := tool.Find("dnsmasq", "dnsmasq-base")
	if err != nil {
		x.Fatal(err)
	}
	cmd := exec.Command(program, append([]string{
		"--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--no-hosts", "--no-resolv",
		"--user=root", "--listen-address=" + address, "--bind-interfaces", "--address=/" + name + "/" + ip,
	}, args...)...)
	if err := ns.Do(cmd.Start); err != nil {
		x.Fatal(err)
	}
	x.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}

// TestLiveWithoutNAT: guests reach the host and each other, and nothing beyond.
func TestLiveWithoutNAT(t *testing.T) {
	x := newHost(t)
	n := labNetwork()
	n.NAT = false
	x.create(n)
	x.sysctl(x.host, forwarding.IP4, "1")
	web, db := x.guest("lab", webMAC), x.guest("lab", dbMAC).lease("")
	told, err := web.dhcp("")
	x.wants("lease", told, "lease 10.66.0.11 router  dns 10.66.0.2 domain lab.internal")
	if err != nil {
		t.Fatal(err)
	}
	x.answers(web.ns, ":80")
	x.answers(x.host, ":7")
	x.answers(x.wan, ":7")
	x.wants("a guest", x.ask(db.ns, "10.66.0.11:80"), db.ip)
	x.wants("the host", x.ask(db.ns, "10.66.0.1:7"), db.ip)
	x.ip(db.ns, "route", "add", "default", "via", "10.66.0.1")
	x.drops("beyond", db.ns, wanIP+":7")
}

// TestLiveForeignFirewalls: what others drop does not keep guests from their addresses, and check
// names who drops it and the cure.
func TestLiveForeignFirewalls(t *testing.T) {
	x := newHost(t)
	x.create(labNetwork())
	x.answers(x.wan, ":7")
	g := x.guest("lab", webMAC)

	x.nft(`table ip filter {
		chain ufw-before-input { }
		chain INPUT { type filter hook input priority filter; policy drop; jump ufw-before-input
			ct state established,related accept
		}
	}
	table ip6 filter {
		chain INPUT { type filter hook input priority filter; policy drop; meta l4proto 58 accept
		}
	}`)
	g.lease("")
	g.globalIPv6(netip.MustParsePrefix("fd66:1:2:3::/64"))
	x.wants("with dropped input", x.ask(g.ns, wanIP+":7"), hostIP)
	x.consistent()
	found := x.obstacles()
	if !strings.Contains(
		found,
		"ip filter INPUT of ufw drops IPv4 traffic of guests to the host itself; DHCP and DNS are "+
			"not affected (ufw allow in on lab)",
	) {
		t.Error(found)
	}
	x.nft("flush ruleset")

	x.nft(`table ip filter {
		chain DOCKER-USER { }
		chain FORWARD { type filter hook forward priority filter; policy drop; jump DOCKER-USER
		}
	}`)
	if _, _, err := x.m.Apply(x.ctx(), "lab"); err != nil {
		t.Fatal(err)
	}
	x.ip(g.ns, "addr", "flush", "dev", "eth0")
	g.lease("")
	x.drops("with dropped forwards", g.ns, wanIP+":7")
	c, err := x.m.Check(x.ctx())
	if err != nil || len(c.Differences) != 1 || c.Differences[0].What != "firewall" {
		t.Fatalf("%+v, %v", c, err)
	}
	d := c.Differences[0]
	x.wants("the chain", d.Found, "ip filter FORWARD of Docker drops IPv4 traffic of guests to other networks")
	x.wants(
		"the cure",
		d.Mend,
		"iptables -I DOCKER-USER -i lab -j ACCEPT; iptables -I DOCKER-USER -o lab -m conntrack "+
			"--ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT; or vmnet network apply lab --integrate",
	)
	if x.bridgeNetfilter("1") {
		if found := x.obstacles(); !strings.Contains(found, "and to each other and their DHCP server, since "+
			"net.bridge.bridge-nf-call-iptables is 1") {
			t.Error(found)
		}
	}
	x.nft(`add rule ip filter DOCKER-USER iifname "lab" accept
		add rule ip filter DOCKER-USER oifname "lab" ct state established,related accept`)
	x.consistent()
	x.ip(g.ns, "addr", "flush", "dev", "eth0")
	g.lease("")
	x.wants("cured", x.ask(g.ns, wanIP+":7"), hostIP)
}

func (x *h) nft(text string) {
	x.Helper()
	if err := nft.Apply(x.ctx(), x.host, text); err != nil {
		x.Fatal(err)
	}
}

func (x *h) obstacles() string {
	x.Helper()
	n, err := x.m.Dir.Read("lab")
	if err != nil {
		x.Fatal(err)
	}
	all, err := x.m.Obstacles(x.ctx(), n)
	if err != nil {
		x.Fatal(err)
	}
	var texts []string
	for _, o := range all {
		texts = append(texts, o.String())
	}
	return strings.Join(texts, "\n")
}
