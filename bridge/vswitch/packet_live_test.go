package vswitch_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmnet/bridge/brport"
	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
)

// veth joins two hosts by devices of that name and MTU.
func veth(t testing.TB, a, b *host, device string, mtu int) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = device, mtu
	pair := &netlink.Veth{
		LinkAttrs: attrs, PeerName: device, PeerNamespace: netlink.NsFd(int(b.ns.Handle())),
		PeerMTU: uint32(mtu),
	}
	if err := a.nl.LinkAdd(pair); err != nil {
		t.Fatal(err)
	}
	for _, h := range []*host{a, b} {
		if err := h.nl.LinkSetUp(h.link(device)); err != nil {
			t.Fatal(err)
		}
	}
}

func openPacket(t testing.TB, h *host, device string) *vswitch.Wire {
	t.Helper()
	w, err := vswitch.OpenPacket(h.ns.Path(), device)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// TestLivePacket has a veth device as the uplink:
//
//	guest [eth0 tap] -- switch -- packet [lan0] middle -- veth -- [lan0] outside
func TestLivePacket(t *testing.T) {
	for _, mtu := range []int{1500, 9000} {
		t.Run(fmt.Sprint(mtu), func(t *testing.T) {
			sw := newSwitch(t)
			cfg := vport.Config{MTU: mtu}
			guest, other := tapHost(t, sw, 0, 1, cfg), socketHost(t, sw, 3, cfg)
			outside, middle := newHost(t, 1, "lan0"), newHost(t, 2, "lan0")
			veth(t, outside, middle, "lan0", mtu)
			outside.up(mtu)
			up := addPort(t, sw, "up", openPacket(t, middle, "lan0"), vport.Config{})
			middle.up(mtu) // the host in the middle has addresses on the device

			if got := up.Stats().MTU; got != mtu {
				t.Errorf("the port's MTU is %d", got)
			}
			for _, h := range []*host{guest, other} {
				tcp(t, h, outside, 10<<20)
				tcp(t, outside, h, 10<<20)
				udp(t, h, outside, 1400)
				udp(t, outside, h, 12000)
			}
			if err := ping(t, guest, outside.v4, mtu-28); err != nil {
				t.Errorf("a full frame: %v", err)
			}
			for _, from := range []*host{guest, outside} {
				for _, addr := range []string{middle.v4, middle.v6} {
					if err := ping(t, from, addr, 0); err == nil {
						t.Errorf("the host in the middle answers %s at %s", from.v4, addr)
					}
				}
			}
			if mean := meanFrame(sw.Ports()[0]); mean < 9100 {
				t.Errorf("super-frames did not cross in one piece: mean length %d", mean)
			}
		})
	}
}

// answers bounds what takes no time on an idle machine.
const answers = 20 * time.Second

// TestLivePacketOnATap has a guest that holds its tap itself, as QEMU does, and a switch on the
// kernel's side of the tap. The guest asks by ARP for the host's address on it.
func TestLivePacketOnATap(t *testing.T) {
	h := newHost(t, 0, "tap0")
	tap, err := tun.Create(h.ns, "tap0", false)
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	h.up(1500)
	guest := pollable(t, tap.Queues()[0])
	defer guest.Close()

	if !arp(t, guest, h, answers) {
		t.Fatal("without a switch, the host does not answer: the test is wrong")
	}
	sw := newSwitch(t)
	addPort(t, sw, "guest", openPacket(t, h, "tap0"), vport.Config{})
	other := tapHost(t, sw, 1, 1, vport.Config{})
	if arp(t, guest, h, 300*time.Millisecond) {
		t.Error("the host answers a guest of the switch")
	}
	if !arp(t, guest, other, answers) {
		t.Error("another guest of the switch does not answer")
	}
	if _, err := vswitch.OpenPacket(h.ns.Path(), "tap0"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second switch on the device: %v", err)
	}
	if err := sw.RemovePort("guest"); err != nil {
		t.Fatal(err)
	}
	if !arp(t, guest, h, answers) {
		t.Error("the host does not answer when the switch is gone")
	}
}

// TestLivePacketTags sends frames with tags by a packet socket, in both directions. The kernel
// removes the outermost tag of any type from what it delivers. The switch must lose no part of a
// frame.
func TestLivePacketTags(t *testing.T) {
	h := newHost(t, 0, "tap0")
	tap, err := tun.Create(h.ns, "tap0", false)
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	if err := h.nl.LinkSetUp(h.link("tap0")); err != nil {
		t.Fatal(err)
	}
	outside := pollable(t, tap.Queues()[0])
	defer outside.Close()
	w, far, err := vswitch.SocketPair(0)
	if err != nil {
		t.Fatal(err)
	}
	inside := pollable(t, far)
	defer inside.Close()
	defer far.Close()
	sw := newSwitch(t)
	addPort(t, sw, "packet", openPacket(t, h, "tap0"), vport.Config{})
	addPort(t, sw, "socket", w, vport.Config{})

	header := make([]byte, 10) // vnet header of the tap's frames
	for n, tags := range []string{
		"", "\x81\x00\x00\x05", "\x81\x00\x60\x05", "\x81\x00\x60\x00", "\x88\xa8\x00\x07\x81\x00\x00\x05",
		"\x81\x00\x00\x05\x81\x00\x00\x06",
		"\x88\xa8\x00\x07", "\x88\xa8\x00\x07\x88\xa8\x00\x06\x81\x00\x00\x05",
		"\x88\xa8\x00\x07\x88\xa8\x00\x06\x81\x00\x00\x05\x81\x00\x00\x04",
	} {
		for _, payload := range []int{60, 1500} {
			f := "\xff\xff\xff\xff\xff\xff\x02\x00\x00\x00\x0b" + string(rune(n)) + tags + "\x88\xb5" +
				string(make([]byte, payload))
			expect(t, outside, append(header, f...), inside, []byte(f))
			expect(t, inside, []byte(f), outside, append(header, f...))
		}
	}
}

// TestLivePacketManyFullFrames sends more full frames with two tags than the ring for them has
// slots.
func TestLivePacketManyFullFrames(t *testing.T) {
	outside, middle := newHost(t, 0, "lan0"), newHost(t, 1, "lan0")
	veth(t, outside, middle, "lan0", 1500)
	w, far, err := vswitch.SocketPair(0)
	if err != nil {
		t.Fatal(err)
	}
	inside := pollable(t, far)
	defer inside.Close()
	defer far.Close()
	sw := newSwitch(t)
	up := addPort(t, sw, "packet", openPacket(t, middle, "lan0"), vport.Config{})
	addPort(t, sw, "socket", w, vport.Config{})
	if err := outside.nl.LinkSetMTU(outside.link("lan0"), 2000); err != nil {
		t.Fatal(err)
	}
	p := newProbe(t, outside) // its receiver asks for timestamps, as captures do
	if err := unix.SetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_TIMESTAMP, 1); err != nil {
		t.Fatal(err)
	}
	for n := range 300 {
		f := slices.Concat([]byte{2, 0, 0, 0, 0, 9}, ours,
			[]byte{0, byte(n >> 8), byte(n), 0x88, 0xa8, 0, 7, 0x81, 0, 0, 5, 0x88, 0xb5}, make([]byte, 1500))
		if _, err := inside.Write(f); err != nil {
			t.Fatal(err)
		}
		if got := p.receive()[0]; !bytes.Equal(got, f) {
			t.Fatalf("frame %d: %x", n, got[:30])
		}
	}
	nstest.Eventually(t, 20*time.Second, "all frames are counted", func() bool {
		return up.Stats().Total().TxFrames >= 300
	})
}

