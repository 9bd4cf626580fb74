package ratelimit

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge/portrate"
	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
	"vmnet/macvtap/vtap"
)

// A tcpLine is a guest and its peer, each a netns, and the device by which the guest is limited.
type tcpLine struct {
	guest, peer *netns.NS
	ns          *netns.NS // the device's
	c           *rtnl.Conn
	link        *rtnl.Link
}

// Addresses of a tcpLine's ends.
var lineGuest, linePeer = netip.MustParsePrefix("10.9.0.1/24"), netip.MustParsePrefix("10.9.0.2/24")

func command(tb testing.TB, ns *netns.NS, args ...string) {
	tb.Helper()
	err := ns.Do(func() error {
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%v: %w: %s", args, err, out)
		}
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
}

// conn is a socket in a netns.
func conn(tb testing.TB, ns *netns.NS) *rtnl.Conn {
	tb.Helper()
	c, err := rtnl.Open(ns)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(c.Close)
	return c
}

// cable connects a device of that name in one netns to "eth0" in another, which has an address.
func cable(tb testing.TB, ns *netns.NS, name string, to *netns.NS, addr netip.Prefix) {
	tb.Helper()
	command(tb, ns, "ip", "link", "add", name, "up", "type", "veth", "peer", "name", "eth0", "netns", to.Path())
	command(tb, to, "ip", "addr", "add", addr.String(), "dev", "eth0")
	command(tb, to, "ip", "link", "set", "eth0", "up")
}

// cableLine is a line whose guest has a cable to a bridge.
func cableLine(tb testing.TB) *tcpLine {
	tb.Helper()
	l := &tcpLine{guest: nstest.New(tb), peer: nstest.New(tb), ns: nstest.New(tb)}
	command(tb, l.ns, "ip", "link", "add", "br0", "up", "type", "bridge")
	for name, end := range map[string]struct {
		ns   *netns.NS
		addr netip.Prefix
	}{"guest": {l.guest, lineGuest}, "peer": {l.peer, linePeer}} {
		cable(tb, l.ns, name, end.ns, end.addr)
		command(tb, l.ns, "ip", "link", "set", name, "master", "br0")
	}
	l.c = conn(tb, l.ns)
	var err error
	if l.link, err = l.c.Link("guest"); err != nil {
		tb.Fatal(err)
	}
	return l
}

// lowerLine returns a maker of lines whose guest has a macvtap or an ipvtap. Between its queue and
// a tap in the guest's netns this process carries the frames, with the offloads, as a VMM does.
func lowerLine(kind vtap.Kind) func(testing.TB) *tcpLine {
	return func(tb testing.TB) *tcpLine {
		tb.Helper()
		nstest.RequireTun(tb)
		host := nstest.New(tb)
		l := &tcpLine{guest: nstest.New(tb), peer: nstest.New(tb)}
		cable(tb, host, "eth0", l.peer, linePeer)
		up := conn(tb, host)
		parent, err := up.Link("eth0")
		if err != nil {
			tb.Fatal(err)
		}
		cfg, mac := vtap.Config{Kind: kind, Name: "guest", Mode: "bridge", MAC: guestMAC}, guestMAC
		if kind == vtap.IPVtap {
			cfg = vtap.Config{Kind: kind, Name: "guest", Mode: "l2", Flag: "bridge", Addrs: []netip.Prefix{lineGuest}}
			mac = parent.MAC
		}
		dev, err := macvlan.Create(up, parent, cfg)
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { _ = dev.Close() })
		if kind == vtap.IPVtap {
			err = errors.Join(dev.AddAddr(lineGuest), dev.Set(rtnl.AllMulti(true)))
		}
		if err := errors.Join(err, dev.OpenQueue(), dev.Up()); err != nil {
			tb.Fatal(err)
		}
		tap, err := tun.Create(l.guest, "eth0", false)
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { _ = tap.Close() })
		command(tb, l.guest, "ip", "link", "set", "eth0", "address", mac.String(), "up")
		command(tb, l.guest, "ip", "addr", "add", lineGuest.String(), "dev", "eth0")
		carryBetween(tb, vmmEnd(tb, tap.Queues()[0]), vmmEnd(tb, dev.Queues()[0]))
		l.ns, l.c, l.link = dev.Netns(), dev.NL(), dev.Link
		return l
	}
}

// vmmEnd is a copy of a queue as QEMU sets it up for a guest with offloads.
func vmmEnd(tb testing.TB, f *os.File) end {
	tb.Helper()
	e := newEnd(tb, f, vnetHeader, nil)
	if err := errors.Join(
		unix.IoctlSetInt(e.fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6),
		unix.IoctlSetPointerInt(e.fd, unix.TUNSETSNDBUF, math.MaxInt32),
	); err != nil {
		tb.Fatal(err)
	}
	return e
}

// carryBetween carries frames both ways until the test ends. What is not taken is lost.
func carryBetween(tb testing.TB, a, b end) {
	ended := make(chan struct{}, 2)
	carry := func(from, to end) {
		defer func() { ended <- struct{}{} }()
		for buf := make([]byte, 1<<17); ; {
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			_, _ = unix.Write(to.fd, buf[:n])
		}
	}
	go carry(a, b)
	go carry(b, a)
	tb.Cleanup(func() {
		for _, e := range []end{a, b} {
			_ = e.SetReadDeadline(time.Now())
		}
		<-ended
		<-ended
	})
}

