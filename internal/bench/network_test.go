package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/nstest"
	"vmnet/libvirt/libvirttest"
)

// leases is how many networks each way makes.
const leases = 10

// BenchmarkFirstLease makes a network with NAT, DHCP and DNS and measures the time until a guest on
// it has its first lease: `vmnet network create`, `virsh net-start` of a defined network, and
// ip(8), nft(8) and dnsmasq(8) by hand. A guest is one end of a veth pair with busybox's DHCP
// client.
func BenchmarkFirstLease(b *testing.B) {
	ways := []*Way{
		newNetworkLab(b).way("vmnet network create", (*networkLab).create),
		newNetworkLab(b).way("by hand", (*networkLab).byHand),
	}
	_, noDaemon := exec.LookPath("libvirtd")
	_, noRules := exec.LookPath("iptables") // which libvirt runs
	const cure = "apt install libvirt-daemon libvirt-clients iptables"
	if Available(b, "libvirt", noDaemon == nil && noRules == nil, cure) {
		l := newNetworkLab(b)
		l.daemon = libvirttest.Start(b, l.host)
		ways = append(ways, l.way("virsh net-start", (*networkLab).virsh))
	}
	WarmUp(b, leases, ways...)
	Turns(b, leases, ways...)
	Report(b, ways...)
}

// BenchmarkNAT sends TCP from a guest through NAT to a machine outside: with the rules of `vmnet
// network create --nat`, and with one masquerading rule by hand. A figure is the time for 256 MiB.
func BenchmarkNAT(b *testing.B) {
	var ways []*Way
	for name, make := range map[string]func(l *networkLab, i int) (stop func() error, err error){
		"vmnet network": (*networkLab).create, "by hand": (*networkLab).byHand,
	} {
		l := newNetworkLab(b)
		stop, err := make(l, 0)
		b.Cleanup(func() { _ = stop() })
		if err == nil {
			err = l.lease()
		}
		if err == nil {
			err = l.static()
		}
		if err != nil {
			b.Fatalf("%s: %v", name, err)
		}
		ways = append(ways, &Way{Name: name, Do: l.upload})
	}
	WarmUp(b, 0, ways...)
	Turns(b, 20, ways...)
	if ways[0].Name != "by hand" {
		ways[0], ways[1] = ways[1], ways[0]
	}
	Report(b, ways...)
}

// networkLab is a host with a guest's port and a machine outside, each in a netns of its own.
type networkLab struct {
	*testing.B
	host, guest, outside *netns.NS
	dir, program         string
	bridge               string // of the network
	daemon               *libvirttest.Daemon
}

const (
	labOutside = "203.0.113.1"
	labGuest   = "10.66.0.50" // within the range of all networks
)

func newNetworkLab(b *testing.B) *networkLab {
	b.Helper()
	nstest.RequireRoot(b)
	for program, pkg := range map[string]string{
		"nft": "nftables", "dnsmasq": "dnsmasq-base", "busybox": "busybox-static",
	} {
		_, err := exec.LookPath(program)
		nstest.Require(b, program, err == nil, "apt install "+pkg)
	}
	l := &networkLab{B: b, host: nstest.New(b), guest: nstest.New(b), outside: nstest.New(b), dir: b.TempDir()}
	if err := os.Chmod(filepath.Dir(l.dir), 0o755); err != nil { // for dnsmasq's user
		b.Fatal(err)
	}
	l.program = filepath.Join(l.dir, "vmnet")
	_, err := timed("go", "build", "-o", l.program, "vmnet/cmd/vmnet")
	err = errors.Join(err, l.cable("p0", l.guest), l.cable("up0", l.outside))
	for _, argv := range []string{
		"ip addr add 203.0.113.2/24 dev up0", "ip link set up0 up", "ip route add default via " + labOutside,
	} {
		err = errors.Join(err, l.in(l.host, argv))
	}
	err = errors.Join(err,
		l.in(l.outside, "ip addr add "+labOutside+"/24 dev eth0"), l.in(l.outside, "ip link set eth0 up"))
	if err != nil {
		b.Fatal(err)
	}
	// Where br_netfilter is built in, bridged frames would pass the chains for IP.
	_ = l.in(l.host, "sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0")
	return l
}

// cable makes a veth pair between the host and the eth0 of another netns.
func (l *networkLab) cable(port string, other *netns.NS) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = port
	return nstest.Handle(l, l.host).LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(other.Handle()),
	})
}

// in runs a command, whose words have no spaces, in a netns.
func (l *networkLab) in(ns *netns.NS, command string) error {
	return l.exec(ns, strings.Fields(command)...)
}

func (l *networkLab) exec(ns *netns.NS, argv ...string) error {
	_, err := timed(append([]string{"nsenter", "--net=" + ns.Path()}, argv...)...)
	return err
}

// way measures the time from the start of make to the first lease.
func (l *networkLab) way(name string, make func(l *networkLab, i int) (stop func() error, err error)) *Way {
	return &Way{Name: name, Do: func(i int) (time.Duration, error) {
		start := time.Now()
		stop, err := make(l, i)
		if err == nil {
			err = l.lease()
		}
		took := time.Since(start)
		if stop != nil {
			err = errors.Join(err, stop())
		}
		return took, errors.Join(err,
			l.in(l.host, "ip link set p0 nomaster down"), l.in(l.guest, "ip link set eth0 down"))
	}}
}