// expect sends a frame, and looks for want among the frames that arrive.
func expect(t *testing.T, from *os.File, sent []byte, to *os.File, want []byte) {
	t.Helper()
	_, err := from.Write(sent)
	if err == nil {
		err = to.SetReadDeadline(time.Now().Add(answers))
	}
	if err != nil {
		t.Fatal(err)
	}
	var others [][]byte
	b := make([]byte, 1<<17)
	for {
		n, err := to.Read(b)
		if err != nil {
			t.Errorf("%x did not arrive, but %x did", want, others)
			return
		}
		if bytes.Equal(b[:n], want) {
			return
		}
		others = append(others, bytes.Clone(b[:n]))
	}
}

// arp asks for a host's address and reports whether the host answered within that time.
func arp(t *testing.T, guest *os.File, to *host, within time.Duration) bool {
	t.Helper()
	own := []byte{2, 0, 0, 0, 0xaa, 1}
	target := netip.MustParseAddr(to.v4).As4()
	f := make([]byte, 10) // the vnet header
	f = append(append(f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), own...)
	f = append(f, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1)
	f = append(append(append(f, own...), 10, 9, 200, 200), 0, 0, 0, 0, 0, 0)
	f = append(f, target[:]...)
	if _, err := guest.Write(f); err != nil {
		t.Fatal(err)
	}
	if err := guest.SetReadDeadline(time.Now().Add(within)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1<<17)
	for {
		n, err := guest.Read(b)
		if err != nil {
			return false
		}
		// An ARP reply from that address to the guest.
		if e := b[10:n]; len(e) >= 42 && binary.BigEndian.Uint16(e[12:]) == 0x0806 && e[21] == 2 &&
			bytes.Equal(e[28:32], target[:]) && bytes.Equal(e[:6], own) {
			return true
		}
	}
}

