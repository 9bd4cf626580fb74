package rtnl

import (
	"errors"
	"io/fs"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

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
		peer.AddDefaultRoute(netip.MustParseAddr("10.66.0.1"), 0),
		peer.AddDefaultRoute(netip.MustParseAddr("fd66::1"), 0),
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
		if !slices.ContainsFunc(routes, func(r Route) bool {
			return r.Dst == netip.MustParsePrefix(want) && r.Link == eth.Index && !r.RA
		}) {
			t.Errorf("no %s in %+v", want, routes)
		}
	}
}

// TestLiveHostRoutes: routes to one address, proxy entries, and neighbours that are asked for.
func TestLiveHostRoutes(t *testing.T) {
	near, far := nstest.New(t), nstest.New(t)
	c, peer := open(t, near), open(t, far)
	if err := c.CreateWithAlias("veth", RandomIndex(), "test", Name("v0"), VethPeer("eth0", far)); err != nil {
		t.Fatal(err)
	}
	v, err := c.Link("v0")
	if err != nil {
		t.Fatal(err)
	}
	eth, err := peer.Link("eth0")
	if err != nil {
		t.Fatal(err)
	}
	const protocol = 118
	four, six := netip.MustParseAddr("10.66.0.9"), netip.MustParseAddr("fd66::9")
	taken4, taken6 := netip.MustParseAddr("10.66.0.2"), netip.MustParseAddr("fd66::2")
	for _, err := range []error{
		c.Set(v.Index, Up(true)), peer.Set(eth.Index, Up(true)),
		c.AddAddr(v.Index, netip.MustParsePrefix("10.66.0.1/24")),
		c.AddAddr(v.Index, netip.MustParsePrefix("fe80::1/64")), // without duplicate address detection
		peer.AddAddr(eth.Index, netip.PrefixFrom(taken4, 24)), peer.AddAddr(eth.Index, netip.PrefixFrom(taken6, 64)),
		c.AddHostRoute(four, v.Index, protocol), c.AddHostRoute(six, v.Index, protocol),
		c.AddProxy(Proxy{v.Index, four, protocol}), c.AddProxy(Proxy{v.Index, six, protocol}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, a := range []netip.Addr{four, six} {
		if err := c.AddHostRoute(a, v.Index, protocol); !errors.Is(err, fs.ErrExist) {
			t.Errorf("a second route to %s: %v", a, err)
		}
	}
	ours := func() (n int) {
		routes, err := c.Routes()
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range routes {
			if r.Protocol == protocol && r.Link == v.Index && (r.Dst.Addr() == four || r.Dst.Addr() == six) {
				n++
			}
		}
		return n
	}
	proxies, err := c.Proxies()
	if want := []Proxy{{v.Index, four, protocol}, {v.Index, six, protocol}}; ours() != 2 || err != nil ||
		!slices.Equal(proxies, want) {
		t.Errorf("%d routes, entries %+v, %v", ours(), proxies, err)
	}
	for range 2 { // the second time there is nothing to remove
		for _, a := range []netip.Addr{four, six} {
			err := errors.Join(
				c.DeleteHostRoute(a, v.Index, protocol),
				c.DeleteProxy(Proxy{v.Index, a, protocol}),
			)
			if err != nil {
				t.Error(err)
			}
		}
	}
	if proxies, err = c.Proxies(); ours() != 0 || len(proxies) > 0 || err != nil {
		t.Errorf("%d routes, entries %+v, %v are left", ours(), proxies, err)
	}
	for _, a := range []netip.Addr{taken4, taken6} {
		nstest.Eventually(t, 10*time.Second, a.String()+" answers", func() bool {
			n, err := c.Neighbour(v.Index, a)
			if err == nil && !n.Answers() {
				err = c.Solicit(v.Index, a)
			}
			if err != nil && !errors.Is(err, syscall.ENOBUFS) { // other tests fill the kernel's one table
				t.Fatal(err)
			}
			return n.Answers() && n.MAC.String() == eth.MAC.String()
		})
		if err := errors.Join(c.Forget(v.Index, a), c.Forget(v.Index, a)); err != nil {
			t.Error(err)
		}
	}
	if err := c.Solicit(v.Index, four); err != nil && !errors.Is(err, syscall.ENOBUFS) {
		t.Fatal(err)
	}
	if n, err := c.Neighbour(v.Index, four); err != nil || n.Answers() {
		t.Errorf("nobody has %s: %+v, %v", four, n, err)
	}
}
