package tapmgr_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"vmnet/internal/kernel/rtnl"
	"vmnet/macvtap/vtap"
	"vmnet/qmp"
	"vmnet/tapmgr/nic"
	"vmnet/testvm/lab"
)

// preparedIPVtap is an ipvtap for a guest that comes with the parent device's address.
func (h *host) preparedIPVtap(g *guest) nic.Spec {
	h.Helper()
	s := g.lowerSpec("net0", nic.Lower{Addrs: []netip.Prefix{netip.MustParsePrefix(standInA + "/24")}})
	s.Lower.Kind, s.MAC, s.Prepared = vtap.IPVtap, h.lower().MAC, true
	return s
}

// hasIPVtap demands that a guest's ipvtap has that state, is up or not, and that check finds
// nothing.
func (h *host) hasIPVtap(what string, g *guest, state nic.State, up bool) {
	h.Helper()
	n := h.listedOne(g)
	ns := h.netnsOf(g.name, "net0")
	if ns == h.ns {
		h.Fatalf("%s: it has no netns of its own: %+v", what, n)
	}
	defer ns.Close() // which would keep the device
	nl, err := rtnl.Open(ns)
	if err != nil {
		h.Fatal(err)
	}
	defer nl.Close()
	l, err := nl.Link(n.Interface)
	if err != nil || l.Kind != string(vtap.IPVtap) || l.Up != up || n.State != state {
		h.Errorf("%s: state %s, %+v, %v; want %s, up %v", what, n.State, l, err, state, up)
	}
	if got := h.check(); len(got) > 0 {
		h.Errorf("%s: check finds %+v", what, got)
	}
}

// noIPVtap demands that nothing of a guest's ipvtap is left.
func (h *host) noIPVtap(g *guest) {
	h.Helper()
	h.nothingLeft(g, "net0")
	h.free()
	if all, err := h.List(g.name); err != nil || len(all) > 0 {
		h.Errorf("list: %+v, %v", all, err)
	}
}

// TestLabPreparedIPVtap fails and kills the prepare and the abort of an ipvtap at each step: then
// nothing is left, or a reconcile or the same again completes it, and it is never up. A parent
// device with another address than the guest's is refused.
func TestLabPreparedIPVtap(t *testing.T) {
	lab.Inside(t)
	h := newHost(t)
	h.wire()
	g := h.target()
	spec := h.preparedIPVtap(g)
	other := spec
	other.MAC = nic.DefaultMAC(g.name, "net0")
	_, err := h.Prepare(h.context(20*time.Second), other)
	if !errors.Is(err, nic.ErrLink) || !strings.Contains(err.Error(), "has its parent device's address") {
		t.Errorf("with another address: %v", err)
	}
	h.noIPVtap(g)
	prepare := func() error { _, err := h.Prepare(h.context(20*time.Second), spec); return err }
	names := h.stepNamesOf(prepare)
	h.faultAtEach(names, func() { h.Run = nil; h.noIPVtap(g) }, prepare)
	for i, name := range names {
		h.killed(order{Spec: spec, KillAt: name, After: true})
		h.neverUpIPVtap("killed after "+name, g)
		if i%2 == 0 {
			h.settled()
		}
		if err := prepare(); err != nil {
			t.Errorf("killed after %s: the same again: %v", name, err)
		}
		h.hasIPVtap("killed after "+name, g, nic.Prepared, false)
		if err := h.abort(g); err != nil {
			t.Fatalf("killed after %s: abort: %v", name, err)
		}
		h.noIPVtap(g)
	}
	h.prepare(spec)
	for _, name := range h.stepNamesOf(func() error { return h.abort(g) }) {
		h.killed(order{Spec: spec, Abort: true, KillAt: name, After: true})
		h.neverUpIPVtap("abort killed after "+name, g)
		if err := h.abort(g); err != nil {
			t.Errorf("abort killed after %s: again: %v", name, err)
		}
		h.noIPVtap(g)
		if state := runState(h, g); state != qmp.StateIncoming {
			t.Fatalf("abort killed after %s: QEMU is %s", name, state)
		}
		h.prepare(spec)
	}
}

// neverUpIPVtap demands that an ipvtap, if there is one, is down.
func (h *host) neverUpIPVtap(what string, g *guest) {
	h.Helper()
	all, err := h.List(g.name)
	if err != nil {
		h.Fatal(err)
	}
	for _, n := range all {
		if n.State == nic.Up {
			h.Errorf("%s: %+v", what, n)
		}
	}
}

// TestLabCommitIPVtap fails and kills the commit of an ipvtap at each step. After a fault it is
// prepared as before, and gets no frames; after a kill, check says so, and the same commit or
// reconcile completes it.
func TestLabCommitIPVtap(t *testing.T) {
	lab.Inside(t)
	h := newHost(t)
	h.wire()
	h.knowWithoutARP(standInA)
	var g *guest
	fresh := func() {
		t.Helper()
		if g != nil { // it is deaf to device_del
			if err := g.Kill(); err != nil {
				t.Fatal(err)
			}
			h.free()
		}
		g = h.empty()
		h.prepare(h.preparedIPVtap(g))
		h.hasIPVtap("prepared", g, nic.Prepared, false)
		h.reconciled()
	}
	fresh()
	commit := func() error { return h.commit(g) }
	names := h.stepNamesOf(commit)
	if got := strings.Join(names, " "); got != "record link announce verify" {
		t.Errorf("steps %q", got)
	}
	h.faultAtEach(names, func() {
		h.Run = nil
		h.hasIPVtap("after a fault", g, nic.Prepared, false)
	}, commit)
	for i, name := range names {
		h.killed(order{Spec: h.preparedIPVtap(g), Commit: true, KillAt: name, After: true})
		if got := h.check(); name != "verify" && (len(got) == 0 || h.states(g) != nic.Changing) {
			t.Errorf("killed after %s: state %s, check finds %+v", name, h.states(g), got)
		}
		if i%2 == 0 {
			h.settled()
		}
		for range 2 { // a commit of what is committed changes nothing
			if err := commit(); err != nil {
				t.Errorf("killed after %s: %v", name, err)
			}
		}
		h.hasIPVtap("killed after "+name, g, nic.Up, true)
		_, _, err := h.Abort(h.context(20*time.Second), nic.Target{VM: g.name}, "net0")
		if !errors.Is(err, nic.ErrInUse) || !strings.Contains(err.Error(), "vmnet detach") {
			t.Errorf("abort of a committed one: %v", err)
		}
		fresh()
	}
}
