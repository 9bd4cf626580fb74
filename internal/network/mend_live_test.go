package network

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"vmnet/internal/kernel/forwarding"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/network/config"
	"vmnet/internal/nstest"
)

// watching is a Watch that runs until the end of a test.
type watching struct {
	*h
	mu   sync.Mutex
	told []Mended
}

func (x *h) watches() *watching {
	x.Helper()
	w := &watching{h: x}
	c, err := rtnl.OpenChanges(x.host)
	if err != nil {
		x.Fatal(err)
	}
	m := *x.m
	if err := m.Open(); err != nil {
		x.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		m.Watch(ctx, c.C, func(r Mended) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.told = append(w.told, r)
		})
	}()
	x.Cleanup(func() {
		cancel()
		<-ended
		m.Close()
		if err := c.Close(); err != nil {
			x.Error(err)
		}
	})
	return w
}

// next waits for what Watch reports next.
func (w *watching) next(what string) (r Mended) {
	w.Helper()
	nstest.Eventually(w, patience, "a report of "+what, func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.told) == 0 {
			return false
		}
		r, w.told = w.told[0], w.told[1:]
		return true
	})
	return r
}

// TestLiveWatch: what somebody changes of a network is mended, within about a second on an idle
// machine; what nobody has applied, or what is deleted, is not made.
func TestLiveWatch(t *testing.T) {
	x := newHost(t)
	x.create(labNetwork())
	absent := &config.Network{Name: "absent", Domain: "a", NAT: true, Subnet: netip.MustParsePrefix("10.77.0.0/24")}
	if err := x.m.Dir.Write(absent); err != nil {
		t.Fatal(err)
	}
	w := x.watches()
	for _, c := range []struct {
		what   string
		change func()
	}{
		{"rules", func() { x.nft("flush ruleset") }},
		{"rules", func() { x.nft("add rule inet vmnet-lab forward accept") }},
		{"address", func() { x.ip(x.host, "addr", "add", "10.99.0.1/24", "dev", "lab") }},
		{"bridge", func() { x.ip(x.host, "link", "set", "lab", "down") }},
		{"sysctl net.ipv4.ip_forward", func() { x.sysctl(x.host, forwarding.IP4, "0") }},
		{"server", func() { x.ip(x.host, "link", "set", "lab-srv", "nomaster") }},
		{"server", func() {
			x.ip(x.host, "link", "set", "lab-srv", "alias", config.ServerMark{Network: "lab", Settings: "0"}.String())
		}},
		{"bridge", func() { x.ip(x.host, "link", "del", "lab") }},
	} {
		start := time.Now()
		c.change()
		r := w.next(c.what)
		if r.Network != "lab" || r.Err != nil || !slices.Contains(r.What, c.what) {
			t.Errorf("%s: %+v", c.what, r)
		}
		t.Logf("%s: mended after %v", c.what, time.Since(start))
		x.consistent("lab")
	}
	if err := x.m.Delete(x.ctx(), "lab", true); err != nil {
		t.Fatal(err)
	}
	x.nft("add table inet other")
	x.nft("delete table inet other")
	x.create(&config.Network{Name: "next", NAT: true, Subnet: netip.MustParsePrefix("10.88.0.0/24")})
	x.nft("flush ruleset")
	if r := w.next("the other network"); r.Network != "next" || r.Err != nil {
		t.Errorf("%+v", r)
	}
	infos, err := x.m.List(x.ctx())
	if err != nil || len(infos) != 2 || infos[0].State != StateAbsent || infos[1].State != StateUp {
		t.Errorf("%+v, %v", infos, err)
	}
}

// TestLiveWatchFails: what cannot be mended is reported once, and mended when it can be.
func TestLiveWatchFails(t *testing.T) {
	x := newHost(t)
	n := labNetwork()
	n.DHCP = false
	x.create(n)
	w := x.watches()
	// The files cannot be locked.
	lock := string(x.m.Dir) + "/.lock"
	if err := errors.Join(os.Remove(lock), os.Mkdir(lock, 0o700)); err != nil {
		t.Fatal(err)
	}
	x.nft("flush ruleset")
	if r := w.next("a failure"); r.Err == nil || !strings.Contains(r.Err.Error(), "lock the networks") {
		t.Errorf("%+v", r)
	}
	if err := os.Remove(lock); err != nil {
		t.Fatal(err)
	}
	if r := w.next("success"); r.Err != nil || !slices.Equal(r.What, []string{"rules"}) {
		t.Errorf("%+v", r)
	}
	x.consistent()
}
