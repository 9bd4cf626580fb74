package network

import (
	"net/netip"
	"testing"

	"vmnet/internal/nsport"
	"vmnet/internal/nstest"
)

// TestLiveNamespaces: a container on a network asks its server for an address, or has one of its
// own and the network's router.
func TestLiveNamespaces(t *testing.T) {
	x := newHost(t)
	x.create(labNetwork())
	m, err := nsport.Open(x.host.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	m.Networks, m.LockDir = x.m.Dir, t.TempDir()
	attach := func(s nsport.Spec) nsport.Attached {
		t.Helper()
		s.Network = "lab"
		done, err := m.Attach(x.ctx(), s)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := m.Attach(x.ctx(), s); err != nil || again.Changed {
			t.Errorf("again: changed %v, %v", again.Changed, err)
		}
		return done
	}
	x.answers(x.wan, ":7")

	box := &guest{h: x, ns: nstest.New(t)}
	attach(nsport.Spec{Netns: box.ns.Path(), ID: "box"})
	box.lease("box")
	x.resolves(box.ns, "10.66.0.2", "box", box.ip)
	x.wants("the world, by DHCP", x.ask(box.ns, wanIP+":7"), hostIP)

	fixed := nstest.New(t)
	bare := func(text string) netip.Prefix {
		a := netip.MustParseAddr(text)
		return netip.PrefixFrom(a, a.BitLen())
	}
	done := attach(nsport.Spec{
		Netns: fixed.Path(), ID: "fixed", Addresses: []netip.Prefix{bare("10.66.0.30"), bare("fd66:1:2:3::30")},
	})
	if len(done.Gateways) != 2 || done.Addresses[0].Bits() != 24 || done.Source != "lab" || done.Network != "lab" {
		t.Errorf("%+v", done)
	}
	x.wants("the world", x.ask(fixed, wanIP+":7"), hostIP)
	x.wants("the world by IPv6", x.ask(fixed, "["+wanIP6+"]:7"), hostIP6)
	x.answers(fixed, ":80")
	x.wants("a container", x.ask(box.ns, "10.66.0.30:80"), box.ip)
	infos, err := x.m.List(x.ctx())
	if err != nil || len(infos[0].Ports) != 2 {
		t.Errorf("%+v, %v", infos, err)
	}
}
