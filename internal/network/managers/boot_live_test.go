package managers

import (
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/nstest"
)

const networkdProgram = "/lib/systemd/systemd-networkd"

// networkdHost is a host whose eth0 systemd-networkd configures, with its files below Root.
type networkdHost struct {
	*testing.T
	Host
	ns *netns.NS
	nl *netlink.Handle
}

func newNetworkdHost(t *testing.T, files map[string]string) *networkdHost {
	t.Helper()
	nstest.RequireRoot(t)
	_, err := os.Stat(networkdProgram)
	nstest.Require(t, "networkd", err == nil, "apt install systemd")
	h, _ := host(t, files)
	m := &networkdHost{T: t, Host: h, ns: nstest.New(t)}
	m.nl = nstest.Handle(t, m.ns)
	for _, dir := range []string{"etc/systemd/network", netif + "/links", netif + "/leases", netif + "/lldp"} {
		if err := os.MkdirAll(h.path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	who, err := user.Lookup("systemd-network")
	nstest.Require(t, "networkd", err == nil, "apt install systemd")
	uid, _ := strconv.Atoi(who.Uid)
	gid, _ := strconv.Atoi(who.Gid)
	if err := filepath.Walk(h.path(netif), func(path string, _ os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		return os.Chown(path, uid, gid)
	}); err != nil {
		t.Fatal(err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eth0"
	if err := m.nl.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "far0"}); err != nil {
		t.Fatal(err)
	}
	if err := m.nl.LinkSetUp(m.link("far0")); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *networkdHost) link(name string) netlink.Link {
	m.Helper()
	l, err := m.nl.LinkByName(name)
	if err != nil {
		m.Fatal(err)
	}
	return l
}

// networkd runs systemd-networkd while do runs. To it the host's directories are those below Root.
// With a /sys that is read-only it does not wait for udev.
func (m *networkdHost) networkd(do func()) {
	m.Helper()
	const script = `set -e
mount --make-rprivate /
mount --bind "$1/run" /run
mount --bind "$1/etc/systemd/network" /etc/systemd/network
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /var/tmp
mount -t sysfs -o ro sysfs /sys
exec ` + networkdProgram
	cmd := exec.Command("nsenter", "--net="+m.ns.Path(), "unshare", "--mount", "sh", "-c", script, "sh", m.Root)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "SYSTEMD_LOG_TARGET=console", "SYSTEMD_LOG_LEVEL=notice"}
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		m.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}()
	do()
}

// has waits until a link has those addresses, and no others of a global scope.
func (m *networkdHost) has(name string, want ...string) {
	m.Helper()
	nstest.Eventually(m, 30*time.Second, name+" has "+strings.Join(want, ", "), func() bool {
		all, err := m.nl.AddrList(m.link(name), netlink.FAMILY_ALL)
		if err != nil {
			m.Fatal(err)
		}
		var got []string
		for _, a := range all {
			if a.IP.IsGlobalUnicast() {
				got = append(got, a.IPNet.String())
			}
		}
		return strings.Join(got, " ") == strings.Join(want, " ")
	})
}

// gateway waits until the default route of IPv4 is by that link.
func (m *networkdHost) gateway(name string) {
	m.Helper()
	nstest.Eventually(m, 30*time.Second, "the default route is by "+name, func() bool {
		routes, err := m.nl.RouteList(m.link(name), netlink.FAMILY_V4)
		if err != nil {
			m.Fatal(err)
		}
		for _, r := range routes {
			if r.Gw.String() == "192.0.2.1" {
				return true
			}
		}
		return false
	})
}

