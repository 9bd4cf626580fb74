package ratelimit

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge/portrate"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/nstest"
)

// BenchmarkLiveTCP reports how much of a rate a TCP stream has, and how many segments it sends
// again: the guest and its peer are netns on a bridge, and the guest's cable has the limits. htb is
// what libvirt (<bandwidth>) and Incus (limits.ingress) give a guest that receives; one that sends
// they police (act_police), with a burst of 1 s of the rate and of 1 MiB. Of 1514 bytes of a frame,
// 1448 are the stream's: 95.6 %.
func BenchmarkLiveTCP(b *testing.B) {
	for _, rate := range []string{"100M", "1G"} {
		l, err := portrate.ParseLimit(rate)
		if err != nil {
			b.Fatal(err)
		}
		for _, way := range []string{
			"up", "up shaped", "up by libvirt", "up by Incus", "down", "down by htb",
		} {
			b.Run(way+" "+rate, func(b *testing.B) { benchTCP(b, way, l) })
		}
	}
}

func benchTCP(b *testing.B, way string, rate portrate.Limit) {
	host, guest, peer := nstest.New(b), nstest.New(b), nstest.New(b)
	command := func(ns *netns.NS, args ...string) {
		b.Helper()
		err := ns.Do(func() error {
			out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
			if err != nil {
				err = fmt.Errorf("%v: %w: %s", args, err, out)
			}
			return err
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	command(host, "ip", "link", "add", "br0", "up", "type", "bridge")
	c, err := rtnl.Open(host)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	for name, end := range map[string]struct {
		ns   *netns.NS
		addr string
	}{"guest": {guest, "10.9.0.1/24"}, "peer": {peer, "10.9.0.2/24"}} {
		command(host, "ip", "link", "add", name, "master", "br0", "up", "type", "veth", "peer", "name", "far")
		far, err := c.Link("far")
		if err == nil {
			err = c.Set(far.Index, rtnl.Netns(end.ns))
		}
		if err != nil {
			b.Fatal(err)
		}
		command(end.ns, "ip", "addr", "add", end.addr, "dev", "far")
		command(end.ns, "ip", "link", "set", "far", "up")
	}
	l, err := c.Link("guest")
	if err != nil {
		b.Fatal(err)
	}
	from, to, addr := peer, guest, "10.9.0.1"
	if strings.HasPrefix(way, "up") {
		from, to, addr = guest, peer, "10.9.0.2"
	}
	limit := func(cfg portrate.Config) {
		b.Helper()
		if err := Set(c, l, cfg); err != nil {
			b.Fatal(err)
		}
	}
	police := func(burst uint64) {
		b.Helper()
		nstest.Require(b, "act_police", exec.Command("modprobe", "act_police").Run() == nil,
			"a kernel with CONFIG_NET_ACT_POLICE, as the lab host's")
		command(host, "tc", "qdisc", "add", "dev", "guest", "ingress")
		command(host, "tc", "filter", "add", "dev", "guest", "parent", "ffff:", "protocol", "all", "u32",
			"match", "u32", "0", "0", "police", "rate", fmt.Sprintf("%dbit", rate.Bits),
			"burst", strconv.FormatUint(burst, 10), "mtu", "64kb", "drop", "flowid", ":1")
	}
	switch way {
	case "up":
		limit(portrate.Config{Up: rate})
	case "up shaped":
		limit(portrate.Config{Up: rate, Shape: true})
	case "up by libvirt":
		police(rate.Bits / 8)
	case "up by Incus":
		police(1 << 20)
	case "down":
		limit(portrate.Config{Down: rate})
	default:
		command(host, "tc", "qdisc", "add", "dev", "guest", "root", "handle", "1:", "htb", "default", "1")
		command(host, "tc", "class", "add", "dev", "guest", "parent", "1:", "classid", "1:1", "htb", "rate",
			fmt.Sprintf("%dbit", rate.Bits))
	}
	for b.Loop() {
		bits, again := stream(b, from, to, addr, 3*time.Second)
		b.ReportMetric(bits/float64(rate.Bits)*100, "%")
		b.ReportMetric(float64(again), "retransmissions")
	}
}

// stream returns the rate at which a TCP stream is received, and how many segments were sent again.
// The stream's first second does not count.
func stream(b *testing.B, from, to *netns.NS, addr string, d time.Duration) (perSecond float64, again uint32) {
	b.Helper()
	var l net.Listener
	err := to.Do(func() (err error) { l, err = net.Listen("tcp", addr+":5001"); return err })
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	var out net.Conn
	if err := from.Do(func() (err error) { out, err = net.Dial("tcp", addr+":5001"); return err }); err != nil {
		b.Fatal(err)
	}
	in, err := l.Accept()
	if err != nil {
		b.Fatal(errors.Join(err, out.Close()))
	}
	defer in.Close()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		buf := make([]byte, 1<<17)
		for {
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
				b.Fatal(err)
			}
			bytes, took = bytes+n, time.Since(start)
		}
		return bytes, took
	}
	read(time.Second)
	bytes, took := read(d)
	raw, err := out.(*net.TCPConn).SyscallConn()
	if err != nil {
		b.Fatal(err)
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
