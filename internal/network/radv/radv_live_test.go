package radv

import (
	"context"
	"errors"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/network/nft"
	"vmnet/internal/network/tool"
	"vmnet/internal/nstest"
)

// patience is how long things may take that need no time on an idle machine.
const patience = 30 * time.Second

// ip runs ip(8) in ns.
func ip(tb testing.TB, ns *netns.NS, line string) string {
	tb.Helper()
	var out []byte
	err := ns.Do(func() (err error) {
		out, err = exec.Command("ip", strings.Fields(line)...).CombinedOutput()
		return err
	})
	if err != nil {
		tb.Fatalf("ip %s: %v: %s", line, err, out)
	}
	return string(out)
}

func sysctl(tb testing.TB, ns *netns.NS, line string) {
	tb.Helper()
	err := ns.Do(func() error { return exec.Command("sysctl", "-qw", line).Run() })
	if err != nil {
		tb.Fatal(err)
	}
}

// link makes a bridge in one namespace, and a guest on it in another.
func link(tb testing.TB) (host, guest *netns.NS, index int) {
	tb.Helper()
	nstest.RequireRoot(tb)
	host, guest = nstest.New(tb), nstest.New(tb)
	for _, s := range []string{"accept_dad", "dad_transmits", "router_solicitation_delay"} {
		sysctl(tb, guest, "net.ipv6.conf.default."+s+"=0")
	}
	ip(tb, host, "link add br0 type bridge")
	ip(tb, host, "link set br0 mtu 1400 up")
	ip(tb, host, "link add g0 mtu 1400 type veth peer name eth0 netns "+guest.Path())
	ip(tb, host, "link set g0 addrgenmode none master br0 up")
	l, err := nstest.Handle(tb, host).LinkByName("br0")
	if err != nil {
		tb.Fatal(err)
	}
	return host, guest, l.Attrs().Index
}

