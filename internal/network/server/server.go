// Package server runs a network's server: dnsmasq in a network namespace that has no name and lives
// as long as dnsmasq does, behind a port of the network's bridge. So another program's firewall for
// the host does not drop what guests ask, and nothing is left of a server that was killed.
package server

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/ethtool"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/network/child"
	"vmnet/internal/network/config"
	"vmnet/internal/network/dhcp"
	"vmnet/internal/network/dnsrelay"
	"vmnet/internal/network/radv"
	"vmnet/internal/network/tool"
	"vmnet/internal/stablemac"
)

// Config is what a server needs.
type Config struct {
	NS      *netns.NS // of the bridge
	Network *config.Network
	State   string // the directory of the lease files
	Resolv  string // the host's resolv.conf; empty for ResolvConf
}

// Mark returns what the alias of the server's port says, before the server knows a guest. Its
// Settings are a sum of all that the server was started with: one with others is out of date.
func (c Config) Mark() config.ServerMark {
	args := append(c.args(), c.advertiseArgs()...)
	for _, a := range append(c.addresses(), c.Network.Addresses()...) {
		args = append(args, a.String())
	}
	sum := sha256.Sum256([]byte(strings.Join(args, "\x00")))
	return config.ServerMark{Network: c.Network.Name, Settings: hex.EncodeToString(sum[:8])}
}

// files are those of the server.
func (c Config) files() dhcp.Files { return dhcp.FilesOf(c.State, c.Network.Name) }

func (c Config) args() []string {
	return dhcp.Args(c.Network, c.files(), c.resolv())
}

// AdvertiseVerb and RelayVerb are the commands of this program that run radv.Main and dnsrelay.Main
// with the arguments after them.
var (
	AdvertiseVerb = []string{"network", "advertise"}
	RelayVerb     = []string{"network", "relay"}
)

// Part runs the part of the server whose command argv is, without the program's name, and reports
// whether it is one. A program that calls Serve has those commands, or calls Part first in main.
func Part(argv []string) (is bool, err error) {
	for _, part := range []struct {
		verb []string
		main func([]string) error
	}{{AdvertiseVerb, radv.Main}, {RelayVerb, dnsrelay.Main}} {
		if n := len(part.verb); len(argv) >= n && slices.Equal(argv[:n], part.verb) {
			return true, part.main(argv[n:])
		}
	}
	return false, nil
}

// advertiseArgs are the arguments of this program as the sender of router advertisements; nil
// without IPv6.
func (c Config) advertiseArgs() []string {
	if !c.Network.IPv6.IsValid() {
		return nil
	}
	const lifetime = 30 * time.Minute
	p := radv.Params{Prefix: c.Network.IPv6, DNS: c.Network.Server6().Addr(), Domain: c.Network.Domain}
	if c.Network.NAT {
		p.Lifetime = lifetime // without a way out it is no router
	}
	return append(slices.Clone(AdvertiseVerb), p.Args()...)
}

func (c Config) resolv() string {
	return cmp.Or(c.Resolv, ResolvConf())
}

// resolvedConf has the name servers that systemd-resolved asks, where /etc/resolv.conf names only
// systemd-resolved itself, on the host's loopback interface.
const resolvedConf = "/run/systemd/resolve/resolv.conf"

// ResolvConf returns the path of the file that names the host's name servers.
func ResolvConf() string {
	if to, err := filepath.EvalSymlinks("/etc/resolv.conf"); err == nil &&
		strings.HasPrefix(to, "/run/systemd/resolve/") {
		return resolvedConf
	}
	return "/etc/resolv.conf"
}

// Lines returns what is run, for people.
func (c Config) Lines() []string {
	lines := []string{strings.Join(append([]string{dhcp.Program}, c.args()...), " ")}
	if args := c.advertiseArgs(); args != nil {
		lines = append(lines, strings.Join(append([]string{"vmnet"}, args...), " "))
	}
	if servers, _ := c.loopbackServers(); len(servers) > 0 {
		lines = append(lines, fmt.Sprintf("vmnet %s %d # to %v", strings.Join(RelayVerb, " "), 2*len(servers), servers))
	}
	return lines
}

// Callbacks are what Serve tells its caller, and what the caller tells it.
type Callbacks struct {
	// Guests has the guests that the server should know: those at the start, and then all of them
	// after each change.
	Guests <-chan dhcp.Guests
	Ready  func()      // guests are answered
	Note   func(error) // what went wrong and is tried again
}

// Serve runs the server until ctx ends, which is success, or one of its programs does. The bridge
// must be there. Nothing is left when it returns.
func Serve(ctx context.Context, c Config, with Callbacks) (err error) {
	c.Resolv = c.resolv() // one file for all programs, also if /etc/resolv.conf becomes another link
	program, err := tool.Find(dhcp.Program, "dnsmasq-base")
	if err != nil {
		return err
	}
	who, err := account()
	if err != nil {
		return err
	}
	if err := prepareLeases(c.files().Leases, who); err != nil {
		return err
	}
	var first dhcp.Guests
	select {
	case first = <-with.Guests:
	case <-ctx.Done():
		return nil
	}
	if err := c.writeGuests(first.List); err != nil {
		return fmt.Errorf("guests of network %s: %w", c.Network.Name, err)
	}
	nl, err := rtnl.Open(c.NS)
	if err != nil {
		return err
	}
	defer nl.Close()
	inner, port, err := c.namespace(nl)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rtnl.IgnoreNotExist(nl.Delete(port))) }()
	defer func() { err = errors.Join(err, inner.Close()) }()
	all, err := c.start(nl, inner, program, who)
	defer func() { err = errors.Join(err, child.Stop(all...)) }()
	if err != nil {
		return err
	}
	r := &relay{c: c, inner: inner, who: who, note: with.Note}
	r.update()
	relayed, stop := r.run(ctx)
	defer func() { err = errors.Join(err, stop()) }()
	main := all[0]
	if err := Listening(ctx, main, fmt.Sprintf("/proc/%d", main.PID())); err != nil {
		return err
	}
	t := &teller{c: c, nl: nl, port: port, main: main}
	if err := t.known(ctx, first); err != nil {
		return err
	}
	with.Ready()
	return t.follow(ctx, with.Guests, with.Note, relayed, all)
}

