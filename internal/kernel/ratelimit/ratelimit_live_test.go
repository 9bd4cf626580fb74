package ratelimit

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge/portrate"
	"vmnet/internal/kernel/clsact"
	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/leaktest"
	"vmnet/internal/nstest"
	"vmnet/macvtap/vtap"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

var guestMAC, farMAC = net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 0, 2}

// An end is where frames are sent and received.
type end struct {
	*os.File
	fd   int // of the File
	vnet int // bytes of a vnet header before each frame
	mac  net.HardwareAddr
}

// A port is a guest's device, and a peer of the guest.
type port struct {
	ns         *netns.NS
	c          *rtnl.Conn
	link       *rtnl.Link
	guest, far end
}

const vnetHeader = 10

func run(t *testing.T, ns *netns.NS, args ...string) string {
	t.Helper()
	var out []byte
	err := ns.Do(func() (err error) {
		out, err = exec.Command(args[0], args[1:]...).CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func openLink(t *testing.T, ns *netns.NS, name string) (*rtnl.Conn, *rtnl.Link) {
	t.Helper()
	c, err := rtnl.Open(ns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	l, err := c.Link(name)
	if err != nil {
		t.Fatal(err)
	}
	return c, l
}

// newTap makes a bridge with two taps.
func newTap(t *testing.T) *port {
	t.Helper()
	ns := nstest.New(t)
	run(t, ns, "ip", "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
	run(t, ns, "ip", "link", "set", "br0", "addrgenmode", "none", "up")
	p := &port{ns: ns}
	for _, e := range []struct {
		name string
		end  *end
		mac  net.HardwareAddr
	}{{"guest", &p.guest, guestMAC}, {"far", &p.far, farMAC}} {
		tap, err := tun.Create(ns, e.name, false)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = tap.Close() })
		run(t, ns, "ip", "link", "set", e.name, "master", "br0", "addrgenmode", "none", "up")
		*e.end = newEnd(t, tap.Queues()[0], vnetHeader, e.mac)
	}
	p.c, p.link = openLink(t, ns, "guest")
	return p
}

// newMacvtap makes a macvtap in a netns of its own. Its peer is behind its parent device.
func newMacvtap(t *testing.T) *port {
	t.Helper()
	ns := nstest.New(t)
	run(t, ns, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "far0")
	for _, name := range []string{"eth0", "far0"} {
		run(t, ns, "ip", "link", "set", name, "addrgenmode", "none", "up")
	}
	c, parent := openLink(t, ns, "eth0")
	_, far := openLink(t, ns, "far0")
	cfg := vtap.Config{Kind: vtap.Macvtap, Name: "guest", Mode: "bridge", MAC: guestMAC}
	d, err := macvlan.Create(c, parent, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	if err := errors.Join(d.OpenQueue(), d.Up()); err != nil {
		t.Fatal(err)
	}
	return &port{
		ns: d.Netns(), c: d.NL(), link: d.Link, guest: newEnd(t, d.Queues()[0], vnetHeader, guestMAC),
		far: newEnd(t, packetSocket(t, ns, far.Index), 0, farMAC),
	}
}

// newEnd returns an end with a copy of a file, that does not block.
func newEnd(t testing.TB, f *os.File, vnet int, mac net.HardwareAddr) end {
	t.Helper()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		t.Fatal(err)
	}
	own := os.NewFile(uintptr(fd), f.Name())
	t.Cleanup(func() { _ = own.Close() })
	return end{own, fd, vnet, mac}
}

// send writes a frame, or waits for a while until there is room for it, as QEMU does: by a poll
// that is not edge-triggered, since a macvtap wakes no other writer.
func (e end) send(frame []byte) error {
	_, err := unix.Write(e.fd, frame)
	switch {
	case errors.Is(err, unix.EAGAIN):
		_, err = unix.Poll([]unix.PollFd{{Fd: int32(e.fd), Events: unix.POLLOUT}}, 100)
		return err
	case errors.Is(err, unix.ENOBUFS): // the kernel has none
		return nil
	}
	return err
}

// packetSocket receives the frames of a link that it does not send.
func packetSocket(t *testing.T, ns *netns.NS, index int) *os.File {
	t.Helper()
	f := nstest.PacketSocket(t, ns, index)
	if err := unix.SetsockoptInt(int(f.Fd()), unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
		t.Fatal(err)
	}
	return f
}

// frameSize is the length of the frames.
const frameSize = 1000

// measure sends frames as fast as it can until that many have arrived, and returns how long that
// took, from before the first was sent to after the last arrived.
func measure(t *testing.T, from, to end, frames int) time.Duration {
	t.Helper()
	const most = 2 * time.Minute // of a loaded machine
	text := make([]byte, from.vnet+frameSize)
	copy(text[from.vnet:], to.mac)
	copy(text[from.vnet+6:], from.mac)
	binary.BigEndian.PutUint16(text[from.vnet+12:], 0x88b5) // for experiments (IEEE 802)
	start := time.Now()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				if err := from.send(text); err != nil && !errors.Is(err, unix.EINTR) {
					t.Errorf("send: %v", err)
					return
				}
			}
		}
	}()
	defer func() { close(stop); <-stopped }()
	if err := to.SetReadDeadline(start.Add(most)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1<<16)
	for arrived := 0; arrived < frames; {
		n, err := to.Read(buf)
		if err != nil && !errors.Is(err, io.ErrNoProgress) {
			t.Fatalf("%d frames of %d: %v", arrived, frames, err)
		}
		if n == to.vnet+frameSize && bytes.Equal(buf[to.vnet+6:to.vnet+12], from.mac) {
			arrived++
		}
	}
	return time.Since(start)
}