// start sends until the returned function is called.
func start(tb testing.TB, host *netns.NS, index int, p Params) (stop func()) {
	tb.Helper()
	files, err := Open(host, index)
	if err != nil {
		tb.Fatal(err)
	}
	var fds [2]int
	for i, f := range files {
		if fds[i], err = unix.Dup(int(f.Fd())); err != nil {
			tb.Fatal(err)
		}
		if err := f.Close(); err != nil {
			tb.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Send(ctx, p, fds[0], fds[1]) }()
	return func() {
		cancel()
		if err := <-ended; err != nil {
			tb.Error(err)
		}
	}
}

var params = Params{
	Prefix: netip.MustParsePrefix("fd66:1:2:3::/64"), Lifetime: 30 * time.Minute,
	DNS: netip.MustParseAddr("fd66:1:2:3::2"), Domain: "lab.internal",
}

// TestLiveGuest: a guest gets an address, a route and an MTU as soon as it is there, whatever the
// host's firewall drops, and has the route no longer once the sender has ended.
func TestLiveGuest(t *testing.T) {
	host, guest, index := link(t)
	sysctl(t, host, "net.ipv6.conf.all.forwarding=1")
	_, err := tool.Find("nft", "nftables")
	nstest.Require(t, "nft", err == nil, "apt install nftables")
	err = nft.Apply(t.Context(), host, `table inet others {
		chain i { type filter hook input priority 0; policy drop; }
		chain o { type filter hook output priority 0; policy drop; }
	}`)
	if err != nil {
		t.Fatal(err)
	}
	stop := start(t, host, index, params)
	ip(t, guest, "link set eth0 up")
	wait := func(what, command, text string, want bool) {
		t.Helper()
		nstest.Eventually(t, patience, what, func() bool {
			return strings.Contains(ip(t, guest, command), text) == want
		})
	}
	wait("an address", "-6 addr show dev eth0 scope global", "fd66:1:2:3:", true)
	routes := ip(t, guest, "-6 route show default")
	if !strings.Contains(routes, "via fe80::") || !strings.Contains(routes, "mtu 1400") {
		t.Error(routes)
	}
	stop()
	wait("no default route", "-6 route show default", "via", false)
	wait("the address is deprecated", "-6 addr show dev eth0 scope global", "deprecated", true)
}

// TestLiveSolicitations: each is answered, even those of a guest that sends thousands, at a bounded
// rate; what passed a router is not.
func TestLiveSolicitations(t *testing.T) {
	host, guest, index := link(t)
	stop := start(t, host, index, params)
	defer stop()
	ip(t, guest, "link set eth0 up")
	g, err := nstest.Handle(t, guest).LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	own := linkLocal(t, guest)
	fd := listen(t, guest, g.Attrs().Index)

	nstest.Eventually(t, patience, "the first advertisement", func() bool {
		return strings.Contains(ip(t, guest, "-6 route show default"), "via")
	})
	to := multicastMAC(allRouters)
	send := func(b []byte) {
		a := &unix.SockaddrLinklayer{Protocol: ipv6Frames, Ifindex: g.Attrs().Index, Halen: 6}
		copy(a.Addr[:], to)
		if err := unix.Sendto(fd, b, 0, a); err != nil && !errors.Is(err, unix.ENOBUFS) {
			t.Fatal(err)
		}
	}
	request := packet(own, allRouters, []byte{typeSolicitation, 0, 0, 0, 0, 0, 0, 0})
	answered := func(within time.Duration) int {
		n := 0
		for end := time.Now().Add(within); time.Now().Before(end); {
			b := make([]byte, 1500)
			if l, _ := unix.Read(fd, b); l > headerLen && b[headerLen] == typeAdvertisement {
				n++
			}
		}
		return n
	}
	nstest.Eventually(t, patience, "an answer", func() bool {
		send(request)
		return answered(100*time.Millisecond) > 0
	})

	const flood, second = 5000, time.Second
	for range flood {
		send(request)
	}
	if n := answered(second); n == 0 || n > int(2*second/pause) {
		t.Errorf("%d answers to a flood of %d", n, flood)
	}
}

// linkLocal waits for the guest's own address.
func linkLocal(tb testing.TB, ns *netns.NS) (own netip.Addr) {
	tb.Helper()
	nstest.Eventually(tb, patience, "a link-local address", func() bool {
		for _, f := range strings.Fields(ip(tb, ns, "-6 -o addr show dev eth0 scope link -tentative")) {
			if p, err := netip.ParsePrefix(f); err == nil {
				own = p.Addr()
			}
		}
		return own.IsValid()
	})
	return own
}

// listen opens a packet socket for all of IPv6, with a time-out.
func listen(tb testing.TB, ns *netns.NS, index int) (fd int) {
	tb.Helper()
	err := ns.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(ipv6Frames))
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = unix.Close(fd) })
	soon := unix.NsecToTimeval(int64(10 * time.Millisecond))
	err = errors.Join(
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: ipv6Frames, Ifindex: index}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &soon),
	)
	if err != nil {
		tb.Fatal(err)
	}
	return fd
}

// TestLiveBridgeChanges: the sender follows the bridge's address, and does not end when the bridge
// does.
func TestLiveBridgeChanges(t *testing.T) {
	host, guest, index := link(t)
	stop := start(t, host, index, params)
	ip(t, guest, "link set eth0 up")
	nstest.Eventually(t, patience, "a default route", func() bool {
		return strings.Contains(ip(t, guest, "-6 route show default"), "via fe80::")
	})
	ip(t, host, "link set br0 down")
	ip(t, host, "link set br0 address 02:00:00:00:00:77 up")
	nstest.Eventually(t, patience, "the route by another address", func() bool {
		ip(t, guest, "link set eth0 down")
		ip(t, guest, "link set eth0 up") // which solicits
		return strings.Contains(ip(t, guest, "-6 route show default"), "via fe80::ff:fe00:77")
	})
	ip(t, host, "link del br0")
	stop()
	if _, err := Open(host, index); err == nil {
		t.Error("sockets on a link that is gone")
	}
}
