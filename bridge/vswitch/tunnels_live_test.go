package vswitch_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch"
	"vmnet/internal/nstest"
)

// ip runs ip(8) in the host's network namespace, with the arguments in one text.
func (h *host) ip(format string, args ...any) {
	h.t.Helper()
	words := strings.Fields(fmt.Sprintf(format, args...))
	err := h.ns.Do(func() error {
		out, err := exec.Command("ip", words...).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("ip %s: %w: %s", strings.Join(words, " "), err, out)
		}
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
}

// A tunnel describes how a host makes its end, tun0. In the texts, LOCAL and REMOTE stand for the
// two hosts' addresses, REMOTE4 and REMOTE6 for the other host's addresses of those versions, and
// FAR4 and FAR6 for its addresses in the tunnel.
type tunnel struct {
	name    string
	v6      bool              // between IPv6 addresses
	sysctls map[string]string // below /proc/sys/net
	before  []string          // commands of ip(8)
	link    string            // what follows "link add name tun0"
	after   []string
}

// through makes the tunnel between the line's ends, and returns them with their addresses in it.
func (l *line) through(c tunnel) (outside, inside *host) {
	l.outside.t.Helper()
	ends := make([]*host, 2)
	for i, h := range []*host{l.outside, l.inside} {
		v4, v6 := [2]string{"10.66.0.1", "10.66.0.2"}, [2]string{"fd66::1", "fd66::2"}
		in4, in6 := [2]string{"10.77.0.1", "10.77.0.2"}, [2]string{"fd77::1", "fd77::2"}
		own := v4
		if c.v6 {
			own = v6
		}
		fill := strings.NewReplacer("LOCAL", own[i], "REMOTE4", v4[1-i], "REMOTE6", v6[1-i], "REMOTE", own[1-i],
			"FAR4", in4[1-i], "FAR6", in6[1-i])
		for name, value := range c.sysctls {
			if err := h.ns.Do(func() error {
				return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0)
			}); err != nil {
				h.t.Fatal(err)
			}
		}
		h.ip("addr add %s/24 dev lan0", v4[i])
		h.ip("addr add %s/64 dev lan0 nodad", v6[i])
		for _, s := range slices.Concat(c.before, []string{"link add name tun0 " + c.link, "link set tun0 up"},
			c.after) {
			h.ip("%s", fill.Replace(s))
		}
		e := *h
		e.device, e.v4, e.v6 = "tun0", in4[i], in6[i]
		h.ip("addr add %s/24 dev tun0", e.v4)
		h.ip("addr add %s/64 dev tun0 nodad", e.v6)
		ends[i] = &e
	}
	return ends[0], ends[1]
}

// testTunnel sends that many bytes of TCP, and UDP, through a tunnel in both directions, by a
// bridge and by a switch.
func testTunnel(t *testing.T, c tunnel, bytes int64) *vswitch.Switch {
	t.Helper()
	equal := mtus{1500, 1500}
	b := bridgeLine(t, equal)
	s, sw := switchLine(t, equal)
	for _, l := range []*line{b, s} {
		for _, h := range []*host{l.outside, l.inside} {
			h.ip("link set lan0 mtu 1500")
		}
		outside, inside := l.through(c)
		for _, pair := range [][2]*host{{outside, inside}, {inside, outside}} {
			tcp(t, pair[0], pair[1], bytes)
			udp(t, pair[0], pair[1], 1200)
			if describesUDP(t) {
				datagrams(t, pair[0], pair[1])
			}
		}
		if t.Failed() && l == b {
			t.Fatal("the bridge does not pass the tunnel: the test is wrong")
		}
	}
	for _, p := range sw.Ports() {
		// Except for frames that the hosts' kernels send when they come up.
		for why, n := range p.Stats().Drops {
			if !slices.Contains([]string{vswitch.SamePort.String(), vswitch.NoPort.String(), vswitch.Down.String()},
				why) {
				t.Errorf("%s has dropped %d: %s", p.Name(), n, why)
			}
		}
	}
	return sw
}

// describesUDP reports whether a vnet header has a type for super-frames of UDP: since Linux 6.2.
func describesUDP(t *testing.T) bool {
	t.Helper()
	var u unix.Utsname
	var major, minor int
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	return major > 6 || major == 6 && minor >= 2
}

func receivedMean(p *vswitch.Port) uint64 {
	total := p.Stats().Total()
	return total.RxBytes / max(1, total.RxFrames)
}

// datagrams sends UDP that the sender's kernel segments (UDP_SEGMENT of udp(7)), to an IPv4 and an
// IPv6 address. All must arrive.
func datagrams(t *testing.T, from, to *host) {
	t.Helper()
	datagramsTo(t, from, to, sockaddr4(to.v4))
	datagramsTo(t, from, to, sockaddr6(to.v6))
}

func datagramsTo(t *testing.T, from, to *host, addr unix.Sockaddr) {
	t.Helper()
	const size, each, calls = 1100, 20, 10
	in, at := udpSocket(t, to, addr)
	out, _ := udpSocket(t, from, nil, addr)
	if err := unix.SetsockoptInt(out, unix.SOL_UDP, unix.UDP_SEGMENT, size); err != nil {
		t.Fatal(err)
	}
	got, b := 0, make([]byte, 1<<16)
	for range calls {
		if err := unix.Sendto(out, b[:size*each], 0, at); err != nil {
			t.Fatalf("send: %v", err)
		}
		for end := got + each; got < end; got++ { // in step, so that no queue overflows
			if _, err := readAll(in, b); err != nil {
				t.Errorf("%s to %s: %d of %d datagrams arrived: %v", from.v4, to.v4, got, calls*each, err)
				return
			}
		}
	}
}