// TestLiveRate: whatever the load of the machine, not more passes in a time than the rate and a
// burst; and as much does within two minutes.
func TestLiveRate(t *testing.T) {
	t.Parallel()
	nstest.RequireTun(t)
	const bits, packets = 8_000_000, 1000
	both := portrate.Config{Up: portrate.Limit{Bits: bits}, Down: portrate.Limit{Bits: bits}, Burst: 64 << 10}
	bits1s := (64<<10 + bits/8/2) / frameSize // that many take half a second, the burst excepted
	perSecond := portrate.Config{Up: portrate.Limit{Packets: packets}, Down: portrate.Limit{Packets: packets}}
	for name, make := range map[string]func(*testing.T) *port{"tap": newTap, "macvtap": newMacvtap} {
		for what, tc := range map[string]struct {
			cfg    portrate.Config
			frames int
		}{"bits": {both, bits1s}, "packets": {perSecond, packets/4 + packets/2}} {
			t.Run(name+" "+what, func(t *testing.T) {
				t.Parallel()
				p := make(t)
				if err := Set(p.c, p.link, tc.cfg); err != nil {
					t.Fatal(err)
				}
				if took := measure(t, p.guest, p.far, tc.frames); took < 490*time.Millisecond {
					t.Errorf("from the guest: %d frames in %v", tc.frames, took)
				}
				if took := measure(t, p.far, p.guest, tc.frames); took < 490*time.Millisecond {
					t.Errorf("to the guest: %d frames in %v", tc.frames, took)
				}
			})
		}
	}
}

// TestLiveShape: frames over the rate wait in the direction in which they would be dropped, which
// is read back, changes in place, and goes without a trace.
func TestLiveShape(t *testing.T) {
	t.Parallel()
	nstest.RequireTun(t)
	const bits = 8_000_000
	cfg := portrate.Config{
		Up: portrate.Limit{Bits: bits, Packets: 1e5}, Down: portrate.Limit{Bits: bits}, Burst: 64 << 10, Shape: true,
	}
	const frames = (64<<10 + bits/8/2) / frameSize // half a second, the burst excepted
	for name, make := range map[string]func(*testing.T) *port{"tap": newTap, "macvtap": newMacvtap} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := make(t)
			before := run(t, p.ns, "ip", "-o", "link") + run(t, p.ns, "tc", "qdisc", "show", "dev", "guest")
			dropping := cfg
			dropping.Shape = false
			for _, c := range []portrate.Config{cfg, dropping, cfg, cfg} {
				if err := Set(p.c, p.link, c); err != nil {
					t.Fatalf("%v: %v", c, err)
				}
				if s, err := Read(p.c, p.link); err != nil || !s.Is(c) || c.Shape == s.Is(dropping) {
					t.Errorf("%v: read back %v, %v", c, s, err)
				}
			}
			for what, ends := range map[string][2]end{"from": {p.guest, p.far}, "to": {p.far, p.guest}} {
				if took := measure(t, ends[0], ends[1], frames); took < 490*time.Millisecond {
					t.Errorf("%s the guest: %d frames in %v", what, frames, took)
				}
			}
			stats := run(t, p.ns, "tc", "-s", "qdisc", "show", "dev", shaperName(p.link))
			if !strings.Contains(stats, "tbf 766d:") || strings.Contains(stats, "Sent 0 bytes") {
				t.Errorf("nothing passed the shaper: %s", stats)
			}
			if err := Set(p.c, p.link, portrate.Config{}); err != nil {
				t.Fatal(err)
			}
			after := run(t, p.ns, "ip", "-o", "link") + run(t, p.ns, "tc", "qdisc", "show", "dev", "guest")
			if after != before {
				t.Errorf("before:\n%safter:\n%s", before, after)
			}
		})
	}
}

