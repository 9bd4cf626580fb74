package vswitch_test

import (
	"errors"
	"fmt"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/bridge/vswitch"
	"vmnet/internal/nstest"
	"vmnet/testvm/lab"
)

// TestLabTunnels sends the tunnels and tags of Debian's kernel through a bridge and a switch.
func TestLabTunnels(t *testing.T) {
	lab.Inside(t)
	// Modules that nothing loads on demand.
	for _, module := range []string{"fou", "fou6", "mpls_iptunnel"} {
		if out, err := exec.Command("modprobe", module).CombinedOutput(); err != nil {
			t.Fatalf("modprobe %s: %v: %s", module, err, out)
		}
	}
	for _, c := range []tunnel{
		{name: "Geneve, IPv6", v6: true, link: "type geneve id 42 remote REMOTE"},
		{name: "GRE, key, checksum", link: "type gre local LOCAL remote REMOTE key 7 csum"},
		{name: "GRE tap", link: "type gretap local LOCAL remote REMOTE"},
		{name: "GRE tap, IPv6", v6: true, link: "type ip6gretap local LOCAL remote REMOTE"},
		{name: "IPIP and SIT", link: "type sit local LOCAL remote REMOTE mode any"},
		{name: "IP6 tunnel", v6: true, link: "type ip6tnl local LOCAL remote REMOTE mode any"},
		{
			name: "FOU", before: []string{"fou add port 5555 ipproto 47"},
			link: "type gre local LOCAL remote REMOTE encap fou encap-sport auto encap-dport 5555",
		},
		{
			name: "GUE, checksum", before: []string{"fou add port 5556 gue"},
			link: "type gre local LOCAL remote REMOTE encap gue encap-sport auto encap-dport 5556 encap-csum",
		},
		{
			name: "VLAN in VXLAN over a VLAN in one of a provider", before: []string{
				"link add link lan0 name outer type vlan protocol 802.1ad id 7", "link set outer up",
				"link add link outer name inner type vlan id 5", "link set inner up",
				"addr flush dev lan0", "addr add LOCAL/24 dev inner",
				"link add under type vxlan id 42 local LOCAL remote REMOTE dstport 4789 dev inner", "link set under up",
			},
			link: "link under type vlan id 5",
		},
		{
			name: "MPLS", sysctls: map[string]string{"mpls/platform_labels": "1000", "mpls/conf/lan0/input": "1"},
			link: "type dummy", after: []string{
				"-f mpls route add 100 dev lo", "-f mpls route add 101 dev lo",
				"route add FAR4/32 encap mpls 100 via REMOTE4 dev lan0",
				"-6 route add FAR6/128 encap mpls 101 via REMOTE6 dev lan0",
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) { testTunnel(t, c, 256<<10) })
	}
}

// TestLabVLANStack pings with full frames through stacks of tags.
func TestLabVLANStack(t *testing.T) {
	lab.Inside(t)
	l, _ := switchLine(t, mtus{1500, 1500})
	ends := [2]*host{l.outside, l.inside}
	for i, h := range ends {
		h.ip("link set lan0 mtu 1500")
		h.ip("link add link lan0 name outer type vlan protocol 802.1ad id 7")
		h.ip("link set outer up")
		h.ip("link add link outer name inner type vlan id 5")
		h.ip("link set inner up")
		h.v4, h.v6 = fmt.Sprintf("10.9.0.%d", i+1), fmt.Sprintf("fd09::%d", i+1)
		h.ip("addr add %s/24 dev inner", h.v4)
		h.ip("addr add %s/64 dev inner nodad", h.v6)
	}
	for i, h := range ends {
		if err := ping(t, h, ends[1-i].v4, 1472); err != nil {
			t.Errorf("a full frame with two tags from %s: %v", h.v4, err)
		}
		tcp(t, h, ends[1-i], 256<<10)
	}
}

