package network

import (
	"context"
	"net/netip"
	"sync"
	"testing"

	"vmnet/internal/network/config"
)

// TestLiveTwoNetworks: each has its own server, and neither is reached from the other.
func TestLiveTwoNetworks(t *testing.T) {
	x := newHost(t)
	x.create(labNetwork())
	other := x.create(&config.Network{
		Name: "other", NAT: true, DHCP: true, Subnet: netip.MustParsePrefix("10.67.0.0/24"),
		IPv6: netip.MustParsePrefix("fd67:1:2:3::/64"),
	})
	x.consistent()
	a, b := x.guest("lab", webMAC).lease(""), x.guest("other", dbMAC).lease("b")
	a.globalIPv6(labNetwork().IPv6)
	b6 := b.globalIPv6(other.IPv6)
	x.answers(x.wan, ":7")
	x.wants("out of one", x.ask(a.ns, wanIP+":7"), hostIP)
	x.wants("out of the other", x.ask(b.ns, wanIP+":7"), hostIP)
	x.answers(b.ns, ":80")
	x.drops("from one to the other", a.ns, b.ip+":80")
	x.drops("by IPv6", a.ns, "["+b6+"]:80")
	x.resolves(b.ns, "10.67.0.2", "b.other.internal", b.ip)
}

// TestLiveCreatedAtOnce: networks that are created at the same time do not choose the same subnet.
func TestLiveCreatedAtOnce(t *testing.T) {
	x := newHost(t)
	var all sync.WaitGroup
	errs := make([]error, 4)
	for i := range errs {
		all.Go(func() {
			m := &Manager{NS: x.m.NS, Dir: x.m.Dir, State: x.m.State}
			if errs[i] = m.Open(); errs[i] == nil {
				defer m.Close()
				n := &config.Network{Name: string(rune('a' + i)), NAT: true, Domain: "x"}
				errs[i] = m.Create(context.Background(), Wanted{n, true})
			}
		})
	}
	all.Wait()
	networks, broken, err := x.m.Dir.All()
	if err != nil || len(broken) > 0 || len(networks) != len(errs) {
		t.Fatalf("%d networks, %v, %v, %v", len(networks), errs, broken, err)
	}
	seen := map[netip.Prefix]string{}
	for _, n := range networks {
		for _, p := range n.Prefixes() {
			if seen[p] != "" {
				t.Errorf("%s and %s have %s", n.Name, seen[p], p)
			}
			seen[p] = n.Name
		}
	}
	x.consistent()
}