// TestLiveShaperIsTampered: what others have done to a shaper is seen and set right, and what has
// its place stays.
func TestLiveShaperIsTampered(t *testing.T) {
	t.Parallel()
	nstest.RequireTun(t)
	p := newTap(t)
	cfg := portrate.Config{Up: portrate.Limit{Bits: 1e8}, Shape: true}
	set := func() {
		t.Helper()
		if err := Set(p.c, p.link, cfg); err != nil {
			t.Fatal(err)
		}
		if s, err := Read(p.c, p.link); err != nil || !s.Is(cfg) {
			t.Fatalf("%v, %v", s, err)
		}
	}
	ifb := shaperName(p.link)
	for _, args := range []string{
		"ip link del " + ifb, "ip link set " + ifb + " down", "tc qdisc del dev " + ifb + " root",
		"tc filter del dev guest ingress pref 4", "tc qdisc del dev guest clsact",
	} {
		set()
		run(t, p.ns, strings.Fields(args)...)
		if s, err := Read(p.c, p.link); err != nil || s.Is(cfg) || s.Is(portrate.Config{}) {
			t.Errorf("after %s: %v, %v", args, s, err)
		}
	}
	set()
	if err := Set(p.c, p.link, portrate.Config{}); err != nil {
		t.Fatal(err)
	}
	for args, back := range map[string]string{
		"ip link add " + ifb + " type ifb":                                                  "ip link del " + ifb,
		"tc filter add dev guest ingress pref 4 protocol all u32 match u32 0 0 classid 1:1": "tc filter del dev guest ingress pref 4",
	} {
		run(t, p.ns, "tc", "qdisc", "replace", "dev", "guest", "clsact")
		run(t, p.ns, strings.Fields(args)...)
		before := run(t, p.ns, "ip", "-o", "link") + run(t, p.ns, "tc", "filter", "show", "dev", "guest", "ingress")
		if err := Set(p.c, p.link, cfg); !errors.Is(err, clsact.ErrForeign) {
			t.Errorf("over %s: %v", args, err)
		}
		if err := Set(p.c, p.link, portrate.Config{}); err != nil {
			t.Errorf("none over %s: %v", args, err)
		}
		after := run(t, p.ns, "ip", "-o", "link") + run(t, p.ns, "tc", "filter", "show", "dev", "guest", "ingress")
		if after != before {
			t.Errorf("before:\n%safter:\n%s", before, after)
		}
		run(t, p.ns, strings.Fields(back)...)
	}
}

