package server

import (
	"errors"
	"strings"
	"testing"

	"vmnet/bridge/vswitch"
	"vmnet/bridge/vswitch/control"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
)

// TestLiveFlapping has a tap whose MTU changes all the time. Its state is stored once a second, and
// its last state is.
func TestLiveFlapping(t *testing.T) {
	nstest.RequireRoot(t)
	ns := nstest.New(t)
	c, s, m, _ := moodily(t, 0)
	tap, err := tun.Create(ns, "tap0", false)
	if err != nil {
		t.Fatal(err)
	}
	link, err := vswitch.LinkFile(ns.Path())
	if err == nil {
		p := control.Port{Name: "a", Kind: control.Tap, Device: "tap0", Link: true}
		err = errors.Join(c.AddPort(soon(t), p, tap.Queues()[0], link), link.Close())
	}
	if err = errors.Join(err, tap.Close()); err != nil {
		t.Fatal(err)
	}
	nl := nstest.Handle(t, ns)
	dev, err := nl.LinkByName("tap0")
	if err != nil {
		t.Fatal(err)
	}
	s.ports.mu.Lock()
	in := s.ports.byName["a"].in
	s.ports.mu.Unlock()
	const changes = 200
	for n := range changes {
		if err := nl.LinkSetMTU(dev, 1000+n); err != nil {
			t.Fatal(err)
		}
		nstest.Eventually(t, patience, "the switch has noticed it", func() bool {
			at, ok := in.Link()
			return ok && at.MTU == 1000+n
		})
	}
	nstest.Eventually(t, patience, "the last state is stored", func() bool {
		m.memory.mu.Lock()
		defer m.memory.mu.Unlock()
		for name, f := range m.files {
			if _, version, _ := parseName(name); version > 0 {
				text, err := readAll(f, maxKept)
				if err != nil {
					t.Fatal(err)
				}
				return strings.Contains(string(text), `"MTU":1199`)
			}
		}
		return false
	})
	all := m.names()
	if _, version, _ := parseName(all[0]); version > changes/4 {
		t.Errorf("%d changes: %q", changes, all)
	}
}
