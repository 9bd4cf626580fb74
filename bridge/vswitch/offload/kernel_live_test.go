package offload

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
)

// A tapQueue is the only queue of a tap that is up.
type tapQueue struct {
	link netlink.Link
	fd   int
}

// newTap makes a tap that takes those offloads, unix.TUN_F_*.
func newTap(t testing.TB, ns *netns.NS, name string, offloads int) tapQueue {
	t.Helper()
	dev, err := tun.Create(ns, name, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dev.Close() })
	fd := int(dev.Queues()[0].Fd())
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offloads); err != nil {
		t.Fatalf("TUNSETOFFLOAD %#x: %v", offloads, err)
	}
	nl := nstest.Handle(t, ns)
	link, err := nl.LinkByName(name)
	if err == nil {
		err = nl.LinkSetUp(link)
	}
	if err != nil {
		t.Fatalf("bring %s up: %v", name, err)
	}
	return tapQueue{link, fd}
}

// read reads one frame with its vnet header. It returns nil after the timeout.
func (q tapQueue) read(buf []byte, timeout time.Duration) []byte {
	fds := []unix.PollFd{{Fd: int32(q.fd), Events: unix.POLLIN}}
	for end := time.Now().Add(timeout); ; {
		n, err := unix.Poll(fds, max(0, int(time.Until(end).Milliseconds())))
		if errors.Is(err, unix.EINTR) {
			continue // a signal of Go's scheduler
		}
		if n == 0 || err != nil {
			return nil
		}
		break
	}
	n, err := unix.Read(q.fd, buf)
	if err != nil {
		return nil
	}
	return buf[:n]
}

// A cutter lets the kernel finish frames. A super-frame enters at one tap, passes a bridge, and
// leaves by another tap, for which the kernel must do what that tap's offloads do not allow.
type cutter struct {
	in, out tapQueue
	vnet    int // length of the vnet header of in
	buf     []byte
	marks   uint32
}