// TestLiveTidy: a shaper whose link has gone is removed, also by the next that is made; those whose
// links are there, and those of others, stay.
func TestLiveTidy(t *testing.T) {
	t.Parallel()
	nstest.RequireTun(t)
	p := newTap(t)
	cfg := portrate.Config{Up: portrate.Limit{Bits: 1e8}, Shape: true}
	run(t, p.ns, "ip", "link", "add", "other", "type", "ifb")
	for _, name := range []string{"one", "two"} {
		tap, err := tun.Create(p.ns, name, false)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = tap.Close() })
		l, err := p.c.Link(name)
		if err == nil {
			err = Set(p.c, l, cfg)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := tap.Close(); err != nil {
			t.Fatal(err)
		}
		// A process that another test starts may hold the tap for a moment longer.
		nstest.Eventually(t, 20*time.Second, "only the shaper of "+name+" is left", func() bool {
			left, err := Tidy(p.c, true)
			return err == nil && len(left) == 1 && left[0] == shaperName(l)
		})
	}
	if err := Set(p.c, p.link, cfg); err != nil {
		t.Fatal(err)
	}
	if left, err := Tidy(p.c, false); err != nil || len(left) != 0 {
		t.Errorf("left: %q, %v", left, err)
	}
	links := run(t, p.ns, "ip", "-o", "link", "show", "type", "ifb")
	if strings.Count(links, "\n") != 2 || !strings.Contains(links, "other") ||
		!strings.Contains(links, shaperName(p.link)) {
		t.Errorf("ifbs: %s", links)
	}
}

// TestLiveSet: what is set is read back, changes in place, and goes without a trace.
func TestLiveSet(t *testing.T) {
	t.Parallel()
	nstest.RequireTun(t)
	for name, make := range map[string]func(*testing.T) *port{"tap": newTap, "macvtap": newMacvtap} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := make(t)
			before := run(t, p.ns, "tc", "qdisc", "show", "dev", "guest")
			var last portrate.Config
			for _, text := range []struct{ up, down string }{
				{"100M", "none"},
				{"none", "1G"},
				{"100M,20kpps", "2.5G,100kpps"},
				{"none", "30kpps"},
				{"64k", "10G"},
				{"1T", "1T"},
				{"100G,100pps", "64k"},
				{"none", "none"},
			} {
				var cfg portrate.Config
				var err error
				if cfg.Up, err = portrate.ParseLimit(text.up); err != nil {
					t.Fatal(err)
				}
				if cfg.Down, err = portrate.ParseLimit(text.down); err != nil {
					t.Fatal(err)
				}
				for range 2 { // the second time nothing changes
					if err := Set(p.c, p.link, cfg); err != nil {
						t.Fatalf("%v: %v", cfg, err)
					}
				}
				s, err := Read(p.c, p.link)
				if err != nil || !s.Is(cfg) || s.Is(last) {
					t.Errorf("%v: read back %v, %v", cfg, s, err)
				}
				last = cfg
			}
			if after := run(t, p.ns, "tc", "qdisc", "show", "dev", "guest"); after != before {
				t.Errorf("qdiscs before:\n%safter:\n%s", before, after)
			}
		})
	}
}

