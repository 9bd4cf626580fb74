package vswitch_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/vport"
)

// An underlay is a network between hosts, each on a port of a kernel bridge.
type underlay struct {
	t      testing.TB
	middle *host
	mtu    int
	n      int
}

func newUnderlay(t testing.TB, mtu int) *underlay {
	t.Helper()
	u := &underlay{t: t, middle: newHost(t, 2000, "br0"), mtu: mtu}
	u.middle.ip("link add br0 mtu %d type bridge", mtu)
	u.middle.ip("link set br0 up")
	return u
}

// join gives a host a device u0 on the underlay, and returns its addresses there.
func (u *underlay) join(h *host) (v4, v6 netip.Addr) {
	u.t.Helper()
	u.n++
	port := fmt.Sprintf("p%d", u.n)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = port, u.mtu
	err := u.middle.nl.LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: "u0", PeerNamespace: netlink.NsFd(int(h.ns.Handle())), PeerMTU: uint32(u.mtu),
	})
	if err != nil {
		u.t.Fatal(err)
	}
	u.middle.ip("link set %s master br0 up", port)
	v4, v6 = netip.AddrFrom4([4]byte{192, 0, 2, byte(u.n)}), netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", u.n))
	h.ip("addr add %s/24 dev u0", v4)
	h.ip("addr add %s/64 dev u0 nodad", v6)
	h.ip("link set u0 up")
	return v4, v6
}

// openVXLAN makes a wire in a host's network namespace.
func openVXLAN(t testing.TB, h *host, cfg vport.VXLAN) *vswitch.Wire {
	t.Helper()
	w, err := vswitch.OpenVXLAN(h.ns.Path(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// vxlanHost makes host n, whose eth0 is a VXLAN device of its kernel, behind a port of the switch.
func vxlanHost(t testing.TB, sw *vswitch.Switch, n int, v6 bool, cfg vport.Config) *host {
	t.Helper()
	near, far, ends := vxlanLine(t, n, v6, cfg)
	far.ip("link add eth0 type vxlan id 77 local %s remote %s dstport 4789", ends[1], ends[0])
	w := openVXLAN(t, near, vport.VXLAN{VNI: 77, Remotes: ends[1:], Local: ends[0]})
	addPort(t, sw, fmt.Sprintf("h%d", n), w, vport.Config{})
	far.up(max(cfg.MTU, 1500))
	return far
}

// vxlanSwitchHost makes host n with a tap on a switch of its own, which VXLAN joins to sw.
func vxlanSwitchHost(t testing.TB, sw *vswitch.Switch, n int, cfg vport.Config) *host {
	t.Helper()
	near, far, ends := vxlanLine(t, n, false, cfg)
	own := newSwitch(t)
	h := tapHost(t, own, n, 1, cfg)
	addPort(t, own, "up", openVXLAN(t, far, vport.VXLAN{VNI: 77, Remotes: ends[:1]}), vport.Config{})
	w := openVXLAN(t, near, vport.VXLAN{VNI: 77, Remotes: ends[1:]})
	addPort(t, sw, fmt.Sprintf("h%d", n), w, vport.Config{})
	return h
}

// vxlanLine makes a host near the switch and host n, and between them a network that carries VXLAN
// for an MTU of cfg.
func vxlanLine(t testing.TB, n int, v6 bool, cfg vport.Config) (near, far *host, ends []netip.Addr) {
	t.Helper()
	over, prefix := 50, "192.0.2.%d/24"
	if v6 {
		over, prefix = 70, "2001:db8::%d/64"
	}
	near, far = newHost(t, 1000+n, "u0"), newHost(t, n, "eth0")
	veth(t, far, near, "u0", max(cfg.MTU, 1500)+over)
	for i, h := range []*host{near, far} {
		p := netip.MustParsePrefix(fmt.Sprintf(prefix, i+1))
		ends = append(ends, p.Addr())
		if v6 {
			h.ip("addr add dev u0 %s nodad", p)
		} else {
			h.ip("addr add dev u0 %s", p)
		}
	}
	return near, far, ends
}
