package vswitch_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
	"vmnet/testvm/lab"
)

// A network is a kernel bridge or a switch between taps whose queues the test has. A frame that the
// test writes to a queue enters by that port; it reads the frames that leave by a port.
type network struct {
	t    *testing.T
	ns   *netns.NS
	taps []*os.File
	sw   *vswitch.Switch // nil for a bridge
	sent []uint64        // number of frames by port
}

// twins returns a bridge and a switch with ports of the same settings.
func twins(t *testing.T, ports []brport.Settings, filtering bool) (br, sw *network) {
	t.Helper()
	br, sw = newNetwork(t, len(ports)), newNetwork(t, len(ports))
	c, err := rtnl.Open(br.ns)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "br0"
	off := false
	nl := nstest.Handle(t, br.ns)
	made := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &off}
	if filtering { // a kernel without it refuses even the value for off
		made.VlanFiltering = &filtering
	}
	if err := nl.LinkAdd(made); err != nil {
		t.Fatal(err)
	}
	master, err := c.Link("br0")
	if err == nil {
		err = c.Set(master.Index, rtnl.Up(true))
	}
	if err != nil {
		t.Fatal(err)
	}
	sw.sw = newSwitch(t)
	for n, cfg := range ports {
		link, err := c.Link(br.taps[n].Name())
		if err == nil {
			err = bridges.AddPort(c, master, link, cfg)
		}
		if err != nil {
			t.Fatalf("port %d of the bridge: %v", n, err)
		}
		w, err := vswitch.OpenPacket(sw.ns.Path(), sw.taps[n].Name())
		if err != nil {
			t.Fatal(err)
		}
		addPort(t, sw.sw, fmt.Sprintf("p%d", n), w, vport.Config{Settings: cfg})
		if err := sw.up(n); err != nil {
			t.Fatal(err)
		}
	}
	return br, sw
}

func newNetwork(t *testing.T, ports int) *network {
	n := &network{t: t, ns: nstest.New(t), sent: make([]uint64, ports)}
	for range ports {
		tap, err := tun.CreateNumbered(n.ns, false)
		if err != nil {
			t.Fatal(err)
		}
		f := tap.Queues()[0]
		t.Cleanup(func() { _ = tap.Close() })
		if err := unix.SetNonblock(int(f.Fd()), true); err != nil {
			t.Fatal(err)
		}
		n.taps = append(n.taps, os.NewFile(uintptr(dup(t, f)), tap.Name))
	}
	t.Cleanup(func() {
		for _, f := range n.taps {
			_ = f.Close()
		}
	})
	return n
}

func dup(t *testing.T, f *os.File) int {
	t.Helper()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func (n *network) up(port int) error {
	nl := nstest.Handle(n.t, n.ns)
	link, err := nl.LinkByName(n.taps[port].Name())
	if err != nil {
		return err
	}
	return nl.LinkSetUp(link)
}

// send sends a frame by a port and returns what has left by each port. A bridge delivers within the
// write; a switch counts the frames that it is done with.
func (n *network) send(port int, frame []byte) [][]byte {
	n.t.Helper()
	if _, err := unix.Write(int(n.taps[port].Fd()), frame); err != nil {
		n.t.Fatal(err)
	}
	n.sent[port]++
	if n.sw != nil {
		p := n.sw.Ports()[port]
		nstest.Eventually(n.t, 20*time.Second, "the switch has handled the frame", func() bool {
			return p.Stats().Total().RxFrames >= n.sent[port]
		})
	}
	return n.left()
}

// left returns the test's frames that have left by the ports, at most one by each.
func (n *network) left() [][]byte {
	n.t.Helper()
	out, b := make([][]byte, len(n.taps)), make([]byte, 4096)
	for port, f := range n.taps {
		for {
			got, err := unix.Read(int(f.Fd()), b)
			if errors.Is(err, unix.EAGAIN) {
				break
			}
			if err != nil {
				n.t.Fatal(err)
			}
			if got < 12 || !bytes.Equal(b[6:9], stationPrefix) && !bytes.Equal(b[6:9], []byte{0x03, 0, 0}) &&
				!bytes.Equal(b[6:12], make([]byte, 6)) {
				continue // the kernel's own frame
			}
			if out[port] != nil {
				n.t.Errorf("two frames have left by port %d", port)
			}
			out[port] = bytes.Clone(b[:got])
		}
	}
	return out
}

// stationPrefix is the prefix of the addresses of the test's stations.
var stationPrefix = []byte{2, 0xbe, 0x51}

func stationMAC(n int) []byte { return append(slices.Clone(stationPrefix), 0, 0, byte(n)) }

// randomFrame returns a frame from one of the stations, which are at one port most of the time.
func randomFrame(r *rand.Rand, ports int) (port int, frame []byte) {
	src := r.IntN(3 * ports)
	port = src % ports
	if r.IntN(10) == 0 {
		port = r.IntN(ports)
	}
	dst := stationMAC(r.IntN(3*ports + 1))
	switch r.IntN(8) {
	case 0:
		dst = []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	case 1:
		dst = []byte{1, 0, 0x5e, 0, 0, byte(r.IntN(3) + 5)}
	case 2:
		dst = []byte{1, 0x80, 0xc2, 0, 0, byte(r.IntN(18))}
	}
	from := stationMAC(src)
	switch r.IntN(60) {
	case 0:
		from = make([]byte, 6)
	case 1:
		from = []byte{3, 0, 0, 0, 0, 1}
	}
	frame = slices.Concat(dst, from)
	for range max(0, r.IntN(4)-1) {
		vid := []uint16{0, 0, 1, 10, 10, 20, 30, 4094, 4095}[r.IntN(9)]
		kind := uint16(0x8100)
		if r.IntN(5) == 0 {
			kind = 0x88a8
		}
		frame = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(frame, kind), uint16(r.IntN(16))<<12|vid)
	}
	frame = binary.BigEndian.AppendUint16(frame, 0x88b5)
	for range 46 + r.IntN(200) {
		frame = append(frame, byte(r.Uint32()))
	}
	return port, frame
}

