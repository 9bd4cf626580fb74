package tapmgr_test

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"vmnet/internal/network"
	netconfig "vmnet/internal/network/config"
	"vmnet/internal/network/dhcp"
	"vmnet/internal/network/roster"
	"vmnet/internal/network/tool"
	"vmnet/internal/nstest"
	"vmnet/tapmgr/nic"
	"vmnet/testvm/agent"
)

// labNet is a network in a host's netns, with its server.
type labNet struct {
	*host
	m *network.Manager
	n *netconfig.Network
}

// labNet makes the network lab, which ends with the test.
func (h *host) labNet() *labNet {
	h.Helper()
	nstest.RequireRoot(h)
	for program, pkg := range map[string]string{"nft": "nftables", "dnsmasq": "dnsmasq-base"} {
		_, err := tool.Find(program, pkg)
		nstest.Require(h, program, err == nil, "apt install "+pkg)
	}
	dir := h.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // for dnsmasq's user
		h.Fatal(err)
	}
	m := &network.Manager{NS: h.ns, Dir: netconfig.Dir(filepath.Join(dir, "etc")), State: filepath.Join(dir, "state")}
	h.Host().Networks = roster.Files{Dir: m.Dir, State: m.State}
	if err := m.Open(); err != nil {
		h.Fatal(err)
	}
	h.Cleanup(m.Close)
	web, err := netconfig.ParseMAC("52:54:00:00:66:01")
	n := &netconfig.Network{
		Name: "lab", NAT: true, DHCP: true, Domain: "lab.internal", Subnet: netip.MustParsePrefix("10.66.0.0/24"),
		IPv6:  netip.MustParsePrefix("fd66:1:2:3::/64"),
		Hosts: []netconfig.Host{{Name: "web", MAC: web, IP: netip.MustParseAddr("10.66.0.11")}},
	}
	if err == nil {
		err = m.Create(h.context(30*time.Second), network.Wanted{Network: n})
	}
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() {
		if err := m.Delete(context.Background(), "lab", true); err != nil {
			h.Error(err)
		}
	})
	l := &labNet{host: h, m: m, n: n}
	h.Cleanup(l.serve())
	return l
}

// serve runs the network's server until stop is called.
func (l *labNet) serve() (stop func()) {
	l.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- l.m.Serve(ctx, l.n, func() { close(ready) }, func(err error) { l.Log(err) })
	}()
	select {
	case <-ready:
	case err := <-ended:
		cancel()
		l.Fatal("the server has ended: ", err)
	}
	return func() {
		cancel()
		if err := <-ended; err != nil {
			l.Error(err)
		}
	}
}

// inLab returns the Spec of a NIC of the network.
func (g *guest) inLab(nicID string, ip ...string) nic.Spec {
	s := g.spec(nicID)
	s.Bridge, s.Network = "", "lab"
	for _, a := range ip {
		s.IP = append(s.IP, netip.MustParseAddr(a))
	}
	return s
}

// knows returns what the server's dnsmasq has read of guests.
func (l *labNet) knows() string {
	l.Helper()
	files := dhcp.FilesOf(l.m.State, "lab")
	var all string
	for _, path := range []string{files.Reservations, files.Names} {
		text, err := os.ReadFile(path)
		if err != nil {
			l.Fatal(err)
		}
		all += string(text)
	}
	return all
}

// udhcpcScript sets what a lease says.
const udhcpcScript = `#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add "$ip/$mask" dev "$interface"
ip route add default via "$router"
echo "lease $ip router $router dns $dns domain $domain"
`

// lease has the guest's NIC get an address by DHCP, with further arguments of udhcpc, and returns
// what the server gave.
func (h *host) lease(g *guest, found nic.NIC, args ...string) string {
	h.Helper()
	ctx := h.context(120 * time.Second)
	link, err := g.Guest.WaitNIC(ctx, found.MAC)
	if err == nil {
		err = g.Guest.Up(ctx, link.Name)
	}
	if err != nil {
		h.Fatal(err)
	}
	argv := append(
		[]string{"busybox", "udhcpc", "-f", "-n", "-q", "-t", "8", "-T", "1", "-i", link.Name, "-s", "/lease"},
		args...)
	h.sh(g, "cat > /lease; chmod +x /lease", udhcpcScript)
	out, err := g.Guest.Run(ctx, agent.Command{Argv: argv})
	for line := range strings.Lines(out.Stdout) {
		if strings.HasPrefix(line, "lease ") {
			return strings.TrimSpace(line)
		}
	}
	h.Fatalf("no lease: %v, %+v", err, out)
	return ""
}

// sh runs a shell command in the guest.
func (h *host) sh(g *guest, script, stdin string) string {
	h.Helper()
	out, err := g.Guest.Run(h.context(30*time.Second), agent.Command{
		Argv: []string{"sh", "-c", script}, Stdin: stdin,
	})
	if err != nil || out.Code != 0 {
		h.Errorf("%s: %v, %+v", script, err, out)
	}
	return strings.TrimSpace(out.Stdout)
}