// lease plugs the guest in and asks for a lease.
func (l *networkLab) lease() error {
	return errors.Join(
		l.in(l.host, "ip link set p0 master "+l.bridge+" up"),
		l.in(l.guest, "ip link set eth0 up"),
		l.in(l.guest, "busybox udhcpc -f -n -q -t 8 -T 1 -i eth0 -s /bin/true"))
}

// static gives the guest an address and its way out.
func (l *networkLab) static() error {
	return errors.Join(
		l.in(l.guest, "ip addr add "+labGuest+"/24 dev eth0"), l.in(l.guest, "ip route add default via 10.66.0.1"))
}

func (l *networkLab) create(i int) (stop func() error, err error) {
	name := fmt.Sprintf("n%d", i)
	at := []string{"--netns=" + l.host.Path(), "--config-dir=" + l.dir + "/etc", "--state-dir=" + l.dir + "/state"}
	l.bridge = name
	_, err = timed(append([]string{
		l.program, "network", "create", name, "--nat", "--dhcp", "--subnet=10.66.0.0/24", "--ipv6=none",
	}, at...)...)
	return func() error {
		_, err := timed(append([]string{l.program, "network", "delete", name, "--force"}, at...)...)
		return err
	}, err
}

// handRules are the least that gives guests a way out.
const handRules = `table ip hand {
	chain post {
		type nat hook postrouting priority srcnat
		ip saddr 10.66.0.0/24 ip daddr != 10.66.0.0/24 masquerade
	}
}
`

func (l *networkLab) byHand(int) (stop func() error, err error) {
	l.bridge = "hand0"
	rules := filepath.Join(l.dir, "rules.nft")
	err = os.WriteFile(rules, []byte(handRules), 0o600)
	for _, command := range []string{
		"ip link add hand0 type bridge", "ip addr add 10.66.0.1/24 dev hand0", "ip link set hand0 up",
		"sysctl -qw net.ipv4.ip_forward=1", "nft -f " + rules,
	} {
		err = errors.Join(err, l.in(l.host, command))
	}
	server := exec.Command("nsenter", "--net="+l.host.Path(), "dnsmasq", "--keep-in-foreground",
		"--conf-file=/dev/null", "--no-hosts", "--no-resolv", "--no-ping", "--interface=hand0",
		"--except-interface=lo", "--bind-dynamic",
		"--dhcp-range=10.66.0.2,10.66.0.254,1h", "--dhcp-leasefile="+l.dir+"/leases", "--pid-file=", "--user=root")
	server.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err = errors.Join(err, server.Start())
	return func() error {
		if server.Process != nil {
			_ = server.Process.Kill()
			_ = server.Wait()
		}
		return errors.Join(l.in(l.host, "ip link del hand0"), l.in(l.host, "nft delete table ip hand"))
	}, err
}

// libvirtNetwork is the network that libvirt's packages call default, with another subnet.
const libvirtNetwork = `<network>
  <name>lab</name><bridge name='virt0' delay='0'/><forward mode='nat'/>
  <ip address='10.66.0.1' netmask='255.255.255.0'><dhcp><range start='10.66.0.2' end='10.66.0.254'/></dhcp></ip>
</network>
`

func (l *networkLab) virsh(i int) (stop func() error, err error) {
	if i == leases { // the first time
		file := filepath.Join(l.dir, "lab.xml")
		if err := os.WriteFile(file, []byte(libvirtNetwork), 0o600); err != nil {
			return nil, err
		}
		l.daemon.Virsh("net-define", file)
	}
	l.bridge = "virt0"
	_, err = timed("virsh", "-q", "-c", l.daemon.URI(), "net-start", "lab")
	return func() error {
		_, err := timed("virsh", "-q", "-c", l.daemon.URI(), "net-destroy", "lab")
		return err
	}, err
}

// upload sends 256 MiB from the guest to the machine outside, which sees the host's address.
func (l *networkLab) upload(int) (time.Duration, error) {
	const size = 256 << 20
	ctx, cancel := context.WithTimeout(l.Context(), time.Minute)
	defer cancel()
	var listener net.Listener
	err := l.outside.Do(func() (err error) {
		listener, err = net.Listen("tcp4", labOutside+":0")
		return err
	})
	if err != nil {
		return 0, err
	}
	defer listener.Close()
	var conn net.Conn
	if err := l.guest.Do(func() (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, "tcp4", listener.Addr().String())
		return err
	}); err != nil {
		return 0, err
	}
	defer conn.Close()
	peer, err := listener.Accept()
	if err != nil {
		return 0, err
	}
	defer peer.Close()
	if from := peer.RemoteAddr().String(); !strings.HasPrefix(from, "203.0.113.2:") {
		return 0, fmt.Errorf("the machine outside sees %s", from)
	}
	start := time.Now()
	go func() {
		chunk := make([]byte, 256<<10)
		for range size / len(chunk) {
			if _, err := conn.Write(chunk); err != nil {
				return
			}
		}
		conn.Close()
	}()
	n, err := io.Copy(io.Discard, peer)
	if err == nil && n != size {
		err = fmt.Errorf("%d bytes of %d", n, size)
	}
	return time.Since(start), err
}