// uninterrupted repeats a system call that a signal of Go's scheduler has ended: one that waits for
// a limited time does not restart by itself.
func uninterrupted[T any](call func() (T, error)) (T, error) {
	for {
		if v, err := call(); !errors.Is(err, unix.EINTR) {
			return v, err
		}
	}
}

// readAll reads from a blocking file.
func readAll(fd int, b []byte) (int, error) {
	return uninterrupted(func() (int, error) { return unix.Read(fd, b) })
}

func sockaddr4(addr string) *unix.SockaddrInet4 {
	s := &unix.SockaddrInet4{}
	s.Addr = addrOf(addr).As4()
	return s
}

func sockaddr6(addr string) *unix.SockaddrInet6 {
	return &unix.SockaddrInet6{Addr: addrOf(addr).As16()}
}

// TestLiveVXLAN tests the tunnels that the test machine's kernel has.
func TestLiveVXLAN(t *testing.T) {
	for _, c := range vxlans {
		t.Run(c.name, func(t *testing.T) {
			sw := testTunnel(t, c, 1<<20)
			for _, p := range sw.Ports() {
				if mean := receivedMean(p); p.Name() == "p1" && mean < 1600 {
					t.Errorf("no super-frames arrived: mean length %d", mean)
				}
			}
		})
	}
}

var vxlans = []tunnel{
	{name: "VXLAN", link: "type vxlan id 42 local LOCAL remote REMOTE dstport 4789 dev lan0"},
	{
		name: "VXLAN, checksum, another port",
		link: "type vxlan id 42 local LOCAL remote REMOTE dstport 9999 udpcsum dev lan0",
	},
	{
		name: "VXLAN, IPv6",
		v6:   true,
		link: "type vxlan id 42 local LOCAL remote REMOTE dstport 4789 udp6zerocsumtx udp6zerocsumrx dev lan0",
	},
	{name: "VXLAN, IPv6, checksum", v6: true, link: "type vxlan id 42 local LOCAL remote REMOTE dstport 4789 dev lan0"},
}

// TestLiveBigTCP sends super-frames of up to 180,000 bytes.
func TestLiveBigTCP(t *testing.T) {
	l, sw := switchLine(t, mtus{1500, 1500})
	l.outside.ip("link set lan0 mtu 1500")
	l.ends(nil)
	l.outside.ip("link set lan0 gso_max_size 180000")
	_ = l.outside.ns.Do(func() error { // Linux 6.3; iproute2 of that time knows the option
		return exec.Command("ip", "link", "set", "lan0", "gso_ipv4_max_size", "180000").Run()
	})
	var longest uint64
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() { tcp(t, l.outside, l.inside, 64<<20) })
	}
	wg.Wait()
	for _, p := range sw.Ports() {
		if p.Name() == "p1" {
			longest = receivedMean(p)
		}
	}
	t.Logf("mean length %d", longest)
	for _, p := range sw.Ports() {
		if n := p.Dropped(vswitch.Giant); n > 64 { // those before there was room for them
			t.Errorf("%s has dropped %d as too long", p.Name(), n)
		}
	}
}

// TestLiveUDPWithFullChecksums has a sender without any offload, and a port whose GRO joins
// datagrams into super-frames with complete checksums.
func TestLiveUDPWithFullChecksums(t *testing.T) {
	l, sw := switchLine(t, mtus{1500, 1500})
	l.ends(nil)
	setFeatures(t, l.outside, "lan0", map[string]bool{
		"tx-checksum-ip-generic": false, "tx-generic-segmentation": false, "tx-tcp-segmentation": false,
		"tx-tcp6-segmentation": false, "tx-udp-segmentation": false, "tx-scatter-gather": false,
	})
	setFeatures(t, l.middle, "p1", map[string]bool{"rx-gro": true, "rx-gro-list": true})
	// Segmented and finished by the sender's kernel, so that they arrive in bursts.
	datagrams(t, l.outside, l.inside)
	for _, p := range sw.Ports() {
		if mean := receivedMean(p); p.Name() == "p1" && mean < 1200 {
			t.Errorf("GRO has joined no datagrams: mean length %d", mean)
		}
	}
}

// udpSocket makes a UDP socket in a host's network namespace, bound to an address and a port that
// the kernel chooses. For a nil address, it has the family of another socket.
func udpSocket(t testing.TB, h *host, bind unix.Sockaddr, other ...unix.Sockaddr) (fd int, at unix.Sockaddr) {
	t.Helper()
	family := unix.AF_INET
	for _, a := range append(other, bind) {
		if _, ok := a.(*unix.SockaddrInet6); ok {
			family = unix.AF_INET6
		}
	}
	err := h.ns.Do(func() (err error) {
		fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	timeout := unix.NsecToTimeval(int64(10 * time.Second))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		t.Fatal(err)
	}
	if bind == nil {
		return fd, nil
	}
	err = unix.Bind(fd, bind)
	if err == nil {
		at, err = unix.Getsockname(fd)
	}
	if err != nil {
		t.Fatal(err)
	}
	return fd, at
}

// setFeatures switches a device's offloads, by their names in the netlink form of ethtool -k.
func setFeatures(t *testing.T, h *host, device string, want map[string]bool) {
	t.Helper()
	err := h.ns.Do(func() error { return trySetFeatures(device, want) })
	nstest.Require(t, "device features", !errors.Is(err, unix.EOPNOTSUPP),
		"boot a kernel that has the features of this test")
	if err != nil {
		t.Fatal(err)
	}
}
