package tapmgr_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"vmnet/internal/kernel/rtnl"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
)

// TestLivePreparedRouted: until its commit the host answers for none of a prepared NIC's addresses,
// which another machine has, whatever is done to its tap. A commit says that the other one still
// answers. Faults and kills at each step leave it prepared, or to be completed.
func TestLivePreparedRouted(t *testing.T) {
	h := newHost(t)
	h.liveLAN()
	h.farIP("addr", "add", routedAddr+"/24", "dev", "switch0")
	before := h.routing()
	var g *guest
	var spec nic.Spec
	fresh := func() (name string) {
		t.Helper()
		if g != nil { // it is deaf to device_del
			if err := g.Kill(); err != nil {
				t.Fatal(err)
			}
			h.gone(mustName(g))
			h.settled()
		}
		g = h.empty()
		spec = prepared(routedSpec(g.name, "net0", routedAddr, routedAddr6))
		return h.prepare(spec).Interface
	}
	silent := func(what string) {
		t.Helper()
		proxies, err := h.nl.Proxies()
		if got := h.states(g); got != nic.Prepared || h.link(mustName(g)).Up || err != nil || len(proxies) > 0 {
			t.Errorf("%s: state %s, it answers for %+v, %v", what, got, proxies, err)
		}
		if got := h.check(); len(got) > 0 {
			t.Errorf("%s: check finds %+v", what, got)
		}
	}
	name := fresh()
	silent("prepared")
	h.reconciled()
	for what, args := range map[string][]string{
		"raised":       {"link", "set", name, "up"},
		"answered for": {"neigh", "add", "proxy", routedAddr, "dev", "eth0", "protocol", "118"},
	} {
		h.ip(args...)
		if got := h.check(); len(got) != 1 || got[0].MendedBy != nic.MendReconcile {
			t.Errorf("%s: check finds %+v", what, got)
		}
		h.settled()
		silent(what)
	}
	commit := func() error { return h.commit(g) }
	names := h.stepNamesOf(commit)
	if got := strings.Join(names, " "); got != "record link routing announce verify answering" {
		t.Errorf("steps %q", got)
	}
	names = names[:len(names)-1] // which only tells
	h.faultAtEach(names, func() { h.Run = nil; silent("after a fault") }, commit)
	for i, name := range names {
		h.killed(order{Spec: spec, Commit: true, KillAt: name, After: true})
		if i%2 == 0 {
			h.settled()
		}
		res, err := h.Commit(h.context(20*time.Second), nic.Target{VM: g.name}, "", false)
		if err != nil || len(res) != 1 || res[0].NIC.State != nic.Up {
			t.Fatalf("killed after %s: %+v, %v", name, res, err)
		}
		if got := h.check(); len(got) > 0 {
			t.Errorf("killed after %s: check finds %+v", name, got)
		}
		fresh()
	}
	res, err := h.Commit(h.context(20*time.Second), nic.Target{VM: g.name}, "", false)
	if err != nil || len(res) != 1 || !strings.Contains(strings.Join(res[0].Notices, "\n"),
		farMAC+" still answers for "+routedAddr+" on eth0: end the QEMU") {
		t.Errorf("%+v, %v: want a notice about %s", res, err, farMAC)
	}
	name = fresh()
	if err := h.abort(g); err != nil {
		t.Fatal(err)
	}
	h.gone(name)
	if after := h.routing(); after != before {
		t.Errorf("left:\n%s\nbefore:\n%s", after, before)
	}
}

// TestLiveMigrateRouted migrates a routed guest to another host of the LAN, from where a machine
// pings it. It tells how long the guest did not answer.
func TestLiveMigrateRouted(t *testing.T) {
	t.Parallel()
	a, b := newHost(t), newHost(t)
	a.liveLAN()
	b.far = a.far
	b.ip("link", "add", "eth0", "type", "veth", "peer", "name", "far1", "netns", a.far.Path())
	b.ip("link", "set", "eth0", "up")
	b.farIP("link", "set", "far1", "master", "switch0", "up")
	b.ip("addr", "add", "192.0.2.3/24", "dev", "eth0")
	source := a.booted(testvm.Config{Name: "S", ExtraArgs: migratable})
	spec := prepared(routedSpec(source.name, "net0", routedAddr))
	spec.Prepared = false
	a.configures(source, a.attach(spec))
	g := b.target()
	spec.Prepared, spec.VM = true, g.name
	b.prepare(spec)
	p := b.migrated(a.far, routedAddr, source, g)
	t.Logf("the guest did not answer for %.0f ms", p.gap())
	if err := source.Kill(); err != nil {
		t.Fatal(err)
	}
	a.gone(mustName(source))
	a.settled()
	p.answered(p.sent.Load() + 20)
	for _, h := range []*host{a, b} {
		if got := h.check(); len(got) > 0 {
			t.Errorf("check finds %+v", got)
		}
	}
	if proxies, err := a.nl.Proxies(); err != nil || len(proxies) > 0 {
		t.Errorf("where it comes from: %+v, %v", proxies, err)
	}
	lan, err := rtnl.Open(a.far)
	if err != nil {
		t.Fatal(err)
	}
	defer lan.Close()
	card, err := lan.Link("switch0")
	if err != nil {
		t.Fatal(err)
	}
	n, err := lan.Neighbour(card.Index, netip.MustParseAddr(routedAddr))
	if uplink := b.link("eth0").MAC; err != nil || n.MAC.String() != uplink.String() {
		t.Errorf("the LAN has the guest at %s, want %s: %v", n.MAC, uplink, err)
	}
}
