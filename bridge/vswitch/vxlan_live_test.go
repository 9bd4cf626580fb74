package vswitch_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/vport"
	"vmnet/internal/nstest"
)

// TestLiveVXLANPort exchanges frames with a VXLAN device of the kernel, and with another switch,
// over IPv4 and IPv6: TCP, UDP, super-frames of both, and tagged frames.
func TestLiveVXLANPort(t *testing.T) {
	for name, far := range map[string]func(sw *vswitch.Switch) *host{
		"kernel, IPv4": func(sw *vswitch.Switch) *host { return vxlanHost(t, sw, 1, false, vport.Config{}) },
		"kernel, IPv6": func(sw *vswitch.Switch) *host { return vxlanHost(t, sw, 1, true, vport.Config{}) },
		"switch":       func(sw *vswitch.Switch) *host { return vxlanSwitchHost(t, sw, 1, vport.Config{}) },
	} {
		sw := newSwitch(t)
		a := tapHost(t, sw, 0, 1, vport.Config{})
		b := far(sw)
		for _, pair := range [][2]*host{{a, b}, {b, a}} {
			tcp(t, pair[0], pair[1], 8<<20)
			udp(t, pair[0], pair[1], 1200)
			if describesUDP(t) {
				datagrams(t, pair[0], pair[1])
			}
			if err := tagged(pair[0], pair[1]); err != nil {
				t.Errorf("%s, tagged: %v", name, err)
			}
		}
		p := named(t, sw, "h1")
		if mean := receivedMean(p); mean < 6000 {
			t.Errorf("%s: no super-frames come out of the segment: mean length %d", name, mean)
		}
		for why, n := range p.Stats().Drops {
			t.Errorf("%s: dropped %d: %s", name, n, why)
		}
	}
}

// named returns a port of the switch.
func named(t testing.TB, sw *vswitch.Switch, name string) *vswitch.Port {
	t.Helper()
	ports := sw.Ports()
	i := slices.IndexFunc(ports, func(p *vswitch.Port) bool { return p.Name() == name })
	if i < 0 {
		t.Fatalf("no port %s", name)
	}
	return ports[i]
}

// tagged sends a frame with the tag of VLAN 5 from one host to another, and awaits it.
func tagged(from, to *host) error {
	const kind = 0x88b5
	open := func(h *host) (fd int, err error) {
		err = h.ns.Do(func() (err error) {
			fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
			return err
		})
		if err != nil {
			return fd, err
		}
		timeout := unix.NsecToTimeval(int64(20 * time.Second))
		all := uint16(unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8)
		return fd, errors.Join(
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: h.link(h.device).Attrs().Index}),
			unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout))
	}
	out, err := open(from)
	defer unix.Close(out)
	in, inErr := open(to)
	defer unix.Close(in)
	if err = errors.Join(err, inErr); err != nil {
		return err
	}
	f := slices.Concat(to.link(to.device).Attrs().HardwareAddr, from.link(from.device).Attrs().HardwareAddr,
		[]byte{0x81, 0, 0x60, 5, kind >> 8, kind & 0xff}, make([]byte, 60))
	if _, err := unix.Write(out, f); err != nil {
		return err
	}
	p := probe{}
	b, oob := make([]byte, 1<<17), make([]byte, 128)
	for {
		n, oobn, _, _, err := unix.Recvmsg(in, b, oob, 0)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case bytes.Equal(slices.Concat(b[:12], p.tag(oob[:oobn]), b[12:n]), f):
			return nil
		}
	}
}

// A site is a host of the underlay with a switch, whose port "up" is on VNI 77, and a guest.
type site struct {
	sw     *vswitch.Switch
	at     *host
	v4, v6 netip.Addr
	guest  *host
}

// sites makes that many, each of which knows all others.
func sites(t *testing.T, u *underlay, n int) []*site {
	t.Helper()
	var all []*site
	for i := range n {
		s := &site{sw: newSwitch(t), at: newHost(t, 100+i, "u0")}
		s.v4, s.v6 = u.join(s.at)
		s.guest = tapHost(t, s.sw, i, 1, vport.Config{})
		all = append(all, s)
	}
	for _, s := range all {
		cfg := vport.VXLAN{VNI: 77}
		for _, other := range all {
			if other != s {
				cfg.Remotes = append(cfg.Remotes, other.v4)
			}
		}
		addPort(t, s.sw, "up", openVXLAN(t, s.at, cfg), vport.Config{})
	}
	return all
}

// remoteOf returns the host behind which a guest is, as a site has learned it.
func (s *site) remoteOf(h *host) string {
	p := named(h.t, s.sw, "up")
	host, ok := p.RemoteHosts()(vswitch.KeyOf(h.link(h.device).Attrs().HardwareAddr, 1))
	if !ok {
		return ""
	}
	return host.String()
}

