package evpn

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/bridge"
	"vmnet/bridge/brport"
	"vmnet/bridge/vxlan"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
)

const (
	longest = 20 * time.Second
	frrDir  = "/usr/lib/frr" // of Debian's package
	segment = 100            // of the first bridge
)

// fabric is a network between hosts with segments, on which FRR runs. The last host reflects the
// routes of the others.
type fabric struct {
	t     testing.TB
	hosts []*host
}

type host struct {
	t       testing.TB
	name    string
	addr    netip.Addr
	ns      *netns.NS
	nl      *rtnl.Conn
	bridges *bridge.Host
	daemons []*exec.Cmd
}

// newFabric returns hosts with one segment and FRR.
func newFabric(t testing.TB, hosts int) *fabric {
	t.Helper()
	f := layFabric(t, hosts, 1)
	for _, h := range f.hosts {
		h.start()
	}
	return f
}

// layFabric returns hosts with segments, on which FRR is configured but does not run.
func layFabric(t testing.TB, hosts, segments int) *fabric {
	t.Helper()
	nstest.RequireRoot(t)
	nstest.RequireTun(t)
	_, err := os.Stat(filepath.Join(frrDir, "bgpd"))
	nstest.Require(t, "frr", err == nil, "apt install frr")
	t.Cleanup(func() { _ = os.Remove(stateDir) })
	f := &fabric{t: t}
	lan := nstest.New(t)
	wire := f.open(lan)
	f.must(wire.Create("bridge", rtnl.Name("lan")))
	br, err := wire.Link("lan")
	f.must(err)
	f.must(wire.Set(br.Index, rtnl.Up(true)))
	for i := range hosts {
		h := &host{t: t, name: fmt.Sprintf("h%d", i+1), ns: nstest.New(t)}
		h.addr = netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})
		h.nl = f.open(h.ns)
		f.must(wire.Create("veth", rtnl.Name(h.name), rtnl.MTU(1600), rtnl.VethPeer("eth0", h.ns)))
		port, err := wire.Link(h.name)
		f.must(err)
		f.must(wire.Set(port.Index, rtnl.Master(br.Index), rtnl.Up(true)))
		eth, err := h.nl.Link("eth0")
		f.must(err)
		f.must(h.nl.Set(eth.Index, rtnl.MTU(1600), rtnl.Up(true)))
		f.must(h.nl.AddAddr(eth.Index, netip.PrefixFrom(h.addr, 24)))
		h.bridges, err = bridge.Open(h.ns.Path())
		f.must(err)
		t.Cleanup(h.bridges.Close)
		for vni := segment; vni < segment+segments; vni++ {
			f.must(h.bridges.Create(bridge.Config{
				Name: bridgeOf(vni), MAC: net.HardwareAddr{2, 0, 0, byte(vni >> 8), byte(vni), byte(i + 1)},
				VXLAN: &vxlan.Config{VNI: vni, Local: h.addr},
			}))
		}
		f.hosts = append(f.hosts, h)
	}
	for _, h := range f.hosts {
		f.configure(h)
		t.Cleanup(h.kill)
	}
	return f
}

func bridgeOf(vni int) string { return fmt.Sprintf("br%d", vni) }

func (f *fabric) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *fabric) open(ns *netns.NS) *rtnl.Conn {
	c, err := rtnl.Open(ns)
	f.must(err)
	f.t.Cleanup(c.Close)
	return c
}

// configure writes the configuration of a host's FRR, as docs/evpn.md has it.
func (f *fabric) configure(h *host) {
	reflector := f.hosts[len(f.hosts)-1]
	var b strings.Builder
	fmt.Fprintf(&b, "router bgp 65000\n bgp router-id %s\n no bgp default ipv4-unicast\n", h.addr)
	var activate []string
	for _, other := range f.hosts {
		if other == h || h != reflector && other != reflector {
			continue
		}
		fmt.Fprintf(&b, " neighbor %s remote-as 65000\n neighbor %[1]s timers connect 1\n", other.addr)
		fmt.Fprintf(&b, " neighbor %s advertisement-interval 0\n", other.addr)
		activate = append(activate, fmt.Sprintf("  neighbor %s activate\n", other.addr))
		if h == reflector {
			activate = append(activate, fmt.Sprintf("  neighbor %s route-reflector-client\n", other.addr))
		}
	}
	fmt.Fprintf(&b, " address-family l2vpn evpn\n%s  advertise-all-vni\n exit-address-family\n",
		strings.Join(activate, ""))
	u, err := user.Lookup("frr")
	f.must(err)
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	dir := filepath.Join(stateDir, h.name)
	f.must(os.MkdirAll(dir, 0o755))
	for file, text := range map[string]string{"zebra.conf": "hostname " + h.name + "\n", "bgpd.conf": b.String()} {
		f.must(os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644))
	}
	for _, path := range []string{stateDir, dir} {
		f.must(os.Chown(path, uid, gid))
	}
	f.t.Cleanup(func() { _ = os.RemoveAll(dir) })
}