// TestLiveTrunk joins two switches by a trunk over a veth pair; two pairs of hosts, in VLANs 10 and
// 20, have the same addresses. Frames with tags cross as super-frames, with partial checksums, tags
// in auxdata:
//
//	a10 --+                                                +-- b10
//	      sw1 -- packet [t0] middle -- veth -- [t0] packet -- sw2
//	a20 --+                                                +-- b20
func TestLiveTrunk(t *testing.T) {
	left, right := newHost(t, 10, "t0"), newHost(t, 11, "t0")
	veth(t, left, right, "t0", 1500)
	vlan := func(id int) vport.Config {
		return vport.Config{Settings: brport.Settings{VLAN: id}}
	}
	trunk := vport.Config{Settings: brport.Settings{Trunk: []brport.VLANRange{{First: 10, Last: 11}}, Native: 20}}
	sw1, sw2 := newSwitch(t), newSwitch(t)
	addPort(t, sw1, "trunk", openPacket(t, left, "t0"), trunk)
	addPort(t, sw2, "trunk", openPacket(t, right, "t0"), trunk)
	a10, b10 := tapHost(t, sw1, 0, 1, vlan(10)), tapHost(t, sw2, 1, 1, vlan(10))
	s10 := socketHost(t, sw2, 2, vlan(10))
	for _, pair := range [][2]*host{{a10, b10}, {b10, a10}, {a10, s10}, {s10, a10}} {
		tcp(t, pair[0], pair[1], 5<<20)
		udp(t, pair[0], pair[1], 1400)
		udp(t, pair[0], pair[1], 4000)
	}
	if err := ping(t, a10, b10.v4, 1472); err != nil {
		t.Errorf("a full frame with a tag: %v", err)
	}
	if mean := meanFrame(sw2.Ports()[0]); mean < 3000 {
		t.Errorf("super-frames with tags did not cross in one piece: mean length %d", mean)
	}
	// The same addresses in the native VLAN, whose frames have no tag on the way.
	for sw, name := range map[*vswitch.Switch]string{sw1: "h0", sw2: "h1"} {
		if err := sw.RemovePort(name); err != nil {
			t.Fatal(err)
		}
	}
	a20, b20 := tapHost(t, sw1, 0, 1, vlan(20)), tapHost(t, sw2, 1, 1, vlan(20))
	tcp(t, a20, b20, 5<<20)
	if err := ping(t, a20, s10.v4, 0); err == nil {
		t.Error("a host in VLAN 10 answers one in 20")
	}
}

func TestLivePacketNotEthernet(t *testing.T) {
	h := newHost(t, 1, "lan0")
	tun := &netlink.Tuntap{
		LinkAttrs: netlink.LinkAttrs{Name: "tun0"}, Mode: netlink.TUNTAP_MODE_TUN,
		Flags: netlink.TUNTAP_NO_PI,
	}
	if err := h.ns.Do(func() error { return netlink.LinkAdd(tun) }); err != nil {
		t.Fatal(err)
	}
	for _, device := range []string{"lo", "tun0"} {
		if w, err := vswitch.OpenPacket(h.ns.Path(), device); !errors.Is(err, brport.ErrInvalid) {
			t.Errorf("%s: %v, %v", device, w, err)
		}
	}
}