// start starts the server's programs, dnsmasq first, in the server's namespace.
func (c Config) start(nl *rtnl.Conn, inner *netns.NS, program string, who *syscall.Credential,
) (all []*child.Process, err error) {
	main, err := start(inner, exec.Command(program, c.args()...), who, Capabilities)
	if err != nil {
		return nil, err
	}
	all = append(all, main)
	args := c.advertiseArgs()
	if args == nil {
		return all, nil
	}
	br, err := bridges.Get(nl, c.Network.Name)
	if err != nil {
		return all, err
	}
	// The sender has nothing of the host's namespace but these sockets.
	files, err := radv.Open(c.NS, br.Index)
	if err != nil {
		return all, err
	}
	cmd := exec.Command(self, args...)
	cmd.Args[0] = os.Args[0]
	cmd.ExtraFiles = files
	sender, err := start(inner, cmd, who, nil)
	for _, f := range files {
		err = errors.Join(err, f.Close())
	}
	if sender != nil {
		all = append(all, sender)
	}
	return all, err
}

// self is this program, also where the user that it runs as then may not look for it.
const self = "/proc/self/exe"

// namespace makes the server's namespace and its port, whose index it returns. The caller closes
// the namespace, with which the port goes unless a process is in it.
func (c Config) namespace(nl *rtnl.Conn) (inner *netns.NS, port int, err error) {
	n := c.Network
	br, err := bridges.Get(nl, n.Name)
	if err != nil {
		return nil, 0, err
	}
	if inner, err = netns.New(); err != nil {
		return nil, 0, err
	}
	port, err = c.plug(nl, br, inner)
	if err == nil {
		err = c.configure(inner)
	}
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("server of network %s: %w", n.Name, err), inner.Close())
	}
	return inner, port, nil
}

// plug makes the bridge's port.
func (c Config) plug(nl *rtnl.Conn, br *rtnl.Link, inner *netns.NS) (port int, err error) {
	name := c.Network.ServerLink()
	port = rtnl.RandomIndex()
	err = nl.CreateWithAlias("veth", port, c.Mark().String(), rtnl.Name(name), rtnl.VethPeer(dhcp.Link, inner))
	if errors.Is(err, fs.ErrExist) {
		return 0, fmt.Errorf(
			"%s is there already (another server runs, or the name is taken: ip link show %[1]s)",
			name,
		)
	}
	if err != nil {
		return 0, fmt.Errorf("make %s: %w", name, err)
	}
	if err := nl.SetQuiet(port, rtnl.Master(br.Index), rtnl.Up(true)); err != nil {
		return 0, fmt.Errorf("put %s on bridge %s: %w", name, br.Name, bridges.Explain(err))
	}
	return port, nil
}

// addresses are those of the server.
func (c Config) addresses() []netip.Prefix {
	if c.Network.IPv6.IsValid() {
		return []netip.Prefix{c.Network.Server(), c.Network.Server6()}
	}
	return []netip.Prefix{c.Network.Server()}
}

// routers are those by which the server asks other name servers.
func (c Config) routers() (routers []netip.Addr) {
	if router := c.Network.Gateway(); router.IsValid() {
		routers = append(routers, router)
	}
	if c.Network.NAT && c.Network.IPv6.IsValid() {
		routers = append(routers, c.Network.Router6().Addr())
	}
	return routers
}

// configure sets up the server's own end.
func (c Config) configure(inner *netns.NS) error {
	nl, err := rtnl.Open(inner)
	if err != nil {
		return err
	}
	defer nl.Close()
	for _, name := range []string{"lo", dhcp.Link} {
		l, err := nl.Link(name)
		if err == nil && name == dhcp.Link {
			// Guests know the address of a former server of the network.
			err = nl.Set(l.Index, rtnl.MAC(stablemac.New([]byte{0x02}, "network server", c.Network.Name)))
		}
		if err == nil {
			err = nl.Set(l.Index, rtnl.Up(true))
		}
		if err != nil {
			return fmt.Errorf("bring %s up: %w", name, err)
		}
		if name == "lo" {
			continue
		}
		for _, a := range c.addresses() {
			if err := nl.AddAddr(l.Index, a); err != nil {
				return fmt.Errorf("add address %s: %w", a, err)
			}
		}
	}
	for _, router := range c.routers() {
		if err := nl.AddDefaultRoute(router, 0); err != nil {
			return fmt.Errorf("route by %s: %w", router, err)
		}
	}
	return ethtool.NoTxChecksums(inner, dhcp.Link)
}

// prepareLeases makes the lease file, which dnsmasq writes in place as its user.
func prepareLeases(path string, who *syscall.Credential) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("lease file: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|syscall.O_NOFOLLOW, 0o644)
	if err != nil {
		return fmt.Errorf("lease file: %w", err)
	}
	err = f.Chown(int(who.Uid), int(who.Gid))
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("lease file: %w", err)
	}
	return nil
}