// TestLiveVXLANThree has three sites and a stranger. Frames go to the site of their destination,
// broadcasts to all, and none comes back. A guest moves from one to another.
func TestLiveVXLANThree(t *testing.T) {
	u := newUnderlay(t, 1600)
	all := sites(t, u, 3)
	a, b, c := all[0], all[1], all[2]
	tcp(t, a.guest, b.guest, 1<<20)
	tcp(t, c.guest, b.guest, 1<<20)
	tcp(t, a.guest, c.guest, 1<<20)
	if at := a.remoteOf(b.guest); at != b.v4.String() {
		t.Errorf("the guest of %s is behind %q", b.v4, at)
	}
	sent := func(s *site) uint64 { return named(t, s.sw, "up").Stats().Total().TxFrames }
	before := sent(b)
	if err := a.guest.ns.Do(func() error { return broadcast(100) }); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*site{b, c} {
		nstest.Eventually(t, 20*time.Second, "broadcasts arrive", func() bool {
			return named(t, s.sw, fmt.Sprintf("h%d", 1+bool2int(s == c))).Stats().Total().TxFrames >= 100
		})
	}
	if after := sent(b); after-before > 20 {
		t.Errorf("broadcasts went back into the segment: %d frames", after-before)
	}
	carried := sent(a)
	tcp(t, a.guest, b.guest, 4<<20)
	got := named(t, c.sw, "up").Stats().Total().RxBytes
	if got > 6<<20 {
		t.Errorf("%s gets the frames for %s: %d bytes; %d frames sent", c.v4, b.v4, got, sent(a)-carried)
	}

	// b's guest moves to c's switch with its address.
	mac := b.guest.link("eth0").Attrs().HardwareAddr
	b.guest.ip("link set eth0 down")
	c.guest.ip("link set eth0 down")
	c.guest.ip("link set eth0 address %s up", mac)
	c.guest.ip("addr replace %s/64 dev eth0 nodad", c.guest.v6)
	if err := c.guest.ns.Do(func() error { return broadcast(1) }); err != nil {
		t.Fatal(err)
	}
	nstest.Eventually(t, 20*time.Second, "the guest is behind the other host", func() bool {
		return a.remoteOf(b.guest) == c.v4.String()
	})
	a.guest.ip("neigh flush all")
	tcp(t, a.guest, c.guest, 1<<20)

	// A stranger has the VNI, and sends to a.
	d := newHost(t, 110, "vx")
	d.v4, d.v6 = "10.9.0.111", "fd09::111"
	local, _ := u.join(d)
	d.ip("link add vx type vxlan id 77 local %s remote %s dstport 4789", local, a.v4)
	d.up(1500)
	if err := ping(t, d, a.guest.v4, 56); err == nil {
		t.Error("a stranger is heard")
	}
	if n := named(t, a.sw, "up").Dropped(vswitch.Stranger); n == 0 {
		t.Error("frames of a stranger are not counted")
	}
	named(t, a.sw, "up").Flush()
	if at := a.remoteOf(c.guest); at != "" {
		t.Errorf("after a flush, it is behind %s", at)
	}
}

func bool2int(b bool) int {
	if b {
		return 1
	}
	return 0
}

// broadcast sends n broadcasts of UDP from the current network namespace.
func broadcast(n int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
	for i := 0; i < n && err == nil; i++ {
		err = unix.Sendto(fd, []byte{byte(i)}, 0, &unix.SockaddrInet4{Addr: [4]byte{10, 9, 255, 255}, Port: 9})
	}
	return err
}

// TestLiveVXLANMTU: the port follows the MTU of the network between the hosts. TCP passes between
// guests whose MTU is larger; their long datagrams pass in fragments if the port has that MTU.
func TestLiveVXLANMTU(t *testing.T) {
	u := newUnderlay(t, 1500)
	all := sites(t, u, 2)
	a, b := all[0], all[1]
	mtu := func(s *site) int { return named(t, s.sw, "up").Stats().MTU }
	if mtu(a) != 1450 {
		t.Errorf("MTU %d", mtu(a))
	}
	tcp(t, a.guest, b.guest, 1<<20)
	for _, h := range []*host{a.guest, b.guest} { // now segments come one by one
		h.ethtool(unix.ETHTOOL_STSO, 0)
		h.ethtool(unix.ETHTOOL_SGSO, 0)
	}
	tcp(t, b.guest, a.guest, 1<<20)
	if err := ping(t, a.guest, b.guest.v4, 1450-28); err != nil {
		t.Errorf("a ping that fits: %v", err)
	}
	if err := ping(t, a.guest, b.guest.v4, 1472); err == nil {
		t.Error("a ping that does not fit has passed")
	}
	if n := named(t, a.sw, "up").Dropped(vswitch.TooBig); n == 0 {
		t.Error("it is not counted")
	}
	for _, s := range all {
		if err := s.sw.SetPort("up", vport.Config{MTU: 1500}); err != nil {
			t.Fatal(err)
		}
	}
	if err := ping(t, a.guest, b.guest.v4, 1472); err != nil {
		t.Errorf("a ping in fragments: %v", err)
	}
	udp(t, a.guest, b.guest, 1400)
	for _, s := range all {
		if err := s.sw.SetPort("up", vport.Config{}); err != nil {
			t.Fatal(err)
		}
	}
	a.at.ip("link set u0 mtu 1400")
	nstest.Eventually(t, 20*time.Second, "the port has the new MTU", func() bool { return mtu(a) == 1350 })
	a.at.ip("link set u0 down")
	a.guest.ip("neigh flush all")
	_ = ping(t, a.guest, b.guest.v4, 56)
	if n := named(t, a.sw, "up").Dropped(vswitch.Unreachable); n == 0 {
		t.Error("frames without a way to the other host are not counted")
	}
	a.at.ip("link set u0 up")
	nstest.Eventually(t, 20*time.Second, "the guests reach each other once there is a way again", func() bool {
		return ping(t, a.guest, b.guest.v4, 56) == nil
	})
}
