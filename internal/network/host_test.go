package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"vmnet/internal/kernel/forwarding"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/leaktest"
	"vmnet/internal/network/config"
	"vmnet/internal/network/server"
	"vmnet/internal/network/tool"
	"vmnet/internal/nstest"
)

func TestMain(m *testing.M) {
	if is, err := server.Part(os.Args[1:]); is {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	leaktest.Main(m)
}

// patience is how long things may take that need no time on an idle machine.
const patience = 30 * time.Second

// h is a host in a namespace of its own, with another machine outside.
type h struct {
	testing.TB
	host, wan *netns.NS
	m         *Manager
	guests    int
}

// Addresses of the host and of the machine outside.
const (
	hostIP, wanIP   = "203.0.113.2", "203.0.113.1"
	hostIP6, wanIP6 = "2001:db8:f::2", "2001:db8:f::1"
)

func newHost(tb testing.TB) *h {
	tb.Helper()
	requirePrograms(tb)
	host, wan := nstest.New(tb), nstest.New(tb)
	x := &h{TB: tb, host: host, wan: wan, m: newManager(tb, host)}
	x.bridgeNetfilter("0")
	x.sysctl(host, "net/ipv6/conf/default/accept_dad", "0") // addresses are usable at once
	x.cable(host, "up0", hostIP+"/24", hostIP6+"/64", wan, "e0", wanIP+"/24", wanIP6+"/64")
	x.ip(host, "route", "add", "default", "via", wanIP)
	x.ip(host, "-6", "route", "add", "default", "via", wanIP6)
	return x
}

// newManager returns the Manager of a host.
func newManager(tb testing.TB, host *netns.NS) *Manager {
	tb.Helper()
	dir := tb.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // for dnsmasq's user
		tb.Fatal(err)
	}
	m := &Manager{NS: host, Dir: config.Dir(filepath.Join(dir, "networks.d")), State: filepath.Join(dir, "state")}
	m.Firewall = func(context.Context, ...string) (string, error) { return "", tool.ErrNotInstalled }
	m.Service = &inProcess{running: map[string]func() error{}}
	if err := m.Open(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(m.Close)
	return m
}

// bridgeNetfilter says whether bridged frames pass the chains for IP, where the kernel can do that.
func (x *h) bridgeNetfilter(on string) (can bool) {
	x.Helper()
	const name = "net/bridge/bridge-nf-call-iptables"
	_, can, err := x.m.settings().Read(name)
	if err != nil {
		x.Fatal(err)
	}
	if can {
		x.sysctl(x.host, name, on)
		x.sysctl(x.host, "net/bridge/bridge-nf-call-ip6tables", on)
	}
	return can
}

func requirePrograms(tb testing.TB) {
	tb.Helper()
	nstest.RequireRoot(tb)
	for program, pkg := range map[string]string{
		"nft": "nftables", "dnsmasq": "dnsmasq-base", "busybox": "busybox-static",
	} {
		_, err := tool.Find(program, pkg)
		nstest.Require(tb, program, err == nil, "apt install "+pkg)
	}
}

// inProcess runs servers in goroutines of the test.
type inProcess struct{ running map[string]func() error }

func (s *inProcess) Start(ctx context.Context, m *Manager, n *config.Network) error {
	if err := s.Stop(ctx, m, n); err != nil {
		return err
	}
	if !n.DHCP {
		return nil
	}
	own, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- m.Serve(own, n, func() { close(ready) }, func(error) {}) }()
	select {
	case <-ready:
		s.running[n.Name] = func() error { cancel(); return <-ended }
		return nil
	case err := <-ended:
		cancel()
		return errors.Join(err, errors.New("the server has ended"))
	}
}

func (s *inProcess) Stop(_ context.Context, _ *Manager, n *config.Network) error {
	stop := s.running[n.Name]
	delete(s.running, n.Name)
	if stop == nil {
		return nil
	}
	return stop()
}

func (s *inProcess) AtBoot(context.Context, *config.Network) bool { return true }

func (s *inProcess) Text(n *config.Network) string { return "serve " + n.Name }

// create makes a network, which ends with the test.
func (x *h) create(n *config.Network) *config.Network {
	x.Helper()
	if n.Domain == "" {
		n.Domain = config.DefaultDomain(n.Name)
	}
	if err := x.m.Create(x.ctx(), Wanted{n, !n.IPv6.IsValid()}); err != nil {
		x.Fatal(err)
	}
	x.deleted(n.Name)
	return n
}

// deleted deletes a network at the end of the test, if it is still there.
func (x *h) deleted(name string) {
	x.Cleanup(func() {
		names, err := x.m.Dir.Names()
		if err == nil && slices.Contains(names, name) {
			err = x.m.Delete(context.Background(), name, true)
		}
		if err != nil {
			x.Error(err)
		}
	})
}

func (x *h) ctx() context.Context { return x.Context() }