// TestLiveOthers: what others have done to the device is seen, and what is theirs stays.
func TestLiveOthers(t *testing.T) {
	t.Parallel()
	nstest.RequireTun(t)
	p := newTap(t)
	cfg := portrate.Config{Up: portrate.Limit{Bits: 1e8, Packets: 1e4}, Down: portrate.Limit{Bits: 1e9}}
	set := func() {
		t.Helper()
		if err := Set(p.c, p.link, cfg); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range []string{
		"tc qdisc del dev guest root", "tc qdisc replace dev guest root handle 766d: tbf rate 900mbit burst 2m latency 50ms",
		"tc qdisc del dev guest clsact", "tc filter del dev guest ingress",
	} {
		set()
		run(t, p.ns, strings.Fields(args)...)
		if s, err := Read(p.c, p.link); err != nil || s.Is(cfg) {
			t.Errorf("after %s: %v, %v", args, s, err)
		}
	}
	set()
	run(t, p.ns, "tc", "filter", "add", "dev", "guest", "ingress", "prio", "7", "protocol", "all",
		"u32", "match", "u32", "0", "0", "classid", "1:1")
	if err := Set(p.c, p.link, portrate.Config{}); err != nil {
		t.Fatal(err)
	}
	if out := run(t, p.ns, "tc", "filter", "show", "dev", "guest", "ingress"); !strings.Contains(out, "u32") ||
		strings.Contains(out, filterName) {
		t.Errorf("filters: %s", out)
	}
	run(t, p.ns, "tc", "qdisc", "replace", "dev", "guest", "root", "handle", "7:", "pfifo")
	if err := Set(p.c, p.link, portrate.Config{}); err != nil {
		t.Fatal(err)
	}
	if out := run(t, p.ns, "tc", "qdisc", "show", "dev", "guest"); !strings.Contains(out, "pfifo 7:") {
		t.Errorf("qdiscs: %s", out)
	}
}

// TestLiveInTheWay: what others have put where limits belong stays, is named with its cure, and is
// seen where it has come later.
func TestLiveInTheWay(t *testing.T) {
	t.Parallel()
	nstest.RequireTun(t)
	up, down := portrate.Config{Up: portrate.Limit{Bits: 1e8}}, portrate.Config{Down: portrate.Limit{Bits: 1e8}}
	const u32 = " protocol all u32 match u32 0 0 classid 1:1"
	for _, tc := range []struct {
		foreign  string
		cfg      portrate.Config
		text     string
		replaces bool // what Set has made
	}{
		{"qdisc replace dev guest root handle 7: pfifo", down, "tc qdisc del dev guest root", true},
		{"qdisc replace dev guest root handle 7: tbf rate 1mbit burst 9k limit 9k", down, "root qdisc tbf 7:", true},
		{"qdisc add dev guest ingress", up, "tc qdisc del dev guest ingress", false},
		{"qdisc add dev guest ingress_block 22 clsact", up, "block 22", false},
		{"filter add dev guest ingress pref 1" + u32, up, "tc filter del dev guest ingress pref 1", true},
		{"filter add dev guest ingress pref 2" + u32, up, "tc filter del dev guest ingress pref 2", false},
	} {
		t.Run(tc.foreign, func(t *testing.T) {
			t.Parallel()
			p := newTap(t)
			if strings.HasPrefix(tc.foreign, "filter") {
				run(t, p.ns, "tc", "qdisc", "add", "dev", "guest", "clsact")
			}
			run(t, p.ns, append([]string{"tc"}, strings.Fields(tc.foreign)...)...)
			show := func() string {
				return run(t, p.ns, "tc", "qdisc", "show", "dev", "guest") +
					run(t, p.ns, "tc", "filter", "show", "dev", "guest", "ingress")
			}
			before := show()
			err := Set(p.c, p.link, tc.cfg)
			if !errors.Is(err, clsact.ErrForeign) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("set: %v", err)
			}
			if err := Set(p.c, p.link, portrate.Config{}); err != nil {
				t.Errorf("no limits: %v", err)
			}
			if after := show(); after != before {
				t.Errorf("before:\n%safter:\n%s", before, after)
			}
			if !tc.replaces {
				return
			}
			later := newTap(t)
			if err := Set(later.c, later.link, tc.cfg); err != nil {
				t.Fatal(err)
			}
			run(t, later.ns, append([]string{"tc"}, strings.Fields(tc.foreign)...)...)
			s, err := Read(later.c, later.link)
			if err != nil || s.Is(tc.cfg) || !errors.Is(s.Obstacle(tc.cfg), clsact.ErrForeign) ||
				s.Obstacle(portrate.Config{}) != nil {
				t.Errorf("later: %v, %v, in the way is %v", s, err, s.Obstacle(tc.cfg))
			}
		})
	}
}

// TestLivePrivilege: CAP_NET_ADMIN and CAP_BPF are enough; without the latter, what BPF limits is
// refused and nothing is left, and what tbf limits is not.
func TestLivePrivilege(t *testing.T) {
	t.Parallel()
	nstest.RequireTun(t)
	p := newTap(t)
	before := run(t, p.ns, "tc", "qdisc", "show", "dev", "guest")
	up := portrate.Config{Up: portrate.Limit{Bits: 1e8}}
	down := portrate.Config{Down: portrate.Limit{Bits: 1e8}}
	for _, tc := range []struct {
		cfg   portrate.Config
		caps  []int
		fails bool
	}{
		{up, []int{unix.CAP_NET_ADMIN, unix.CAP_BPF}, false},
		{down, []int{unix.CAP_NET_ADMIN}, false},
		{up, []int{unix.CAP_NET_ADMIN}, true},
	} {
		done := make(chan error)
		go func() {
			runtime.LockOSThread() // never unlocked: the thread, which has lost its capabilities, ends
			header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var sets [2]unix.CapUserData
			for _, c := range tc.caps {
				sets[c/32].Effective |= 1 << (c % 32)
				sets[c/32].Permitted |= 1 << (c % 32)
			}
			done <- cmp.Or(unix.Capset(&header, &sets[0]), Set(p.c, p.link, tc.cfg))
		}()
		if err := <-done; errors.Is(err, ErrUnavailable) != tc.fails || err != nil && !tc.fails {
			t.Errorf("%v with %v: %v", tc.cfg, tc.caps, err)
		}
		if NeedsBPF(false, tc.cfg) != (len(tc.caps) > 1 || tc.fails) {
			t.Errorf("%v needs BPF: %v", tc.cfg, NeedsBPF(false, tc.cfg))
		}
		if err := Set(p.c, p.link, portrate.Config{}); err != nil {
			t.Fatal(err)
		}
	}
	if after := run(t, p.ns, "tc", "qdisc", "show", "dev", "guest"); after != before {
		t.Errorf("before:\n%safter:\n%s", before, after)
	}
}

