package addresses_test

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmnet/internal/addresses"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/nstest"
	"vmnet/tapmgr/nic"
)

// TestLiveSources: addresses come from records, leases, neighbour tables here and beyond a bridge's
// veth port, and agents, and each NIC has only its own.
func TestLiveSources(t *testing.T) {
	ns := nstest.New(t)
	h := nstest.Handle(t, ns)
	for _, l := range []netlink.Link{
		&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}},
		&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br1"}},
		&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "router0"}, PeerName: "inner0"},
	} {
		must(t, h.LinkAdd(l))
		must(t, h.LinkSetUp(l))
	}
	must(t, h.LinkAdd(&netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{Name: "mac0", ParentIndex: index(t, h, "br0")}}))
	router := named(t, "seen-router")
	inner, err := h.LinkByName("inner0")
	must(t, err)
	must(t, h.LinkSetNsFd(inner, int(router.Handle())))
	port, err := h.LinkByName("router0")
	must(t, err)
	must(t, h.LinkSetMasterByIndex(port, index(t, h, "br0")))
	const mac1, mac2 = "52:54:00:00:00:01", "52:54:00:00:00:02"
	neighbour(t, h, "br0", "10.9.0.2", mac1)
	neighbour(t, h, "mac0", "10.9.7.2", mac1)
	neighbour(t, h, "br0", "fe80::2", mac1)
	neighbour(t, h, "br1", "10.9.1.1", mac1) // an impostor on another bridge
	neighbour(t, h, "br1", "10.9.1.2", mac2)
	neighbour(t, nstest.Handle(t, router), "inner0", "10.9.0.3", mac1)

	states, libvirt := t.TempDir(), t.TempDir()
	later, past := time.Now().Add(time.Hour).Unix(), time.Now().Add(-time.Hour).Unix()
	write(t, filepath.Join(states, "br0.leases"), fmt.Sprintf(
		"%d %s 10.9.0.2 P2 *\n%d %s 10.9.0.200 * *\n0 %s 10.9.0.7 * *\n", later, mac1, past, mac1, mac2))
	write(t, filepath.Join(libvirt, "br1.status"), fmt.Sprintf(
		`[{"ip-address":"10.9.1.2","mac-address":"%s","expiry-time":%d}, {"ip-address":"bad"}]`, mac2, later))

	pid := vmm(t, filepath.Join(t.TempDir(), "agent"))
	nl, err := rtnl.Open(ns)
	must(t, err)
	defer nl.Close()
	s := addresses.Sources{NS: ns, NL: nl, States: []string{states}, Libvirt: libvirt, Patience: 30 * time.Second}
	found, notices := s.Of(t.Context(), []nic.NIC{
		{VM: "P2", ID: "net0", Type: nic.TypeTap, Source: "br0", MAC: mac1, PID: pid},
		{VM: "P2", ID: "net1", Type: nic.TypeTap, Source: "br1", MAC: mac2, PID: 0},
		{
			VM: "P3", ID: "net0", Type: nic.TypeTap, Source: "../br1", PortSecurity: "mac,ip", MAC: "52:54:00:00:00:03",
			IP: []netip.Addr{netip.MustParseAddr("10.9.1.3")},
		},
		{Interface: "lan0", Type: nic.TypeMacvlan, Source: "eth0"},
	})
	var got []string
	for _, all := range found {
		got = append(got, fmt.Sprint(all))
	}
	want := []string{
		"[10.9.0.2 (lease, neighbour) 10.9.0.3 (neighbour) 10.9.0.4 (agent) 10.9.7.2 (neighbour) fd09::4 (agent) " +
			"fe80::2 (neighbour)]",
		"[10.9.1.2 (lease, neighbour)]",
		"[10.9.1.3 (port security)]",
		"[]",
	}
	if diff := cmp.Diff(want, got); diff != "" || len(notices) > 0 {
		t.Errorf("%s\n%v", diff, notices)
	}
	write(t, filepath.Join(states, "br0.leases"), "nonsense\n")
	if _, notices := s.Of(t.Context(), []nic.NIC{{Type: nic.TypeTap, Source: "br0", MAC: mac1}}); len(notices) != 1 ||
		!strings.HasPrefix(notices[0], "the leases of network br0 are not known: ") {
		t.Error(notices)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(text), 0o600))
}

func index(t *testing.T, h *netlink.Handle, name string) int {
	t.Helper()
	l, err := h.LinkByName(name)
	must(t, err)
	return l.Attrs().Index
}

func neighbour(t *testing.T, h *netlink.Handle, link, ip, mac string) {
	t.Helper()
	hw, err := net.ParseMAC(mac)
	must(t, err)
	must(t, h.NeighSet(&netlink.Neigh{
		LinkIndex: index(t, h, link), IP: net.ParseIP(ip), HardwareAddr: hw, State: netlink.NUD_PERMANENT,
	}))
}

// named makes a namespace with a name of ip-netns(8).
func named(t *testing.T, name string) *netns.NS {
	t.Helper()
	ns := nstest.New(t)
	if err := os.Mkdir(netns.RunDir, 0o755); err == nil {
		t.Cleanup(func() { _ = os.Remove(netns.RunDir) }) // another test may use it by now
	}
	path := filepath.Join(netns.RunDir, name)
	write(t, path, "")
	t.Cleanup(func() { _ = os.Remove(path) })
	must(t, unix.Mount(ns.Path(), path, "", unix.MS_BIND, ""))
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	return ns
}

// vmm starts a process that looks like a QEMU with a guest agent.
func vmm(t *testing.T, path string) (pid int) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{
		"qemu-system-x86_64", "-name", "guest=P2", "-chardev", "socket,id=qga,path=" + path + ",server=on,wait=off",
		"-device", "virtserialport,chardev=qga,name=org.qemu.guest_agent.0",
	}
	cmd.Env = append(os.Environ(), agentEnv+"="+path)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	_, err = bufio.NewReader(out).ReadString('\n')
	must(t, err)
	return cmd.Process.Pid
}
