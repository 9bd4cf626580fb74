package rtnl

import (
	"net/netip"
	"slices"
	"testing"

	"vmnet/internal/nstest"
)

// TestLiveVethAndRoutes: a veth device between two namespaces, and the routes behind it.
func TestLiveVethAndRoutes(t *testing.T) {
	near, far := nstest.New(t), nstest.New(t)
	c, peer := open(t, near), open(t, far)
	const alias = "vmnet test"
	if err := c.CreateWithAlias("veth", RandomIndex(), alias, Name("v0"), VethPeer("eth0", far)); err != nil {
		t.Fatal(err)
	}
	v, err := c.Link("v0")
	if err != nil || v.Kind != "veth" || v.Alias != alias || v.LowerNS < 0 {
		t.Fatalf("%+v, %v", v, err)
	}
	eth, err := peer.Link("eth0")
	if err != nil || eth.Index != v.Lower {
		t.Fatalf("%+v, %v", eth, err)
	}
	for _, err := range []error{
		c.Set(v.Index, Up(true)), peer.Set(eth.Index, Up(true)),
		peer.AddAddr(eth.Index, netip.MustParsePrefix("10.66.0.2/24")),
		peer.AddAddr(eth.Index, netip.MustParsePrefix("fd66::2/64")),
		peer.AddDefaultRoute(netip.MustParseAddr("10.66.0.1")), peer.AddDefaultRoute(netip.MustParseAddr("fd66::1")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	routes, err := peer.Routes()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"10.66.0.0/24", "0.0.0.0/0", "::/0", "fd66::/64"} {
		if !slices.Contains(routes, Route{Dst: netip.MustParsePrefix(want), Link: eth.Index}) {
			t.Errorf("no %s in %+v", want, routes)
		}
	}
}