// TestLabSuperFramesWithoutAType sends super-frames for which this kernel's packet sockets have no
// type: of UDP, also in a tunnel, and of SCTP. All must arrive.
func TestLabSuperFramesWithoutAType(t *testing.T) {
	lab.Inside(t)
	l, sw := switchLine(t, mtus{1500, 1500})
	l.outside.ip("link set lan0 mtu 1500")
	l.ends(nil)
	if describesUDP(t) {
		t.Fatal("this kernel's vnet headers describe UDP: the test needs Linux before 6.2")
	}
	datagrams(t, l.outside, l.inside)
	datagrams(t, l.inside, l.outside)
	sctp(t, l.outside, l.inside)
	sctp(t, l.inside, l.outside)
	outside, inside := l.through(tunnel{link: "type ipip local LOCAL remote REMOTE"})
	datagramsTo(t, outside, inside, sockaddr4(inside.v4))
	for _, p := range sw.Ports() {
		if n := p.Dropped(vswitch.Indescribable) + p.Dropped(vswitch.Unreadable); n > 0 {
			t.Errorf("%s: %d did not arrive", p.Name(), n)
		}
	}
}

// sctp sends 256 KiB from one host to another.
func sctp(t *testing.T, from, to *host) {
	t.Helper()
	open := func(h *host) (fd int) {
		err := h.ns.Do(func() (err error) {
			fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		timeout := unix.NsecToTimeval(int64(30 * time.Second))
		for _, opt := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
			if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, opt, &timeout); err != nil {
				t.Fatal(err)
			}
		}
		return fd
	}
	l, out := open(to), open(from)
	err := unix.Bind(l, sockaddr4(to.v4))
	if err == nil {
		err = unix.Listen(l, 1)
	}
	var at unix.Sockaddr
	if err == nil {
		at, err = unix.Getsockname(l)
	}
	if err == nil {
		err = unix.Connect(out, at)
	}
	in := -1
	if err == nil {
		in, err = uninterrupted(func() (int, error) {
			fd, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
			return fd, err
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(in)
	const message, messages = 16 << 10, 16
	go func() {
		b := make([]byte, message)
		for i := range messages {
			b[0] = byte(i)
			if _, err := uninterrupted(func() (int, error) { return unix.Write(out, b) }); err != nil {
				return // the data does not arrive then
			}
		}
	}()
	b := make([]byte, message)
	for got := 0; got < message*messages; {
		n, err := readAll(in, b)
		if err != nil || n == 0 {
			t.Fatalf("SCTP from %s: %d of %d bytes arrived: %v", from.v4, got, message*messages, err)
		}
		got += n
	}
}

// TestLabIndescribable runs on a kernel without what a lane needs. Frames that the packet socket
// cannot deliver must be counted under their own reason, and what the man page advises must help.
func TestLabIndescribable(t *testing.T) {
	lab.Inside(t)
	lab.WithoutModule(t, "nft_fwd_netdev")
	l, sw := switchLine(t, mtus{1500, 1500})
	l.ends(nil)
	in, at := udpSocket(t, l.inside, sockaddr4(l.inside.v4))
	out, _ := udpSocket(t, l.outside, nil, at)
	if err := unix.SetsockoptInt(out, unix.SOL_UDP, unix.UDP_SEGMENT, 1200); err != nil {
		t.Fatal(err)
	}
	if err := ping(t, l.outside, l.inside.v4, 0); err != nil {
		t.Fatal(err)
	}
	const calls = 10
	for range calls {
		if err := unix.Sendto(out, make([]byte, 24000), 0, at); err != nil {
			t.Fatal(err)
		}
	}
	p1 := sw.Ports()[1]
	nstest.Eventually(t, 20*time.Second, "they are counted under their own reason", func() bool {
		return p1.Stats().Drops[vswitch.Indescribable.String()] == calls // asks the kernel
	})
	if n := p1.Dropped(vswitch.Unreadable); n != 0 {
		t.Errorf("%d are counted as receive errors", n)
	}
	if _, _, err := unix.Recvfrom(in, make([]byte, 2000), unix.MSG_DONTWAIT); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("a frame has arrived, or %v: the test is wrong", err)
	}
	setFeatures(t, l.outside, "lan0", map[string]bool{"tx-udp-segmentation": false})
	datagrams(t, l.outside, l.inside)
}