func newCutter(t *testing.T, offloads int) *cutter {
	t.Helper()
	ns := nstest.New(t)
	noFilter(t, ns)
	nl := nstest.Handle(t, ns)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "br0"
	br := &netlink.Bridge{LinkAttrs: attrs}
	if err := nl.LinkAdd(br); err != nil {
		t.Fatal(err)
	}
	c := &cutter{buf: make([]byte, 1<<17), vnet: HeaderLen}
	c.in, c.out = newTap(t, ns, "in", 0), newTap(t, ns, "out", offloads)
	for _, err := range []error{
		nl.LinkSetMTU(c.in.link, 9000), nl.LinkSetMTU(c.out.link, 9000), nl.LinkSetUp(br),
		nl.LinkSetMaster(c.in.link, br), nl.LinkSetMaster(c.out.link, br),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	nstest.Eventually(t, 30*time.Second, "the bridge forwards", func() bool {
		_, err := c.cut(Header{}, mark(0))
		return err == nil
	})
	return c
}

// noFilter keeps br_netfilter, if it is loaded, from dropping and fragmenting frames that a bridge
// alone would forward.
func noFilter(t *testing.T, ns *netns.NS) {
	t.Helper()
	err := ns.Do(func() error {
		var errs []error
		for _, name := range []string{"iptables", "ip6tables", "arptables"} {
			err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-"+name, []byte("0"), 0)
			if !errors.Is(err, os.ErrNotExist) {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	})
	if err != nil {
		t.Fatal(err)
	}
}

var errNoMark = errors.New("what was sent behind the frame did not arrive")

// mark is a frame of a local experimental EtherType with a number.
func mark(n uint32) []byte {
	f := append(make([]byte, 0, 60), 2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x88, 0xb5)
	return binary.BigEndian.AppendUint32(f, n)[:60]
}

func isMark(f []byte) bool { return len(f) >= 18 && f[12] == 0x88 && f[13] == 0xb5 }

// cut returns the frames that the kernel makes of one frame, each after its vnet header. An errno
// is that of writing the super-frame; the kernel may also drop the frame silently.
func (c *cutter) cut(h Header, frame []byte) ([][]byte, error) {
	b := make([]byte, c.vnet, c.vnet+len(frame))
	Describe(h, frame, b, 0)
	if _, err := unix.Write(c.in.fd, append(b, frame...)); err != nil {
		return nil, err
	}
	var out [][]byte
	for range 10 { // a mark is lost if there were more frames than the tap queues
		c.marks++
		if _, err := unix.Write(c.in.fd, append(make([]byte, c.vnet), mark(c.marks)...)); err != nil {
			return nil, err
		}
		for b := c.out.read(c.buf, 200*time.Millisecond); b != nil; b = c.out.read(c.buf, 200*time.Millisecond) {
			switch f := b[HeaderLen:]; {
			case isMark(f) && bytes.Equal(f[:18], mark(c.marks)[:18]):
				return out, nil
			case !isMark(f) && f[6] == 2 && f[11] == 1: // skips frames that the host itself sends
				out = append(out, bytes.Clone(b))
			}
		}
	}
	return nil, errNoMark
}

// A made frame is one that the kernel or a Finisher has made, with its vnet header.
type made struct {
	h     Header
	frame []byte
}

// all returns what reaches a target with those limits: the frame itself, or what a Finisher makes
// of it.
func all(f *Finisher, h Header, frame []byte, l Limits) (out []made, why Reason) {
	if why := Check(h, frame); why != OK {
		return nil, why
	}
	if Fits(h, frame, l) {
		return []made{{h, frame}}, OK
	}
	return finished(f, h, frame, l)
}

func finished(f *Finisher, h Header, frame []byte, l Limits) (out []made, why Reason) {
	frames, heads, why := finish(f, h, frame, l)
	for i := range frames {
		out = append(out, made{heads[i], frames[i]})
	}
	return out, why
}

// compare returns an error that says where our frames differ from the kernel's.
func compare(ours []made, kernels [][]byte) error {
	for i := range min(len(ours), len(kernels)) {
		h, _ := Parse(kernels[i])
		h.HdrLen = ours[i].h.HdrLen // only a hint
		if ours[i].h != h {
			return fmt.Errorf("frame %d of %d has %+v, the kernel's %+v", i, len(ours), ours[i].h, h)
		}
		o, k := ours[i].frame, kernels[i][HeaderLen:]
		if !bytes.Equal(o, k) {
			at := 0
			for at < min(len(o), len(k)) && o[at] == k[at] {
				at++
			}
			return fmt.Errorf("frame %d of %d differs at byte %d:\nours     %x\nkernel's %x", i, len(ours), at,
				o[:min(len(o), 160)], k[:min(len(k), 160)])
		}
	}
	if len(ours) != len(kernels) {
		return fmt.Errorf("%d frames, the kernel made %d", len(ours), len(kernels))
	}
	return nil
}

func requireRoot(t testing.TB) {
	t.Helper()
	nstest.Require(t, "root", os.Geteuid() == 0, "run it as root")
}

// targets are taps, with the limits that describe them.
var targets = []struct {
	name     string
	offloads int
	limits   Limits
}{
	{"nothing", 0, Limits{VnetHdr: HeaderLen}},
	{"checksums", unix.TUN_F_CSUM, Limits{VnetHdr: HeaderLen, CSum: true}},
	{"TSO4", unix.TUN_F_CSUM | unix.TUN_F_TSO4, Limits{VnetHdr: HeaderLen, CSum: true, TSO4: true}},
	{
		"TSO6-ECN", unix.TUN_F_CSUM | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN,
		Limits{VnetHdr: HeaderLen, CSum: true, TSO6: true, TSOECN: true},
	},
	{"USO", unix.TUN_F_CSUM | unix.TUN_F_USO4 | unix.TUN_F_USO6, Limits{VnetHdr: HeaderLen, CSum: true, USO: true}},
	{"all", allOffloads, Limits{VnetHdr: HeaderLen, CSum: true, TSO4: true, TSO6: true, TSOECN: true, USO: true}},
}

const allOffloads = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN |
	unix.TUN_F_USO4 | unix.TUN_F_USO6

func TestLiveRandomFramesAsTheKernelCutsThem(t *testing.T) {
	requireRoot(t)
	for i, target := range targets {
		t.Run(target.name, func(t *testing.T) {
			c := newCutter(t, target.offloads)
			r := rand.New(rand.NewPCG(3, uint64(i)))
			var f Finisher
			for range 500 {
				s := randomShape(r)
				switch r.IntN(4) {
				case 0: // only the checksum is missing
					s.gso, s.ecn, s.full, s.payload = 0, false, false, r.IntN(8000)
				case 1:
					s.gso = 4000 + r.IntN(4000)
					s.payload = 8001 + r.IntN(56000)
				}
				// The kernel gives such a frame a partial checksum first; we do not.
				s.full = s.full && target.offloads == 0 && !s.udp // nor does a tap take one of UDP
				h, frame := s.build()
				kernels, err := c.cut(h, frame)
				if err != nil {
					t.Fatalf("%+v: the kernel: %v", s, err)
				}
				ours, why := all(&f, h, frame, target.limits)
				if why != OK {
					t.Fatalf("%+v: %v", s, why)
				}
				if err := compare(ours, kernels); err != nil {
					t.Fatalf("%+v: %v", s, err)
				}
			}
		})
	}
}

func TestLiveChecksumOfZeroAsTheKernelWritesIt(t *testing.T) {
	requireRoot(t)
	c := newCutter(t, 0)
	for _, tt := range zeroed {
		h, frame, _ := tt.s.buildZeroed(t)
		kernels, err := c.cut(h, frame)
		if err != nil {
			t.Fatalf("%s: the kernel: %v", tt.name, err)
		}
		ours, why := finished(new(Finisher), h, frame, targets[0].limits)
		if why != OK {
			t.Fatalf("%s: %v", tt.name, why)
		}
		if err := compare(ours, kernels); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// The kernel must accept what Check accepts, and make the same frames of it.
func TestLiveLyingFrames(t *testing.T) {
	requireRoot(t)
	c := newCutter(t, 0)
	r := rand.New(rand.NewPCG(5, 7))
	var f Finisher
	alike, refused := 0, [Reasons]int{}
	for range 1500 {
		s := randomShape(r)
		s.payload = min(s.payload, 6000)
		s.gso = max(s.gso, s.payload/60)
		h, frame := lie(r, s)
		ours, why := finished(&f, h, frame, Limits{VnetHdr: HeaderLen})
		refused[why]++
		fewOptions := h.GSOType != GSONone && len(ours) == 1 // see Check
		// A tap refuses it, a packet socket delivers it.
		fullUDP := h.GSOType == GSOUDPL4 && h.Flags&NeedsCsum == 0
		if why != OK || fewOptions || fullUDP || h.sctp() {
			continue
		}
		kernels, err := c.cut(h, frame)
		if err == nil {
			err = compare(ours, kernels)
		}
		if err != nil {
			t.Fatalf("%+v %+v: %v", s, h, err)
		}
		alike++
	}
	t.Logf("alike %d, by reason %v", alike, refused)
	if alike < 100 || alike > 1400 {
		t.Errorf("of 1500 frames %d were compared", alike)
	}
}

// lie builds a frame of that shape, and makes its vnet header or the frame wrong in one or two
// places.
func lie(r *rand.Rand, s shape) (h Header, frame []byte) {
	h, frame = s.build()
	for range 1 + r.IntN(2) {
		switch r.IntN(8) {
		case 0:
			h.GSOSize = []uint16{0, 1, 0xffff, 0xfffe, uint16(r.Uint32())}[r.IntN(5)]
		case 1:
			h.GSOType = uint8(r.Uint32())
		case 2:
			h.CsumStart += uint16(r.IntN(9)) - 4
		case 3:
			h.CsumOffset = uint16(r.IntN(20))
		case 4:
			h.Flags ^= NeedsCsum
		case 5:
			frame = frame[:etherLen+r.IntN(len(frame)-etherLen)]
		case 6: // except for the addresses, by which the bridge forwards
			frame[12+r.IntN(min(len(frame)-12, 80))] ^= 1 << r.IntN(8)
		case 7:
			h.GSOType = []uint8{GSONone, GSOTCPv4, GSOUDP, GSOTCPv6, GSOUDPL4}[r.IntN(5)] | h.GSOType&GSOECN
		}
	}
	return h, frame
}

// TestLiveTunnelsAsTheKernelCutsThem describes super-frames of tunnels to a tap, as is possible
// since Linux 6.17, and lets the kernel segment them for a tap that takes none.
func TestLiveTunnelsAsTheKernelCutsThem(t *testing.T) {
	requireRoot(t)
	c := newCutter(t, 0)
	const tunnels = 0x80 | 0x100 // TUN_F_UDP_TUNNEL_GSO, TUN_F_UDP_TUNNEL_GSO_CSUM
	err := errors.Join(unix.IoctlSetPointerInt(c.in.fd, unix.TUNSETVNETHDRSZ, TunnelHeaderLen),
		unix.IoctlSetInt(c.in.fd, unix.TUNSETOFFLOAD, allOffloads|tunnels))
	nstest.Require(t, "Linux 6.17", err == nil, "boot a newer kernel: this one's taps describe no tunnels")
	c.vnet = TunnelHeaderLen
	all := targets[len(targets)-1].limits
	all.Tunnels, all.VnetHdr = true, TunnelHeaderLen
	for name, w := range wraps {
		t.Run(name, func(t *testing.T) {
			r := rng(11)
			var f Finisher
			for range 20 {
				s := randomShape(r)
				s.payload, s.gso, s.full = 3000+r.IntN(50000), 500+r.IntN(900), false
				h, frame := s.build()
				h, frame = in(r, h, frame, w)
				p, _ := parse(h, frame)
				if Fits(h, frame, all) != p.overUDP() {
					t.Fatalf("%+v: it fits: %v", s, !p.overUDP())
				}
				if !p.overUDP() {
					return // no vnet header describes it
				}
				kernels, err := c.cut(h, frame)
				if err != nil {
					t.Fatalf("%+v: the kernel: %v", s, err)
				}
				ours, why := finished(&f, h, frame, targets[0].limits)
				if why != OK {
					t.Fatalf("%+v: %v", s, why)
				}
				if err := compare(ours, kernels); err != nil {
					t.Fatalf("%+v: %v", s, err)
				}
			}
		})
	}
}
