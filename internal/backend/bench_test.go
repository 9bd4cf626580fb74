package backend

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
	"vmnet/bridge"
	"vmnet/internal/bench"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
	"vmnet/internal/stablemac"
	"vmnet/qmp"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

const bridgeHelper = "/usr/lib/qemu/qemu-bridge-helper"

// BenchmarkHostSteps makes N taps on one bridge in each of three ways, each in a netns
// of its own: bare system calls that leave the same device, vmnet's steps as in `vmnet
// attach`, and QEMU's bridge helper (which sets neither alias nor addr_gen_mode). The
// taps stay until all are there.
func BenchmarkHostSteps(b *testing.B) {
	nstest.Require(b, "root", os.Geteuid() == 0, "run it as root")
	_, err := os.Stat(tun.Device)
	nstest.Require(b, "tun", err == nil, "modprobe tun")
	_, err = os.Stat(bridgeHelper)
	helper := bench.Available(b, "qemu-bridge-helper", err == nil, "apt install qemu-system-common")
	for _, c := range []struct{ taps, rounds int }{{1, 30}, {10, 10}, {100, 2}, {1000, 1}} {
		b.Run(fmt.Sprintf("taps=%d", c.taps), func(b *testing.B) { benchmarkTaps(b, c.taps, c.rounds, helper) })
	}
}

func benchmarkTaps(b *testing.B, taps, rounds int, helper bool) {
	runtime.LockOSThread() // never unlocked: its namespaces are changed
	bare, own, byHelper := &bench.Way{Name: "bare system calls"}, &bench.Way{Name: "vmnet"},
		&bench.Way{Name: "qemu-bridge-helper"}
	ways := []*bench.Way{bare, own}
	if helper {
		if err := allowBridge(); err != nil {
			b.Fatal(err)
		}
		ways = append(ways, byHelper)
	}
	for range rounds {
		runtime.GC() // what is left of the last round is not this one's
		sites := make([]*site, len(ways))
		for i := range sites {
			sites[i] = newSite(b)
		}
		bare.Do = sites[0].bare
		own.Do = sites[1].steps()
		if helper {
			byHelper.Do = sites[2].helper
		}
		bench.Turns(b, taps, ways...)
		for _, s := range sites {
			s.end()
		}
	}
	bench.Report(b, ways...)
	b.ReportMetric(bench.Ratio(own, bare), "vmnet/bare")
	if helper {
		b.ReportMetric(bench.Ratio(byHelper, own), "helper/vmnet")
	}
}

// site is a netns with a bridge, and the taps that one way has made on it.
type site struct {
	testing.TB
	ns   *netns.NS
	br   *rtnl.Link
	sock int      // netlink
	ends []func() // close what was made
}

func newSite(tb testing.TB) *site {
	ns := nstest.New(tb)
	c, err := rtnl.Open(ns)
	if err != nil {
		tb.Fatal(err)
	}
	defer c.Close()
	h, err := bridge.Open(ns.Path())
	if err != nil {
		tb.Fatal(err)
	}
	defer h.Close()
	s := &site{TB: tb, ns: ns}
	if err = h.Create(bridge.Config{Name: "br0"}); err == nil {
		s.br, err = bridges.Get(c, "br0")
	}
	if err != nil {
		tb.Fatal(err)
	}
	s.enter()
	if s.sock, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE); err != nil {
		tb.Fatal(err)
	}
	return s
}

// enter puts the calling thread into the site's netns.
func (s *site) enter() {
	if err := unix.Setns(int(s.ns.Handle()), unix.CLONE_NEWNET); err != nil {
		s.Fatal(err)
	}
}

// spec is what the i-th NIC should be.
func (s *site) spec(i int) nic.Spec {
	mac := net.HardwareAddr{0x52, 0x54, 0, 0, byte(i >> 8), byte(i)}
	return nic.Spec{
		Target: nic.Target{VM: fmt.Sprintf("guest%d", i)}, NIC: "net0", Bridge: "br0",
		MAC: mac, Vhost: nic.VhostOff,
	}.WithDefaults()
}

// steps is vmnet's way. Its Manager works in the netns that it is called in, as
// without --netns.
func (s *site) steps() func(int) (time.Duration, error) {
	s.enter()
	ns, err := netns.Current()
	if err != nil {
		s.Fatal(err)
	}
	m, err := Open(ns)
	if err != nil {
		s.Fatal(err)
	}
	s.ends = append(s.ends, m.Close, func() { _ = ns.Close() })
	return func(i int) (time.Duration, error) {
		s.enter()
		h, _ := planned(m, s.br, s.spec(i))
		s.ends = append(s.ends, func() { _ = h.Close() })
		start := time.Now()
		steps, err := h.HostSteps(0)
		if err == nil {
			err = step.Run(context.Background(), step.InStage(nic.ErrLink, steps...), nil)
		}
		return time.Since(start), err
	}
}

// planned is what the plan of an attach makes; a helper's, whose VMM gets its label from the
// attach.
func planned(m *Maker, br *rtnl.Link, s nic.Spec) (*NIC, *placedTap) {
	h := &NIC{m: &Maker{Owner: 1}, Spec: s, Device: qmp.NIC{Queues: s.Queues}}
	tap := &placedTap{hostTap{m: m, spec: s, files: &h.Files, mtu: br.MTU}, &bridgePlace{br}}
	tap.name, tap.altName = nic.InterfaceName(s.VM, s.NIC)
	h.host = tap
	h.Record = nic.Record{
		VM: s.VM, NIC: s.NIC, Type: nic.TypeTap, Source: s.Bridge, MAC: s.MAC, Model: s.Model,
		Queues: s.Queues, Phase: nic.PhaseAttaching,
	}
	return h, tap
}