// TestLiveNextBoot: after the next boot, systemd-networkd gives a bridge what it gave eth0, whether
// an administrator or netplan has written its file.
func TestLiveNextBoot(t *testing.T) {
	t.Run("networkd", func(t *testing.T) {
		m := newNetworkdHost(t, map[string]string{"etc/systemd/network/10-eth0.network": "[Match]\nName=eth0\n\n" +
			"[Link]\nMTUBytes=1400\n\n[Network]\nAddress=192.0.2.2/24\nAddress=2001:db8::2/64\nGateway=192.0.2.1\n" +
			"IPv6AcceptRA=no\n"})
		m.reboot("systemd-networkd")
		if mtu := m.link("lan").Attrs().MTU; mtu != 1400 {
			t.Errorf("the bridge's MTU is %d", mtu)
		}
	})
	t.Run("netplan", func(t *testing.T) {
		netplan, err := exec.LookPath("netplan")
		nstest.Require(t, "netplan", err == nil, "apt install netplan.io")
		m := newNetworkdHost(t, map[string]string{"etc/netplan/eth0.yaml": `network:
  version: 2
  ethernets:
    eth0:
      addresses: [192.0.2.2/24, "2001:db8::2/64"]
      routes: [{to: default, via: 192.0.2.1}]
`})
		if out, err := exec.Command(netplan, "generate", "--root-dir", m.Root).CombinedOutput(); err != nil {
			t.Fatalf("netplan generate: %v: %s", err, out)
		}
		m.reboot("netplan with systemd-networkd")
	})
}

// reboot moves the addresses of eth0 to a bridge, and has networkd begin again with what was
// written.
func (m *networkdHost) reboot(manager string) {
	m.Helper()
	var b Boot
	m.networkd(func() {
		m.has("eth0", "192.0.2.2/24", "2001:db8::2/64")
		m.gateway("eth0")
		nstest.Eventually(m, 30*time.Second, "networkd says by which file", func() bool {
			b = m.NextBoot("lan", Interface{Name: "eth0", Index: m.link("eth0").Attrs().Index})
			return b.Manager != ""
		})
	})
	if b.Manager != manager || len(b.Files) != 2 {
		m.Fatalf("%+v", b)
	}
	if err := m.Write(m.Context(), b.Files); err != nil {
		m.Fatal(err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "lan"
	for _, err := range []error{
		m.nl.LinkDel(m.link("eth0")), // as in a boot, nothing is left of before
		m.nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}),
		m.nl.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "far0"}),
		m.nl.LinkSetMaster(m.link("eth0"), m.link("lan")),
		m.nl.LinkSetUp(m.link("far0")), m.nl.LinkSetUp(m.link("eth0")),
	} {
		if err != nil {
			m.Fatal(err)
		}
	}
	m.networkd(func() {
		m.has("lan", "192.0.2.2/24", "2001:db8::2/64")
		m.gateway("lan")
		m.has("eth0")
	})
}

// TestIfupdownReads: ifupdown itself reads the lines that are printed for it.
func TestIfupdownReads(t *testing.T) {
	ifquery, err := exec.LookPath("ifquery")
	nstest.Require(t, "ifupdown", err == nil, "apt install ifupdown")
	h, _ := host(t, map[string]string{"etc/network/interfaces": "auto lo\niface lo inet loopback\nauto eth0\n" +
		"iface eth0 inet static\n\taddress 192.0.2.2/24\n\tgateway 192.0.2.1\niface eth0 inet6 static\n" +
		"\taddress 2001:db8::2/64\n"})
	b := h.NextBoot("lan", Interface{Name: "eth0", Index: 7})
	if b.Manager != "ifupdown" || len(b.Text) < 2 {
		t.Fatalf("%+v", b)
	}
	path := filepath.Join(h.Root, "written")
	if err := os.WriteFile(path, []byte(strings.Join(b.Text[1:], "\n")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(ifquery, "--state-dir", h.Root, "--interfaces", path, "lan").CombinedOutput()
	for _, want := range []string{
		"address: 192.0.2.2\n", "netmask: 255.255.255.0\n", "gateway: 192.0.2.1\n", "address: 2001:db8::2\n",
	} {
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%v: %s, without %s", err, out, want)
		}
	}
}