// compareForwarding sends the same random frames to both, and compares what leaves by each port,
// byte by byte.
func compareForwarding(t *testing.T, ports []brport.Settings, filtering bool, frames int) {
	t.Helper()
	br, sw := twins(t, ports, filtering)
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(1, seed))
	wrong, delivered := 0, 0
	for i := range frames {
		port, frame := randomFrame(r, len(ports))
		want, got := br.send(port, frame), sw.send(port, frame)
		for p := range want {
			if want[p] != nil {
				delivered++
			}
			if bytes.Equal(got[p], want[p]) {
				continue
			}
			t.Errorf("seed %d, frame %d by port %d (%s): %x\nleft by port %d (%s): %x\nby the bridge's: %x",
				seed, i, port, ports[port], frame[:min(len(frame), 40)], p, ports[p], head(got[p]), head(want[p]))
			if wrong++; wrong > 5 {
				t.FailNow()
			}
		}
	}
	if delivered < frames {
		t.Errorf("only %d of %d frames were delivered: the test is wrong", delivered, frames)
	}
	compareAddresses(t, br, sw, filtering)
}

func head(b []byte) []byte { return b[:min(len(b), 40)] }

// compareAddresses checks that both have learned the same addresses.
func compareAddresses(t *testing.T, br, sw *network, filtering bool) {
	t.Helper()
	c, err := rtnl.Open(br.ns)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	master, err := c.Link("br0")
	if err != nil {
		t.Fatal(err)
	}
	learned, err := bridges.LearnedBy(c, master.Index, 0)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]int{}
	for port, f := range br.taps {
		link, err := c.Link(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range learned[link.Index] {
			if !l.Static {
				want[fmt.Sprintf("%s %d", l.MAC, l.VLAN)] = port
			}
		}
	}
	got := map[string]int{}
	for _, e := range sw.sw.FDB().Dump() {
		vlan := e.Key.VLAN()
		if !filtering {
			vlan = 0
		}
		got[fmt.Sprintf("%s %d", e.Key.MAC(), vlan)] = e.Port
	}
	if len(want) < 10 {
		t.Errorf("the bridge has learned only %d addresses: the test is wrong", len(want))
	}
	for k, port := range want {
		if at, ok := got[k]; !ok || at != port {
			t.Errorf("%s is behind port %d of the bridge, but behind %d of the switch (%v)", k, port, at, ok)
		}
	}
	if len(got) != len(want) {
		t.Errorf("the switch has learned %d addresses, the bridge %d", len(got), len(want))
	}
}

// portsOf parses ports' settings in the form of interface aliases.
func portsOf(t *testing.T, settings ...string) (ports []brport.Settings) {
	t.Helper()
	for _, s := range settings {
		cfg, err := brport.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		ports = append(ports, cfg)
	}
	return ports
}

// TestLiveForwardsAsTheBridge compares a switch without VLANs with a bridge that does not filter
// them.
func TestLiveForwardsAsTheBridge(t *testing.T) {
	compareForwarding(t, portsOf(t, "", "", "isolated", "isolated", "hairpin", "nolearn", "noflood",
		"forward:lldp,lacp,0d", "isolated;hairpin;forward:all"), false, 3000)
}

// TestLabForwardsAsTheBridge compares both with VLANs, which the test machine's kernel may lack.
func TestLabForwardsAsTheBridge(t *testing.T) {
	lab.Inside(t)
	compareForwarding(t, portsOf(t, "", "", "vlan:10", "vlan:10;isolated", "vlan:20;hairpin", "trunk:10,20",
		"trunk:10;native:20", "trunk:1-4094;native:1", "isolated;forward:eapol", "trunk:30;native:10;isolated;noflood"),
		true, 3000)
}
