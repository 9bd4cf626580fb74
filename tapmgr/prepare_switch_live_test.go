package tapmgr_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"vmnet/bridge/vswitch/control"
	ofguest "vmnet/internal/guest"
	"vmnet/internal/nstest"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
)

// onlyPort returns the only port of the switch.
func (s *userSwitch) onlyPort() control.Port {
	s.Helper()
	c, err := control.Dial(s.context(20*time.Second), s.path)
	if err != nil {
		s.Fatal(err)
	}
	defer c.Close()
	ports, err := c.Ports(s.context(20 * time.Second))
	if err != nil || len(ports) != 1 {
		s.Fatalf("ports %+v, %v: want one", ports, err)
	}
	return ports[0]
}

// isDown demands that the guest's NIC is prepared, on a port that passes nothing.
func (s *userSwitch) isDown(what string, g *guest) {
	s.Helper()
	if got := s.states(g); got != nic.Prepared || !s.onlyPort().Config.Down {
		s.Errorf("%s: state %s, port %+v", what, got, s.onlyPort().Config)
	}
	if got := s.check(); len(got) > 0 {
		s.Errorf("%s: check finds %+v", what, got)
	}
}

// TestLivePreparedOnASwitch prepares NICs that have no device, by shared memory and by a socket:
// their port is down until the commit, whatever ends meanwhile, and each step may fail or be
// killed.
func TestLivePreparedOnASwitch(t *testing.T) {
	nstest.RequireRoot(t)
	for _, by := range []nic.By{nic.ByVhostUser, nic.BySocket} {
		t.Run(string(by), func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			h.sharesRun()
			s := h.runSwitch()
			s.prepares(by)
			s.commits(by)
		})
	}
}

func (s *userSwitch) prepares(by nic.By) {
	s.Helper()
	h := s.host
	g := h.target(sharedMemory...)
	spec := prepared(s.on(g, "net0", by))
	prepare := func() error { _, err := h.Prepare(h.context(20*time.Second), spec); return err }
	abort := func() {
		h.Helper()
		if err := h.abort(g); err != nil {
			h.Fatal(err)
		}
		s.left(g)
		s.noSockets(g)
	}
	names := h.stepNamesOf(prepare)
	h.faultAtEach(names, func() { s.left(g); s.noSockets(g) }, prepare)
	for _, name := range names {
		h.killed(order{Spec: spec, KillAt: name, After: true, Switches: []string{s.path}})
		if err := prepare(); err != nil {
			h.Fatalf("killed after %s: the same again: %v", name, err)
		}
		s.isDown("killed after "+name, g)
		abort()
	}

	h.prepare(spec)
	if err := h.commit(g); !errors.Is(err, ofguest.ErrNotArrived) {
		h.Errorf("commit: %v", err)
	}
	if by == nic.ByVhostUser { // that of a socket stays without a port
		s.kill()
		s.start()
		s.asksAgain()
		h.settled()
		s.isDown("after a restart of the switch", g)
	}
	abort()
	if err := g.Kill(); err != nil {
		h.Fatal(err)
	}
}

// commits commits a NIC on a guest that is there.
func (s *userSwitch) commits(by nic.By) {
	s.Helper()
	h := s.host
	g := h.booted(testvm.Config{Name: "C", Paused: true, ExtraArgs: slices.Concat(migratable, sharedMemory)})
	spec := prepared(s.on(g, "net0", by))
	h.prepare(spec)
	commit := func() error { return h.commit(g) }
	names := h.stepNamesOf(commit)
	if got := strings.Join(names, " "); got != "record settings label announce verify" {
		h.Errorf("steps %q", got)
	}
	h.faultAtEach(names, func() {
		h.Run = nil
		s.isDown("after a fault", g)
	}, commit)
	for i, name := range names {
		h.killed(order{Spec: spec, Commit: true, KillAt: name, After: true, Switches: []string{s.path}})
		if i%2 == 0 {
			h.settled()
		}
		if err := commit(); err != nil {
			h.Fatalf("killed after %s: %v", name, err)
		}
		if got := h.states(g); got == nic.Prepared || s.onlyPort().Config.Down {
			h.Errorf("killed after %s: committed, and %s", name, got)
		}
		if got := h.check(); len(got) > 0 {
			h.Errorf("killed after %s: check finds %+v", name, got)
		}
		if _, err := h.tryDetach(g, 20*time.Second, true); err != nil { // a standing guest gives no device back
			h.Fatal(err)
		}
		if err := g.Kill(); err != nil {
			h.Fatal(err)
		}
		if i+1 == len(names) {
			return
		}
		g = h.booted(testvm.Config{Name: "C", Paused: true, ExtraArgs: slices.Concat(migratable, sharedMemory)})
		spec = prepared(s.on(g, "net0", by))
		h.prepare(spec)
	}
}