// TestLiveRefused: a limit that the kernel or the device cannot have leaves nothing.
func TestLiveRefused(t *testing.T) {
	t.Parallel()
	nstest.RequireTun(t)
	p := newTap(t)
	before := run(t, p.ns, "tc", "qdisc", "show", "dev", "guest")
	p.link.MTU = 65000
	err := Set(p.c, p.link, portrate.Config{Up: portrate.Limit{Bits: 1e8}, Burst: 16 << 10})
	if err == nil || !strings.Contains(err.Error(), "--burst 64k") {
		t.Error(err)
	}
	p.link.MTU = 1500
	run(t, p.ns, "tc", "qdisc", "add", "dev", "guest", "clsact")
	run(t, p.ns, "tc", "filter", "add", "dev", "guest", "ingress", "prio", "2", "protocol", "all",
		"u32", "match", "u32", "0", "0", "classid", "1:1")
	err = Set(p.c, p.link, portrate.Config{Up: portrate.Limit{Bits: 1e8}, Down: portrate.Limit{Bits: 1e8}})
	if err == nil || !strings.Contains(err.Error(), "tc filter del dev guest ingress pref 2") {
		t.Error(err)
	}
	run(t, p.ns, "tc", "qdisc", "del", "dev", "guest", "clsact")
	if after := run(t, p.ns, "tc", "qdisc", "show", "dev", "guest"); after != before {
		t.Errorf("before:\n%safter:\n%s", before, after)
	}
}

// TestLiveTinySegments: a super-frame of very many segments, which would use up the rate for long,
// does not pass, and costs nothing.
func TestLiveTinySegments(t *testing.T) {
	p := newTap(t)
	cfg := portrate.Config{Up: portrate.Limit{Bits: portrate.MinBits}, Burst: portrate.MinBurst}
	if err := Set(p.c, p.link, cfg); err != nil {
		t.Fatal(err)
	}
	const header, payload = 14 + 20 + 20, 2 * portrate.MaxSegments
	tiny := make([]byte, vnetHeader+header+payload)
	copy(tiny, []byte{1, 1, header, 0, 1, 0, 34, 0, 16, 0}) // NEEDS_CSUM, GSO_TCPV4, segments of a byte
	f := tiny[vnetHeader:]
	copy(f[copy(f, farMAC):], guestMAC)
	copy(f[12:], []byte{8, 0, 0x45, 0})
	binary.BigEndian.PutUint16(f[16:], 40+payload)
	copy(f[22:], []byte{64, 6, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2})
	f[46] = 5 << 4
	plain := make([]byte, vnetHeader+60)
	copy(plain[vnetHeader+copy(plain[vnetHeader:], farMAC):], guestMAC)
	copy(plain[vnetHeader+12:], []byte{0x88, 0xb5})
	for _, frame := range [][]byte{tiny, plain} {
		if _, err := unix.Write(p.guest.fd, frame); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.far.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for b := make([]byte, 1<<17); ; {
		n, err := p.far.Read(b)
		if err != nil {
			t.Fatal("the frame that was sent last did not arrive: ", err)
		}
		if bytes.Equal(b[vnetHeader:n], plain[vnetHeader:]) {
			return
		}
		if bytes.Equal(b[vnetHeader+6:vnetHeader+12], guestMAC) {
			t.Fatalf("a frame of %d bytes arrived before the one that was sent last", n-vnetHeader)
		}
	}
}