// ip runs ip(8) in ns.
func (x *h) ip(ns *netns.NS, args ...string) string {
	x.Helper()
	out, err := x.run(ns, append([]string{"ip"}, args...)...)
	if err != nil {
		x.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out
}

// run runs a program in ns, for a while at most.
func (x *h) run(ns *netns.NS, argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(x.ctx(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.WaitDelay = 5 * time.Second
	var out []byte
	err := ns.Do(func() (err error) { out, err = cmd.CombinedOutput(); return err })
	return string(out), err
}

// cable joins two namespaces.
func (x *h) cable(a *netns.NS, aName, a4, a6 string, b *netns.NS, bName, b4, b6 string) {
	x.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = aName
	v := &netlink.Veth{LinkAttrs: attrs, PeerName: bName, PeerNamespace: netlink.NsFd(b.Handle())}
	if err := nstest.Handle(x, a).LinkAdd(v); err != nil {
		x.Fatal(err)
	}
	for _, end := range []struct {
		ns         *netns.NS
		name       string
		ip4, ipsix string
	}{{a, aName, a4, a6}, {b, bName, b4, b6}} {
		x.ip(end.ns, "link", "set", end.name, "up")
		if end.ip4 != "" {
			x.ip(end.ns, "addr", "add", end.ip4, "dev", end.name)
			x.ip(end.ns, "addr", "add", end.ipsix, "dev", end.name, "nodad")
		}
	}
}

// guest is a namespace with one port of a network.
type guest struct {
	*h
	ns *netns.NS
	ip string // once it has a lease
}

// sysctl sets a setting of a namespace.
func (x *h) sysctl(ns *netns.NS, name, value string) {
	x.Helper()
	err := ns.Do(func() error { return os.WriteFile("/proc/sys/"+name, []byte(value), 0o644) })
	if err != nil {
		x.Fatal(err)
	}
}

// portName returns the name of the network's port of a guest.
func portName(guest int) string { return fmt.Sprintf("g%d", guest) }

func (x *h) guest(network, mac string) *guest {
	x.Helper()
	g := &guest{h: x, ns: nstest.New(x)}
	for _, s := range []string{"accept_dad", "dad_transmits", "router_solicitation_delay"} {
		x.sysctl(g.ns, "net/ipv6/conf/default/"+s, "0")
	}
	x.guests++
	port := portName(x.guests)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = port
	peer, err := net.ParseMAC(mac)
	if err != nil {
		x.Fatal(err)
	}
	v := &netlink.Veth{
		LinkAttrs: attrs, PeerName: "eth0", PeerHardwareAddr: peer, PeerNamespace: netlink.NsFd(g.ns.Handle()),
	}
	if err := nstest.Handle(x, x.host).LinkAdd(v); err != nil {
		x.Fatal(err)
	}
	x.ip(x.host, "link", "set", port, "addrgenmode", "none", "master", network, "up")
	x.ip(g.ns, "link", "set", "eth0", "up")
	return g
}

// udhcpcScript sets what a lease says.
const udhcpcScript = `#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add "$ip/$mask" dev "$interface"
[ -z "$router" ] || ip route add default via "$router"
echo "lease $ip router $router dns $dns domain $domain${mtu:+ mtu $mtu}"
`

// dhcp asks for a lease, under a name unless that is empty, and returns what the server gave.
func (g *guest) dhcp(name string) (string, error) {
	script := filepath.Join(g.TempDir(), "udhcpc.sh")
	if err := os.WriteFile(script, []byte(udhcpcScript), 0o755); err != nil {
		g.Fatal(err)
	}
	argv := []string{
		"busybox", "udhcpc", "-f", "-n", "-q", "-t", "5", "-T", "1", "-i", "eth0", "-O", "mtu", "-s", script,
	}
	if name != "" {
		argv = append(argv, "-x", "hostname:"+name)
	}
	out, err := g.run(g.ns, argv...)
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "lease" {
			g.ip = f[1]
			return strings.TrimSpace(line), err
		}
	}
	return "", fmt.Errorf("no lease: %w: %s", err, out)
}

func (g *guest) lease(name string) *guest {
	g.Helper()
	if _, err := g.dhcp(name); err != nil {
		g.Fatal(err)
	}
	return g
}

// again asks for another lease, as after a boot, and returns the address.
func (g *guest) again() string {
	g.Helper()
	g.h.ip(g.ns, "addr", "flush", "dev", "eth0")
	return g.lease("").ip
}

// lookupTimeout is for questions that nobody may answer: tests that expect an answer ask again.
const lookupTimeout = time.Second

// resolves waits until a network's name server has the one address for a name.
func (x *h) resolves(ns *netns.NS, nameserver, name, want string) {
	x.Helper()
	nstest.Eventually(x, patience, name+" is "+want, func() bool {
		addrs, err := x.lookup(ns, nameserver, name)
		return err == nil && slices.Equal(addrs, []string{want})
	})
}

// lookup asks a network's name server from ns.
func (x *h) lookup(ns *netns.NS, nameserver, name string) ([]string, error) {
	ctx, cancel := context.WithTimeout(x.ctx(), lookupTimeout)
	defer cancel()
	return x.resolver(ns, nameserver).LookupHost(ctx, name)
}

// resolver asks a network's name server from ns.
func (x *h) resolver(ns *netns.NS, nameserver string) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(_ context.Context, network, _ string) (net.Conn, error) {
		return x.dial(ns, dialTimeout, network, net.JoinHostPort(nameserver, "53"))
	}}
}

