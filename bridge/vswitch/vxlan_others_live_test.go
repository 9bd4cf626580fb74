package vswitch_test

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/nstest"
	"vmnet/internal/ovstest"
)

// TestLiveVXLANOpenVSwitch exchanges frames with Open vSwitch.
func TestLiveVXLANOpenVSwitch(t *testing.T) {
	u := newUnderlay(t, 1600)
	s := &site{sw: newSwitch(t), at: newHost(t, 100, "u0")}
	s.v4, _ = u.join(s.at)
	s.guest = tapHost(t, s.sw, 0, 1, vport.Config{})
	s.at.ethtool(unix.ETHTOOL_STXCSUM, 0) // it reads u0 by a packet socket, and then verifies checksums
	far := newHost(t, 1, "eth0")
	v4, _ := u.join(far)
	o := ovstest.New(t, far.ns)
	o.StartSwitch()
	// In userspace, the underlay's device is a port of a bridge too, which has the address.
	o.AddBridge("br-ex")
	o.AddBridge("br-int")
	far.ip("addr flush dev u0")
	far.ip("addr add %s/24 dev br-ex", v4)
	far.ip("link set br-ex up")
	o.Vsctl("add-port", "br-ex", "u0")
	o.Vsctl("add-port", "br-int", "vx0", "--", "set", "interface", "vx0", "type=vxlan", "options:key=77",
		"options:remote_ip="+s.v4.String())
	o.Vsctl("add-port", "br-int", "eth0", "--", "set", "interface", "eth0", "type=internal")
	addPort(t, s.sw, "up", openVXLAN(t, s.at, vport.VXLAN{VNI: 77, Remotes: []netip.Addr{v4}}), vport.Config{})
	far.up(1500)
	nstest.Eventually(t, 40*time.Second, "the guest behind Open vSwitch answers", func() bool {
		return ping(t, s.guest, far.v4, 56) == nil
	})
	tcp(t, s.guest, far, 1<<20)
	tcp(t, far, s.guest, 1<<20)
	if at := s.remoteOf(far); at != v4.String() {
		t.Errorf("the guest is behind %q", at)
	}
}

// TestLiveVXLANRefused: what cannot be opened says why, and leaves nothing.
func TestLiveVXLANRefused(t *testing.T) {
	u := newUnderlay(t, 1500)
	h := newHost(t, 0, "u0")
	v4, _ := u.join(h)
	good := vport.VXLAN{VNI: 77, Remotes: []netip.Addr{netip.MustParseAddr("192.0.2.99")}, Local: v4}
	w := openVXLAN(t, h, good)
	defer w.Close()
	for want, change := range map[string]func(*vport.VXLAN){
		"in use":        func(*vport.VXLAN) {},
		"not have it":   func(v *vport.VXLAN) { v.Local = netip.MustParseAddr("192.0.2.98") },
		"VNI 0":         func(v *vport.VXLAN) { v.VNI = 0 },
		"no remote":     func(v *vport.VXLAN) { v.Remotes = nil },
		"other IP":      func(v *vport.VXLAN) { v.Local = netip.MustParseAddr("2001:db8::1") },
		"given twice":   func(v *vport.VXLAN) { v.Remotes = append(v.Remotes[:1:1], v.Remotes[0]) },
		"the local one": func(v *vport.VXLAN) { v.Remotes = []netip.Addr{v4} },
		"unicast":       func(v *vport.VXLAN) { v.Remotes = []netip.Addr{netip.MustParseAddr("239.0.0.1")} },
		"UDP port":      func(v *vport.VXLAN) { v.Port = 70000 },
	} {
		cfg := good
		change(&cfg)
		if w, err := vswitch.OpenVXLAN(h.ns.Path(), cfg); err == nil {
			t.Errorf("%s: no error", want)
			_ = w.Close()
		} else if !strings.Contains(err.Error(), want) {
			t.Errorf("want %q: %v", want, err)
		}
	}
	cfg := good
	cfg.Port = 4790
	files, err := vswitch.VXLANFiles(h.ns.Path(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	wrong, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer wrong.Close()
	for i := range files {
		right := files[i]
		files[i] = wrong
		if w, err := vswitch.OpenVXLANFiles(files, cfg); err == nil {
			t.Errorf("file %d: a TCP socket is taken", i)
			_ = w.Close()
		}
		files[i] = right
	}
	for _, f := range files {
		if err := f.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
			t.Error(err)
		}
	}
}

// TestLiveVXLANCarriesWhatTheBridgeCarries sends the same frames through a kernel bridge and two
// switches that VXLAN joins. They must carry what the bridge carries, byte by byte.
func TestLiveVXLANCarriesWhatTheBridgeCarries(t *testing.T) {
	m := mtus{9000, 1500}
	b, l := bridgeLine(t, m), newLine(t, 10, m)
	u := newUnderlay(t, 9050)
	far := newHost(t, 20, "u0")
	at, _ := u.join(l.middle)
	farAt, _ := u.join(far)
	near, beyond := newSwitch(t), newSwitch(t)
	addPort(t, near, "p1", openPacket(t, l.middle, "p1"), vport.Config{})
	addPort(t, near, "up", openVXLAN(t, l.middle, vport.VXLAN{VNI: 77, Remotes: []netip.Addr{farAt}}), vport.Config{})
	addPort(t, beyond, "up", openVXLAN(t, far, vport.VXLAN{VNI: 77, Remotes: []netip.Addr{at}}), vport.Config{})
	tapPort(t, beyond, "inside", l.inside, m.toInside)
	list := samples(rand.New(rand.NewPCG(1, 77)), 600)
	bridges := carried(newProbe(t, b.outside), newProbe(t, b.inside), list)
	switches := carried(newProbe(t, l.outside), newProbe(t, l.inside), list)
	t.Logf("the bridge carries %d of %d frames, the switches %d", len(bridges), len(list), len(switches))
	if len(bridges) < 400 {
		t.Errorf("the bridge carries only %d of %d frames: the test is wrong", len(bridges), len(list))
	}
	for n, f := range list {
		got, want := switches[uint16(n)], bridges[uint16(n)]
		if len(want) > 0 && !slices.EqualFunc(got, want, bytes.Equal) {
			t.Errorf("%s %d with %d tags, %d bytes, %+v: %d frames, %d by the bridge", f.what, n, f.tags,
				len(f.frame), f.h, len(got), len(want))
		}
	}
}
