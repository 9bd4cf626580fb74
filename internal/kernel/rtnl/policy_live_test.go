package rtnl

import (
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"vmnet/internal/nstest"
)

// TestLivePacketRoutes: packets of one protocol are not cut to the MTU of a table's routes, and
// others are.
func TestLivePacketRoutes(t *testing.T) {
	const table = 100
	near, far := nstest.New(t), nstest.New(t)
	c := open(t, near)
	if err := c.CreateWithAlias("veth", RandomIndex(), "test", Name("v0"), VethPeer("eth0", far)); err != nil {
		t.Fatal(err)
	}
	v, err := c.Link("v0")
	if err == nil {
		err = c.Set(v.Index, Up(true), MTU(9000))
	}
	if err != nil {
		t.Fatal(err)
	}
	prefixes := []netip.Prefix{netip.MustParsePrefix("10.66.0.1/24"), netip.MustParsePrefix("fd66::1/64")}
	for i, family := range []uint8{syscall.AF_INET, syscall.AF_INET6} {
		if err := c.AddAddr(v.Index, prefixes[i]); err != nil {
			t.Fatal(err)
		}
		for range 2 { // the same again
			if err := c.AddRuleExcept(family, syscall.IPPROTO_TCP, table); err != nil {
				t.Fatal(err)
			}
		}
	}
	get := func(p netip.Prefix, proto string) string {
		out, err := exec.Command("nsenter", "--net="+near.Path(), "ip", "route", "get",
			p.Addr().Next().String(), "ipproto", proto).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	for _, p := range prefixes {
		for _, mtu := range []string{"1500", "1400"} { // the second replaces the first
			n := map[string]int{"1500": 1500, "1400": 1400}[mtu]
			if err := c.SetLinkRoute(table, p, v.Index, n); err != nil {
				t.Fatal(err)
			}
			if out := get(p, "udp"); !strings.Contains(out, " mtu "+mtu) || !strings.Contains(out, "dev v0") {
				t.Errorf("UDP: %s", out)
			}
			if out := get(p, "tcp"); strings.Contains(out, " mtu ") || !strings.Contains(out, "dev v0") {
				t.Errorf("TCP: %s", out)
			}
		}
		for range 2 {
			if err := c.DeleteLinkRoute(table, p, v.Index); err != nil {
				t.Error(err)
			}
		}
		if out := get(p, "udp"); strings.Contains(out, " mtu ") {
			t.Errorf("without the route: %s", out)
		}
	}
}