// Times for connections that should be answered, and for those that should be dropped.
const (
	dialTimeout = 5 * time.Second
	dropTimeout = 500 * time.Millisecond
)

func (x *h) dial(ns *netns.NS, within time.Duration, network, address string) (c net.Conn, err error) {
	err = ns.Do(func() error {
		c, err = net.DialTimeout(network, address, within)
		return err
	})
	return c, err
}

// answers serves TCP in ns, and tells each client its address.
func (x *h) answers(ns *netns.NS, address string) {
	x.Helper()
	x.serves(ns, address, func(c net.Conn) {
		from, _, _ := net.SplitHostPort(c.RemoteAddr().String())
		_, _ = io.WriteString(c, from)
	})
}

// serves serves TCP in ns, one connection at a time, until the test ends.
func (x *h) serves(ns *netns.NS, address string, serve func(net.Conn)) {
	x.Helper()
	var l net.Listener
	err := ns.Do(func() (err error) { l, err = net.Listen("tcp", address); return err })
	if err != nil {
		x.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serve(c)
			_ = c.Close()
		}
	}()
	x.Cleanup(func() { _ = l.Close(); <-done })
}

// echoes serves TCP in ns, and sends back what comes.
func (x *h) echoes(ns *netns.NS, address string) {
	x.Helper()
	x.serves(ns, address, func(c net.Conn) { _, _ = io.Copy(c, c) })
}

// ask returns what such a server answers, or what went wrong.
func (x *h) ask(ns *netns.NS, address string) string {
	c, err := x.dial(ns, dialTimeout, "tcp", address)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	b, err := io.ReadAll(c)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// drops reports a connection that is not dropped.
func (x *h) drops(what string, ns *netns.NS, address string) {
	x.Helper()
	c, err := x.dial(ns, dropTimeout, "tcp", address)
	if err == nil {
		_ = c.Close()
	}
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		x.Errorf("%s: %v, want a timeout", what, err)
	}
}

// wants reports an answer other than the one wanted.
func (x *h) wants(what, got, want string) {
	x.Helper()
	if got != want {
		x.Errorf("%s: %q, want %q", what, got, want)
	}
}

// consistent fails the test if check finds a difference.
func (x *h) consistent(names ...string) {
	x.Helper()
	c, err := x.m.Check(x.ctx(), names...)
	if err != nil || len(c.Differences) > 0 {
		x.Errorf("check: %+v, %v", c.Differences, err)
	}
}

// left is what there is of networks in the host's namespace and directories.
func (x *h) left() string {
	x.Helper()
	var b strings.Builder
	b.WriteString(x.ip(x.host, "-o", "link", "show", "type", "bridge"))
	for _, kind := range []string{"veth", "vxlan"} {
		for line := range strings.Lines(x.ip(x.host, "-o", "link", "show", "type", kind)) {
			if !strings.Contains(line, ": up0@") {
				b.WriteString(line)
			}
		}
	}
	rules, err := x.run(x.host, "nft", "list", "ruleset")
	if err != nil {
		x.Fatal(err)
	}
	b.WriteString(rules)
	for _, name := range []string{forwarding.IP4, forwarding.IP6} {
		value, _, err := x.m.settings().Read(name)
		if err != nil {
			x.Fatal(err)
		}
		fmt.Fprintf(&b, "%s=%s\n", name, value)
	}
	for _, dir := range []string{string(x.m.Dir), x.m.State} {
		files, _ := filepath.Glob(filepath.Join(dir, "*"))
		more, _ := filepath.Glob(filepath.Join(dir, ".*yaml*"))
		files = slices.DeleteFunc(append(files, more...), func(f string) bool { return filepath.Base(f) == ".lock" })
		fmt.Fprintf(&b, "%q\n", files)
	}
	return b.String()
}

// globalIPv6 waits for the address that a guest has from router advertisements.
func (g *guest) globalIPv6(prefix netip.Prefix) string {
	g.Helper()
	var found string
	nstest.Eventually(g, patience, "an address in "+prefix.String(), func() bool {
		for _, f := range strings.Fields(g.h.ip(g.ns, "-6", "-o", "addr", "show", "dev", "eth0", "scope", "global")) {
			if p, err := netip.ParsePrefix(f); err == nil && prefix.Contains(p.Addr()) {
				found = p.Addr().String()
			}
		}
		return found != ""
	})
	return found
}
