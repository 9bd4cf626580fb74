package bpfguard

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"vmnet/bridge/portsec"
	"vmnet/bridge/portsec/portsectest"
	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
	"vmnet/macvtap/vtap"
	"vmnet/testvm/lab"
)

// vnetLen is the length of the vnet header before each frame.
const vnetLen = 10

// within bounds what takes milliseconds.
const within = 20 * time.Second

// A port is a guest's device, and a place at which its frames arrive.
type port struct {
	t    *testing.T
	ns   *netns.NS // of the device
	c    *rtnl.Conn
	link *rtnl.Link
	dev  *os.File // what the VMM writes
	far  *os.File // a packet socket
	back *os.File // what the VMM of the far tap writes; nil: far is written to

	last [portsec.Reasons]uint64
}

func ip(t *testing.T, ns *netns.NS, args ...string) {
	t.Helper()
	err := ns.Do(func() error {
		out, err := exec.Command("ip", args...).CombinedOutput()
		if err != nil {
			return errors.New("ip: " + string(bytes.TrimSpace(out)))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
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

// newTap makes a bridge with two taps. The frames of the first arrive at the second.
func newTap(t *testing.T) *port {
	t.Helper()
	ns := nstest.New(t)
	// Where the kernel has br_netfilter, it would drop packets whose lengths are wrong.
	err := ns.Do(func() error {
		err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-iptables", []byte("0"), 0)
		return errors.Join(err, os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-ip6tables", []byte("0"), 0))
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	ip(t, ns, "link", "add", "br0", "up", "type", "bridge", "mcast_snooping", "0")
	var dev, back *os.File
	for _, name := range []string{"guest", "far"} {
		tap, err := tun.Create(ns, name, false)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = tap.Close() })
		ip(t, ns, "link", "set", name, "master", "br0", "addrgenmode", "none", "up")
		if dev == nil {
			dev = tap.Queues()[0]
		}
		back = tap.Queues()[0]
	}
	c, l := openLink(t, ns, "guest")
	_, far := openLink(t, ns, "far")
	return &port{t: t, ns: ns, c: c, link: l, dev: dev, far: nstest.PacketSocket(t, ns, far.Index), back: back}
}

// newMacvtap makes a macvtap in a netns of its own. Its frames arrive at the other end of its
// parent device.
func newMacvtap(t *testing.T) *port {
	t.Helper()
	ns := nstest.New(t)
	ip(t, ns, "link", "add", "eth0", "type", "veth", "peer", "name", "far0")
	for _, name := range []string{"eth0", "far0"} {
		ip(t, ns, "link", "set", name, "addrgenmode", "none", "up")
	}
	c, parent := openLink(t, ns, "eth0")
	_, far := openLink(t, ns, "far0")
	d, err := macvlan.Create(c, parent,
		vtap.Config{Kind: vtap.Macvtap, Name: "guest", Mode: "bridge", MAC: portsectest.MAC})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	if err := errors.Join(d.OpenQueue(), d.Up()); err != nil {
		t.Fatal(err)
	}
	return &port{
		t: t, ns: d.Netns(), c: d.NL(), link: d.Link, dev: d.Queues()[0],
		far: nstest.PacketSocket(t, ns, far.Index),
	}
}

func (p *port) attach(cfg portsec.Config) {
	p.t.Helper()
	if err := Attach(p.c, p.link, cfg); err != nil {
		p.t.Fatal(err)
	}
	s := p.read()
	if !s.Is(cfg) {
		p.t.Fatalf("%s was attached; it reads %s, by this program: %v", cfg, s.Config, s.Current)
	}
	p.last = s.Drops
}

func (p *port) read() State {
	p.t.Helper()
	s, err := Read(p.c, p.link)
	if err != nil {
		p.t.Fatal(err)
	}
	return s
}

// absent fails the test if anything is left at the device.
func (p *port) absent() {
	p.t.Helper()
	if s, err := Read(p.c, p.link); !errors.Is(err, fs.ErrNotExist) {
		p.t.Errorf("the device has %v, %v", s, err)
	}
	err := p.ns.Do(func() error {
		out, err := exec.Command("tc", "qdisc", "show", "dev", p.link.Name, "clsact").CombinedOutput()
		if err == nil && len(out) > 0 {
			err = errors.New(string(out))
		}
		return err
	})
	if err != nil {
		p.t.Errorf("clsact: %v", err)
	}
}

// send writes a frame as a VMM does. A tap refuses frames without an Ethernet header.
func (p *port) send(frame []byte) {
	p.t.Helper()
	if _, err := p.dev.Write(append(make([]byte, vnetLen), frame...)); err != nil {
		p.t.Fatalf("write %x: %v", frame, err)
	}
}

// arrives reports whether a frame arrives at the other end, before a good one that is sent behind
// it.
func (p *port) arrives(frame []byte) bool {
	p.t.Helper()
	p.send(frame)
	p.send(sentinel)
	if err := p.far.SetReadDeadline(time.Now().Add(within)); err != nil {
		p.t.Fatal(err)
	}
	b, found := make([]byte, 4096), false
	inner := frame // without the outermost tag, which a packet socket has beside the frame
	if len(frame) >= 16 && (bytes.Equal(frame[12:14], []byte{0x81, 0}) || bytes.Equal(frame[12:14],
		[]byte{0x88, 0xa8})) {
		inner = slices.Concat(frame[:12], frame[16:])
	}
	for {
		n, err := p.far.Read(b)
		if err != nil {
			p.t.Fatal(err)
		}
		if bytes.Equal(b[:n], sentinel) {
			return found
		}
		found = found || bytes.Equal(b[:n], inner)
	}
}

// sentinel is a frame that every configuration of the table lets pass: an ARP request in which the
// guest asks for itself.
var sentinel = slices.Concat(bytes.Repeat([]byte{0xff}, 6), portsectest.MAC,
	[]byte{0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1},
	portsectest.MAC, make([]byte, 4), make([]byte, 6), portsectest.IP4.AsSlice(), []byte("the last one"))

// counted returns the reason whose counter has changed.
func (p *port) counted() portsec.Reason {
	p.t.Helper()
	now := p.read().Drops
	why := difference(p.t, p.last, now)
	p.last = now
	return why
}

func TestLiveTap(t *testing.T) { compareTap(t) }

func TestLabTap(t *testing.T) {
	lab.Inside(t)
	compareTap(t)
}

// compareTap sends the named frames by a tap, whose kernel takes the outermost tag out of each.
func compareTap(t *testing.T) {
	t.Helper()
	p, attached := newTap(t), ""
	for _, c := range portsectest.Table() {
		// A configuration without an IPv4 address lets no ARP pass, and none of a switch's
		// own addresses is flooded.
		if len(c.Frame) < 14 || !slices.ContainsFunc(c.Config.IPs,
			func(p netip.Prefix) bool { return p.Contains(portsectest.IP4) }) {
			continue
		}
		if attached != c.Config.String() {
			p.attach(c.Config)
			attached = c.Config.String()
		}
		arrives := p.arrives(c.Frame)
		got := p.counted()
		// The kernel itself drops a frame whose tag is cut off (skb_vlan_untag).
		if got != c.Want && c.Name != "tag cut off" {
			t.Errorf("%s: %s, want %s", c.Name, got, c.Want)
		}
		if want := c.Want == portsec.Pass; arrives != want {
			t.Errorf("%s arrives: %v, want %v", c.Name, arrives, want)
		}
	}
}

// TestLiveMacvtap sends the named frames without tags by a macvtap.
func TestLiveMacvtap(t *testing.T) {
	p := newMacvtap(t)
	p.attach(portsectest.Config())
	for _, c := range portsectest.Table() {
		if len(c.Frame) < 14 || c.Config.String() != portsectest.Config().String() {
			continue
		}
		arrives := p.arrives(c.Frame)
		if got := p.counted(); got != c.Want {
			t.Errorf("%s: %s, want %s", c.Name, got, c.Want)
		}
		if want := c.Want == portsec.Pass; arrives != want {
			t.Errorf("%s arrives: %v, want %v", c.Name, arrives, want)
		}
	}
}

func TestLiveTapRandom(t *testing.T) {
	p := newTap(t)
	configs := portsectest.Configs()
	for i, cfg := range configs {
		p.attach(cfg)
		checker, random := portsec.NewChecker(cfg), portsectest.NewRandom(uint64(100+i))
		for n := 0; n < 10_000/len(configs)+1; {
			f := random.Next()
			// The kernel itself drops a frame whose tag is cut off (skb_vlan_untag).
			if len(f) < 20 {
				continue
			}
			n++
			p.send(f)
			if got, want := p.counted(), checker.Verdict(f); got != want {
				t.Fatalf("%s: %x: the kernel says %s, Go says %s", cfg, f, got, want)
			}
		}
	}
}

// TestLiveLifetime: what is attached stays until it is detached, through a change and a flush of
// nftables' rules, and goes with the device.
func TestLiveLifetime(t *testing.T) {
	for name, make := range map[string]func(*testing.T) *port{"tap": newTap, "macvtap": newMacvtap} {
		t.Run(name, func(t *testing.T) {
			p := make(t)
			spoof := slices.Clone(sentinel)
			spoof[11]++
			if !p.arrives(spoof) {
				t.Error("a frame does not arrive without port security")
			}
			p.absent()
			p.attach(portsectest.Config())
			p.wants(spoof, portsec.SourceMAC, 1)
			ip(t, p.ns, "link", "set", p.link.Name, "down")
			ip(t, p.ns, "link", "set", p.link.Name, "up")
			if err := p.ns.Do(func() error {
				return exec.Command("nft", "flush",
					"ruleset").Run()
			}); err != nil {
				t.Fatal(err)
			}
			p.wants(spoof, portsec.SourceMAC, 2)
			p.attach(portsectest.Without(portsec.RA))
			p.attach(portsectest.Networks())
			p.wants(spoof, portsec.SourceMAC, 3) // the counters have continued
			for range 2 {
				if err := Detach(p.c, p.link); err != nil {
					t.Fatal(err)
				}
				p.absent()
			}
			if !p.arrives(spoof) {
				t.Error("a frame does not arrive after port security has gone")
			}
			p.attach(portsectest.Config())
			p.wants(spoof, portsec.SourceMAC, 1) // new counters
			if err := Attach(p.c, p.link, portsec.Config{}); err != nil {
				t.Fatal(err)
			}
			p.absent()
			p.attach(portsectest.Config())
			program := p.program()
			ip(t, p.ns, "link", "del", p.link.Name)
			nstest.Eventually(t, within, "the program goes with the device", func() bool {
				p, err := ebpf.NewProgramFromID(ebpf.ProgramID(program))
				if err == nil {
					p.Close()
				}
				return errors.Is(err, fs.ErrNotExist)
			})
			if _, err := Read(p.c, p.link); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("of a device that has gone: %v", err)
			}
			if err := Detach(p.c, p.link); err != nil {
				t.Error(err)
			}
			if err := Attach(p.c, p.link, portsectest.Config()); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("attach to a device that has gone: %v", err)
			}
		})
	}
}

// program returns the id of the program at the device.
func (p *port) program() uint32 {
	p.t.Helper()
	all, err := p.c.Filters(p.link.Index, hookOf(p.link))
	if err != nil || len(all) != 1 {
		p.t.Fatalf("filters %v, %v", all, err)
	}
	return all[0].Program
}

// wants fails the test unless a frame is dropped, as the n-th one for that reason.
func (p *port) wants(frame []byte, why portsec.Reason, n uint64) {
	p.t.Helper()
	if p.arrives(frame) {
		p.t.Errorf("%x arrives", frame)
	}
	if got := p.read().Drops[why]; got != n {
		p.t.Errorf("%d frames were dropped as %s, want %d", got, why, n)
	}
}

// TestLiveReplaceIsAtomic changes the program while a guest forges frames.
func TestLiveReplaceIsAtomic(t *testing.T) {
	p := newTap(t)
	spoof := slices.Clone(sentinel)
	spoof[11]++
	p.attach(portsectest.Config())
	stop, done, sent := make(chan struct{}), make(chan error), uint64(0)
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if _, err := p.dev.Write(append(make([]byte, vnetLen), spoof...)); err != nil {
				done <- err
				return
			}
			sent++
		}
	}()
	for range 10 {
		for _, cfg := range []portsec.Config{portsectest.Config(), portsectest.Without(portsec.RA)} {
			if err := Attach(p.c, p.link, cfg); err != nil {
				t.Error(err)
			}
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := p.read().Drops[portsec.SourceMAC]; got != sent {
		t.Errorf("%d of %d frames were dropped", got, sent)
	}
	if p.arrives(spoof) {
		t.Error("the last one arrives")
	}
}

// TestLiveOthersFilters: a filter of another program stays, and keeps the qdisc.
func TestLiveOthersFilters(t *testing.T) {
	p := newTap(t)
	tc := func(args ...string) {
		t.Helper()
		if err := p.ns.Do(func() error { return exec.Command("tc", args...).Run() }); err != nil {
			t.Fatalf("tc %v: %v", args, err)
		}
	}
	tc("qdisc", "add", "dev", "guest", "clsact")
	other := rtnl.Filter{Priority: 7, Handle: 3, Kind: "bpf", Name: "other"}
	prog, err := load(portsectest.Config(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	if err := p.c.SetBPFFilter(p.link.Index, rtnl.Ingress, other, prog.FD()); err != nil {
		t.Fatal(err)
	}
	p.attach(portsectest.Config())
	if err := Detach(p.c, p.link); err != nil {
		t.Fatal(err)
	}
	all, err := p.c.Filters(p.link.Index, rtnl.Ingress)
	if err != nil || len(all) != 1 || all[0].Name != "other" {
		t.Errorf("filters %v, %v", all, err)
	}
}

// TestLiveSuperFrame: the headers of a super-frame are those of its segments.
func TestLiveSuperFrame(t *testing.T) {
	p := newTap(t)
	p.attach(portsectest.Config())
	for _, c := range portsectest.Table() {
		if c.Name != "tcp4" && c.Name != "tcp6" && c.Name != "ip-spoof" && c.Name != "ip6-spoof" {
			continue
		}
		f := append(slices.Clone(c.Frame), make([]byte, 60_000)...)
		size := uint16(len(f) - 14)
		at := 16
		if f[14]>>4 == 6 {
			size, at = size-40, 18
		} else {
			f[14+10], f[14+11] = 0, 0
		}
		binary.BigEndian.PutUint16(f[at:], size)
		// A vnet header with GSO: TCP over IPv4 or IPv6, head of the least length.
		v := []byte{1, 1, 54, 0, 0x78, 5, 34, 0, 16, 0}
		if at == 18 {
			v = []byte{1, 4, 74, 0, 0x78, 5, 54, 0, 16, 0}
		}
		if c.Want != portsec.Pass {
			v[0], v[1] = 0, 0
		}
		f[14+map[int]int{16: 20, 18: 40}[at]+12] = 0x50 // a TCP header of 20 bytes
		if _, err := p.dev.Write(append(v, f...)); err != nil {
			t.Fatalf("%s: %v", c.Name, err)
		}
		if got := p.counted(); got != c.Want {
			t.Errorf("%s: %s, want %s", c.Name, got, c.Want)
		}
	}
}

// TestLiveInvalid: an inconsistent configuration changes nothing.
func TestLiveInvalid(t *testing.T) {
	p := newTap(t)
	cfg := portsectest.Config()
	cfg.IPs = nil
	if err := Attach(p.c, p.link, cfg); !errors.Is(err, portsec.ErrInvalid) {
		t.Errorf("%v", err)
	}
	p.absent()
}