// tcpWays are ways to limit a guest's rate. htb is what libvirt (<bandwidth>) and Incus
// (limits.ingress) give a guest that receives; one that sends they police (act_police), with a
// burst of 1 s of the rate and of 1 MiB. On a macvtap libvirt exchanges the two, as package
// ratelimit does.
var tcpWays = map[string]func(testing.TB, *tcpLine, portrate.Limit){
	"up":        func(tb testing.TB, l *tcpLine, r portrate.Limit) { l.limit(tb, portrate.Config{Up: r}) },
	"up shaped": func(tb testing.TB, l *tcpLine, r portrate.Limit) { l.limit(tb, portrate.Config{Up: r, Shape: true}) },
	"up by libvirt": func(tb testing.TB, l *tcpLine, r portrate.Limit) {
		if isReversed(l.link) {
			l.htb(tb, r)
		} else {
			l.police(tb, r, r.Bits/8)
		}
	},
	"up by Incus": func(tb testing.TB, l *tcpLine, r portrate.Limit) { l.police(tb, r, 1<<20) },
	"down":        func(tb testing.TB, l *tcpLine, r portrate.Limit) { l.limit(tb, portrate.Config{Down: r}) },
	"down shaped": func(tb testing.TB, l *tcpLine, r portrate.Limit) {
		l.limit(tb, portrate.Config{Down: r, Shape: true})
	},
	"down by libvirt": func(tb testing.TB, l *tcpLine, r portrate.Limit) {
		if isReversed(l.link) {
			l.police(tb, r, r.Bits/8)
		} else {
			l.htb(tb, r)
		}
	},
}

// lowerWays are those of macvtaps and ipvtaps. "up" waits there anyway.
var lowerWays = []string{"up", "up by libvirt", "down", "down shaped", "down by libvirt"}

func (l *tcpLine) limit(tb testing.TB, cfg portrate.Config) {
	tb.Helper()
	if err := Set(l.c, l.link, cfg); err != nil {
		tb.Fatal(err)
	}
	if s, err := Read(l.c, l.link); err != nil || !s.Is(cfg) {
		tb.Fatalf("read back %v, %v", s, err)
	}
}

func (l *tcpLine) police(tb testing.TB, r portrate.Limit, burst uint64) {
	tb.Helper()
	nstest.Require(tb, "act_police", exec.Command("modprobe", "act_police").Run() == nil,
		"a kernel with CONFIG_NET_ACT_POLICE, as the lab host's")
	command(tb, l.ns, "tc", "qdisc", "add", "dev", "guest", "ingress")
	command(tb, l.ns, "tc", "filter", "add", "dev", "guest", "parent", "ffff:", "protocol", "all", "u32",
		"match", "u32", "0", "0", "police", "rate", fmt.Sprintf("%dbit", r.Bits),
		"burst", strconv.FormatUint(burst, 10), "mtu", "64kb", "drop", "flowid", ":1")
}

func (l *tcpLine) htb(tb testing.TB, r portrate.Limit) {
	tb.Helper()
	command(tb, l.ns, "tc", "qdisc", "add", "dev", "guest", "root", "handle", "1:", "htb", "default", "1")
	command(tb, l.ns, "tc", "class", "add", "dev", "guest", "parent", "1:", "classid", "1:1", "htb", "rate",
		fmt.Sprintf("%dbit", r.Bits))
}

// stream returns the rate at which a TCP stream from the guest, or to it, is received, and how many
// segments were sent again. The stream's first second does not count for the rate.
func (l *tcpLine) stream(tb testing.TB, up bool, d time.Duration) (perSecond float64, again uint32) {
	tb.Helper()
	from, to, addr := l.peer, l.guest, netip.AddrPortFrom(lineGuest.Addr(), 5001)
	if up {
		from, to, addr = l.guest, l.peer, netip.AddrPortFrom(linePeer.Addr(), 5001)
	}
	var listener net.Listener
	err := to.Do(func() (err error) { listener, err = net.Listen("tcp", addr.String()); return err })
	if err != nil {
		tb.Fatal(err)
	}
	defer listener.Close()
	var out net.Conn
	if err := from.Do(func() (err error) { out, err = net.Dial("tcp", addr.String()); return err }); err != nil {
		tb.Fatal(err)
	}
	in, err := listener.Accept()
	if err != nil {
		tb.Fatal(errors.Join(err, out.Close()))
	}
	defer in.Close()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for buf := make([]byte, 1<<17); ; {
			if _, err := out.Write(buf); err != nil {
				return
			}
		}
	}()
	buf := make([]byte, 1<<18)
	read := func(d time.Duration) (bytes int, took time.Duration) {
		start := time.Now()
		for took < d {
			n, err := in.Read(buf)
			if err != nil && err != io.EOF {
				tb.Fatal(err)
			}
			bytes, took = bytes+n, time.Since(start)
		}
		return bytes, took
	}
	read(time.Second)
	bytes, took := read(d)
	raw, err := out.(*net.TCPConn).SyscallConn()
	if err != nil {
		tb.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			again = info.Total_retrans
		}
	})
	_ = out.Close()
	<-sent
	return float64(bytes) * 8 / took.Seconds(), again
}

// isUp reports whether a way of tcpWays limits what the guest sends.
func isUp(way string) bool { return strings.HasPrefix(way, "up") }