func (h *host) start() {
	h.t.Helper()
	dir := filepath.Join(stateDir, h.name)
	for _, daemon := range []string{"zebra", "bgpd"} {
		cmd := exec.Command(filepath.Join(frrDir, daemon), "-N", h.name, "-f", filepath.Join(dir, daemon+".conf"),
			"-i", filepath.Join(dir, daemon+".pid"), "--vty_port", "0",
			"--log", "file:"+filepath.Join(dir, daemon+".log"))
		if daemon == "bgpd" {
			cmd.Args = append(cmd.Args, "--listenon", h.addr.String())
		}
		if err := h.ns.Do(cmd.Start); err != nil {
			h.t.Fatal(err)
		}
		h.daemons = append(h.daemons, cmd)
		nstest.Eventually(h.t, longest, daemon+" of "+h.name+" listens", func() bool {
			_, err := os.Stat(filepath.Join(dir, daemon+".vty"))
			return err == nil
		})
	}
}

// kill ends the host's FRR, as far as it runs.
func (h *host) kill() {
	for _, cmd := range h.daemons {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	h.daemons = nil
	for _, socket := range []string{"zebra.vty", "bgpd.vty", "zserv.api"} {
		_ = os.Remove(filepath.Join(stateDir, h.name, socket))
	}
}

func (h *host) ask() Status {
	h.t.Helper()
	a, err := OfNetns(h.ns, h.name).Ask(context.Background())
	if err != nil {
		h.t.Fatal(err)
	}
	return a.Of(segment)
}

func (h *host) shown() bridge.VXLAN {
	h.t.Helper()
	info, err := h.bridges.Show("br100")
	if err != nil || info.VXLAN == nil {
		h.t.Fatalf("%+v, %v", info, err)
	}
	return *info.VXLAN
}

// knows reports whether h has a guest behind other, or if that is nil, behind any.
func (h *host) knows(guest byte, other *host) bool {
	h.t.Helper()
	return h.knowsMAC(macOf(guest), other)
}

func (h *host) knowsMAC(mac net.HardwareAddr, other *host) bool {
	h.t.Helper()
	return slices.ContainsFunc(h.remote(segment), func(e rtnl.RemoteEntry) bool {
		return slices.Equal(e.MAC, mac) && (other == nil || e.Dst == other.addr)
	})
}

// remote returns what the kernel knows of the other hosts of a segment.
func (h *host) remote(vni int) []rtnl.RemoteEntry {
	h.t.Helper()
	vx, err := h.nl.Link(fmt.Sprintf("vx%d", vni))
	if err != nil {
		h.t.Fatal(err)
	}
	entries, err := h.nl.RemoteFDB(vx.Index)
	if err != nil {
		h.t.Fatal(err)
	}
	return entries
}

func macOf(guest byte) net.HardwareAddr { return net.HardwareAddr{0x52, 0x54, 0, 0, 0, guest} }

const (
	vnetHdr   = 10     // bytes, before each frame of a tap
	etherTest = 0x88b5 // the local experimental EtherType 1 of IEEE 802
	headerLen = 14
)

// guest is a tap in the place of a guest's NIC.
type guest struct {
	t     testing.TB
	id    byte
	tap   *tun.Tap
	queue *os.File
}

// tap makes a tap on the bridge of a segment.
func (h *host) tap(vni int, name string) *tun.Tap {
	h.t.Helper()
	tap, err := tun.Create(h.ns, name, false)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { tap.Close() })
	if err := h.bridges.AddPort(bridgeOf(vni), name, brport.Settings{}); err != nil {
		h.t.Fatal(err)
	}
	return tap
}

// guest starts a guest, which announces itself.
func (h *host) guest(id byte) *guest {
	h.t.Helper()
	tap := h.tap(segment, fmt.Sprintf("tap%d", id))
	g := &guest{h.t, id, tap, tap.Queues()[0]}
	if err := syscall.SetNonblock(int(g.queue.Fd()), true); err != nil {
		h.t.Fatal(err)
	}
	g.send(net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, 0)
	return g
}

func (g *guest) send(to net.HardwareAddr, n uint32) {
	g.t.Helper()
	write(g.t, g.queue, to, macOf(g.id), n)
}

// write sends a frame from the guest's side of a tap.
func write(t testing.TB, queue *os.File, to, from net.HardwareAddr, n uint32) {
	t.Helper()
	b := append(make([]byte, vnetHdr, vnetHdr+60), to...)
	b = append(b, from...)
	b = binary.BigEndian.AppendUint16(b, etherTest)
	b = binary.BigEndian.AppendUint32(b, n)
	if _, err := syscall.Write(int(queue.Fd()), b[:cap(b)]); err != nil && !errors.Is(err, syscall.EINTR) {
		t.Fatal(err)
	}
}

// heard returns the numbers of the frames from a guest that have arrived.
func (g *guest) heard(from byte) (numbers []uint32) {
	g.t.Helper()
	buf := make([]byte, 2048)
	for {
		n, err := syscall.Read(int(g.queue.Fd()), buf)
		switch {
		case errors.Is(err, syscall.EINTR):
		case errors.Is(err, syscall.EAGAIN):
			return numbers
		case err != nil:
			g.t.Fatal(err)
		case n >= vnetHdr+headerLen+4 && slices.Equal(buf[vnetHdr+6:vnetHdr+12], macOf(from)) &&
			binary.BigEndian.Uint16(buf[vnetHdr+12:]) == etherTest:
			numbers = append(numbers, binary.BigEndian.Uint32(buf[vnetHdr+headerLen:]))
		}
	}
}

// reaches sends until another guest hears it.
func (g *guest) reaches(other *guest) {
	g.t.Helper()
	nstest.Eventually(g.t, longest, fmt.Sprintf("guest %d reaches guest %d", g.id, other.id), func() bool {
		g.send(macOf(other.id), 1)
		return len(other.heard(g.id)) > 0
	})
}