// bare is the floor: seven system calls that leave the device as hostSteps does. The
// messages cannot be one: the kernel brings a link up before it looks at its
// addr_gen_mode (do_setlink).
func (s *site) bare(i int) (time.Duration, error) {
	s.enter()
	spec := s.spec(i)
	h, tap := planned(nil, s.br, spec)
	alias, err := h.Record.Encode()
	if err != nil {
		return 0, err
	}
	name := rtnlAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(tap.name))
	settings := linkMessage(unix.RTM_SETLINK, 0, 0, name, rtnlAttr(unix.IFLA_IFALIAS, []byte(alias)),
		rtnlAttr(unix.IFLA_ADDRESS, stablemac.HostMAC(spec.MAC)),
		rtnlAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(s.br.MTU))), noAutoconf())
	port := linkMessage(unix.RTM_SETLINK, 0, unix.IFF_UP, name,
		rtnlAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(s.br.Index))))
	ifr, err := unix.NewIfreq(tap.name)
	if err != nil {
		return 0, err
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_TUN_EXCL)

	start := time.Now()
	fd, err := unix.Open(tun.Device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	err = errors.Join(unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr), unix.IoctlSetInt(fd, unix.TUNSETOWNER, 0),
		request(s.sock, settings), request(s.sock, port))
	took := time.Since(start)
	s.ends = append(s.ends, func() { _ = unix.Close(fd) })
	return took, err
}

// linkMessage is a request about the link of that index, or of the name in attrs.
func linkMessage(kind uint16, index int, up uint32, attrs ...[]byte) []byte {
	info := nl.NewIfInfomsg(unix.AF_UNSPEC)
	info.Index, info.Flags, info.Change = int32(index), up, up
	body := append(info.Serialize(), slices.Concat(attrs...)...)
	head := make([]byte, unix.SizeofNlMsghdr)
	binary.NativeEndian.PutUint32(head, uint32(len(head)+len(body)))
	binary.NativeEndian.PutUint16(head[4:], kind)
	binary.NativeEndian.PutUint16(head[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	return append(head, body...)
}

func rtnlAttr(kind int, value []byte) []byte { return nl.NewRtAttr(kind, value).Serialize() }

func noAutoconf() []byte {
	const addrGenModeNone = 1
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	spec.AddRtAttr(unix.AF_INET6, nil).AddRtAttr(unix.IFLA_INET6_ADDR_GEN_MODE, []byte{addrGenModeNone})
	return spec.Serialize()
}

// request sends a message and takes its acknowledgement.
func request(sock int, msg []byte) error {
	if err := unix.Sendto(sock, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	var buf [1024]byte
	n, _, err := unix.Recvfrom(sock, buf[:], 0)
	if err != nil || n < unix.SizeofNlMsghdr+4 {
		return fmt.Errorf("%d bytes of acknowledgement: %w", n, err)
	}
	if code := int32(binary.NativeEndian.Uint32(buf[unix.SizeofNlMsghdr:])); code != 0 {
		return syscall.Errno(-code)
	}
	return nil
}

// allowBridge gives the calling thread, and what it starts, an /etc in which the
// helper may use every bridge. ld.so.cache stays, since without it a start is slower.
func allowBridge() error {
	cache, err := os.ReadFile("/etc/ld.so.cache")
	if err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("none", "/etc", "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	return errors.Join(os.WriteFile("/etc/ld.so.cache", cache, 0o644), os.Mkdir("/etc/qemu", 0o755),
		os.WriteFile("/etc/qemu/bridge.conf", []byte("allow all\n"), 0o644))
}

// helper is what QEMU does for -netdev bridge.
func (s *site) helper(int) (time.Duration, error) {
	s.enter()
	start := time.Now()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(pair[0])
	theirs := os.NewFile(uintptr(pair[1]), "socketpair")
	cmd := exec.Command(bridgeHelper, "--use-vnet", "--br=br0", "--fd=3")
	cmd.ExtraFiles, cmd.Stderr = []*os.File{theirs}, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err = cmd.Start()
	_ = theirs.Close()
	if err != nil {
		return 0, err
	}
	fd, err := receiveFD(pair[0])
	err = errors.Join(err, cmd.Wait())
	took := time.Since(start)
	s.ends = append(s.ends, func() { _ = unix.Close(fd) })
	return took, err
}

func receiveFD(sock int) (int, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(sock, make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return -1, fmt.Errorf("%d control messages: %w", len(msgs), err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return -1, fmt.Errorf("%d fds: %w", len(fds), err)
	}
	return fds[0], nil
}

// end removes all taps of the site by one request: one by one each waits for an RCU
// grace period, about 20 ms. Then it closes all fds.
func (s *site) end() {
	s.enter()
	links, err := net.Interfaces()
	if err != nil {
		s.Fatal(err)
	}
	group := rtnlAttr(unix.IFLA_GROUP, nl.Uint32Attr(7))
	for _, l := range links {
		if l.Name != "lo" {
			err = errors.Join(err, request(s.sock, linkMessage(unix.RTM_SETLINK, l.Index, 0, group)))
		}
	}
	if err := errors.Join(err, request(s.sock, linkMessage(unix.RTM_DELLINK, 0, 0, group))); err != nil {
		s.Error(err)
	}
	for _, end := range s.ends {
		end()
	}
	_ = unix.Close(s.sock)
}
