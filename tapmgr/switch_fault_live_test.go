package tapmgr_test

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/bridge/vswitch/control"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
)

// left demands that neither guest nor switch has anything of net0.
func (s *userSwitch) left(g *guest) {
	s.Helper()
	s.noPort()
	s.nothingLeft(g, "net0")
	if nics, err := s.List(g.name); err != nil || len(nics) != 0 {
		s.Errorf("list %+v, %v: want nothing", nics, err)
	}
}

func TestLiveSwitchFaultAtEveryStep(t *testing.T) {
	eachBy(t, func(t *testing.T, s *userSwitch, by nic.By) {
		h := s.host
		g := h.booted(testvm.Config{})
		spec := s.on(g, "net0", by)
		before := monitorState(h, g)
		h.faultAtEveryStep(spec, func() { s.left(g) })
		if after := monitorState(h, g); after != before {
			t.Errorf("QEMU changed from\n%s to\n%s", before, after)
		}
		h.attach(spec)
		h.detach(g, "net0")
		s.left(g)
	})
}

// TestLiveSwitchKilledAtEveryStep kills the attaching process at each step. Then reconcile alone
// must make all well, and so must the next attach.
func TestLiveSwitchKilledAtEveryStep(t *testing.T) {
	eachBy(t, func(t *testing.T, s *userSwitch, by nic.By) {
		h := s.host
		g := h.empty()
		plugged, again := 0, false
		for _, name := range h.stepNames(s.on(g, "net0", by)) {
			for _, after := range []bool{false, true} {
				spec := s.on(g, "net0", by)
				out, err := h.command(order{
					Spec: spec, KillAt: name, After: after,
					Switches: []string{s.path},
				}).CombinedOutput()
				if !strings.Contains(err.Error(), "killed") {
					t.Fatalf("%s: %v: %s", name, err, out)
				}
				if again = !again; again {
					h.attach(spec)
				} else {
					h.settled()
				}
				if diff := h.check(); len(diff) > 0 {
					t.Errorf("killed at %s, done %v: what is left: %+v", name, after, diff)
				}
				nics, err := h.List(g.name)
				if err != nil {
					t.Fatal(err)
				}
				if len(nics) == 0 {
					s.left(g)
					continue
				}
				plugged++
				if nics[0].State != "forwarding" {
					t.Errorf("killed at %s, done %v: %+v does not forward", name, after, nics[0])
				}
				if err := g.Kill(); err != nil { // a standing guest gives no device back
					t.Fatal(err)
				}
				s.noPort()
				g = h.empty()
			}
		}
		if plugged < 5 { // from device_add done to verify done
			t.Errorf("%d kills left a plugged NIC, want at least 5", plugged)
		}
	})
}

// TestLiveSwitchQEMUKilled: the port goes with QEMU, and what was learned behind it.
func TestLiveSwitchQEMUKilled(t *testing.T) {
	eachBy(t, func(t *testing.T, s *userSwitch, by nic.By) {
		h := s.host
		g := h.empty()
		h.attach(s.on(g, "net0", by))
		if ports := s.ports(); len(ports) != 1 || ports[0].Holder != g.Pid() ||
			ports[0].Config.Storm.Broadcast != nic.DefaultStorm {
			t.Errorf("ports %+v", ports)
		}
		if err := g.Kill(); err != nil {
			t.Fatal(err)
		}
		s.noPort()
		if nics, err := h.List(g.name); err != nil || len(nics) != 0 {
			t.Errorf("list %+v, %v", nics, err)
		}
		h.reconciled()
	})
}

// TestLiveSwitchKilled: a tap joins the next switch of that name, and the same attach replaces a
// NIC by a socket.
func TestLiveSwitchKilled(t *testing.T) {
	h := newHost(t)
	s := h.runSwitch()
	g := h.booted(testvm.Config{Machine: "q35", SparePorts: 2})
	socket, tap := s.on(g, "net0", nic.BySocket), s.on(g, "net1", nic.ByTap)
	h.attach(socket)
	h.attach(tap)
	s.kill()

	nics, err := h.List(g.name)
	if err != nil || len(nics) != 2 || nics[0].State != nic.NoSwitch || nics[1].State != nic.NoSwitch {
		t.Errorf("list %+v, %v", nics, err)
	}
	diff := h.check()
	if len(diff) != 2 || !strings.Contains(diff[0].Mend, "attach again replaces it") ||
		!strings.Contains(diff[1].Mend, "reconcile") {
		t.Errorf("check %+v", diff)
	}
	ctx := h.context(60 * time.Second)
	if _, err := h.Attach(ctx, socket); !errors.Is(err, control.ErrNotRunning) ||
		!strings.Contains(err.Error(), "vmnet switch run") {
		t.Errorf("attach without a switch: %v", err)
	}

	s.start()
	h.settled()
	if diff := h.check(); len(diff) != 1 || diff[0].NIC != "net0" {
		t.Errorf("check after reconcile: %+v", diff)
	}
	if res, err := h.Attach(ctx, socket); err != nil || !res.Changed || res.NIC.State != "forwarding" {
		t.Errorf("attach again: %+v, %v", res, err)
	}
	if diff := h.check(); len(diff) != 0 {
		t.Errorf("check at last: %+v", diff)
	}

	s.kill() // and a NIC without a switch can be detached
	h.detach(g, "net0")
	h.detach(g, "net1")
	s.start()
	s.left(g)
}

// TestLiveSwitchStandsStill: no verb waits for it for long, or fails for that where it is not
// meant.
func TestLiveSwitchStandsStill(t *testing.T) {
	t.Parallel() // it waits most of the time
	h := newHost(t)
	s := h.runSwitch()
	g := h.empty()
	h.attach(s.on(g, "net0", nic.BySocket))
	h.attach(s.on(g, "net1", nic.ByTap))
	s.signal(syscall.SIGSTOP)
	notices := 0
	h.onUnseen(func(string) { notices++ })
	quick := func(what string, f func() error) error {
		start := time.Now()
		err := f()
		if d := time.Since(start); d > 20*time.Second {
			t.Errorf("%s took %v", what, d)
		}
		return err
	}
	err := quick("list", func() error {
		nics, err := h.List(g.name)
		if len(nics) != 2 || nics[0].State != nic.Unknown || nics[1].State != nic.Unknown || notices != 1 {
			t.Errorf("list %+v, %d notices: want both unknown, and one notice", nics, notices)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	ctx := h.context(60 * time.Second)
	if err := quick("check", func() error {
		c, err := h.Check(ctx)
		if len(c.Notices) != 2 || len(c.Differences) != 0 {
			t.Errorf("check %+v", c)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	if err := quick("show", func() error { _, err := h.Show(ctx, g.name); return err }); err != nil {
		t.Error(err)
	}
	if err := quick("attach", func() error {
		_, err := h.Attach(ctx, s.on(g, "net2", nic.ByAuto))
		return err
	}); err == nil || !strings.Contains(err.Error(), "stopped or hung") {
		t.Errorf("attach: %v", err)
	}
	if err := quick("detach", func() error {
		_, err := h.Detach(ctx, tapmgr.DetachSpec{Target: nic.Target{VM: g.name}, NIC: "net0"})
		return err
	}); err == nil || !strings.Contains(err.Error(), "stopped or hung") {
		t.Errorf("detach: %v", err)
	}
	if err := quick("forced detach", func() error {
		res, err := h.Detach(ctx, tapmgr.DetachSpec{Target: nic.Target{VM: g.name}, NIC: "net0", Force: true})
		if !strings.Contains(strings.Join(res.Notices, "; "), "its port stays in switch") {
			t.Errorf("forced detach: notices %q", res.Notices)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	other := g.spec("net3") // on the kernel's bridge
	if err := quick("attach elsewhere", func() error { _, err := h.Attach(ctx, other); return err }); err != nil {
		t.Error(err)
	}
	s.signal(syscall.SIGCONT)
	s.asksAgain()
	if diff := h.check(); len(diff) != 0 && diff[0].NIC != "net0" {
		t.Errorf("check: %+v", diff)
	}
}

// TestLiveSwitchStopsInTheMiddle stops the switch just before it is asked for a port. If the port
// exists afterwards, reconcile must remove it.
func TestLiveSwitchStopsInTheMiddle(t *testing.T) {
	eachBy(t, func(t *testing.T, s *userSwitch, by nic.By) {
		h := s.host
		g := h.empty()
		h.at("port", func(do func() error) error {
			s.signal(syscall.SIGSTOP)
			return do()
		})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		start := time.Now()
		_, err := h.Attach(ctx, s.on(g, "net0", by))
		h.Run = nil
		d := time.Since(start)
		if err == nil || !strings.Contains(err.Error(), "stopped or hung") || d > 8*time.Second {
			t.Errorf("after %v: %v", d, err)
		}
		s.signal(syscall.SIGCONT)
		s.settledByAnswer()
		s.left(g)
	})
}

func TestLiveSwitchNameTaken(t *testing.T) {
	h := newHost(t)
	s := h.runSwitch()
	a := h.empty()
	b := &guest{testvm.StartT(t, testvm.Config{Name: a.name, Paused: true}), a.name}
	specA, specB := s.on(a, "net0", nic.BySocket), s.on(b, "net0", nic.BySocket)
	specA.PID, specB.PID = a.Pid(), b.Pid()
	h.attach(specA)
	if _, err := h.Attach(h.context(10*time.Second), specB); !errors.Is(err, nic.ErrExist) ||
		!strings.Contains(err.Error(), "another guest of that name") {
		t.Errorf("the other guest: %v", err)
	}
	h.nothingLeft(b, "net0")
	if nics, err := h.List(a.name); err != nil || len(nics) != 1 || nics[0].State != "forwarding" {
		t.Errorf("list %+v, %v", nics, err)
	}
}

// TestLiveSwitchQEMUKilledAtEveryStep needs a new guest each time, so it takes empty ones.
func TestLiveSwitchQEMUKilledAtEveryStep(t *testing.T) {
	eachBy(t, func(t *testing.T, s *userSwitch, by nic.By) {
		h := s.host
		for _, name := range h.stepNames(s.on(h.empty(), "net0", by)) {
			g := h.empty()
			h.at(name, func(do func() error) error {
				if err := g.Kill(); err != nil {
					return err
				}
				return do()
			})
			res, err := h.Attach(h.context(20*time.Second), s.on(g, "net0", by))
			if err == nil && res.NIC.Interface == "" {
				t.Errorf("%s: neither error nor NIC", name)
			}
			s.noPort()
			h.gone(mustName(g))
		}
		h.Run = nil
	})
}

// TestLiveSwitchAttachesAtOnce: each NIC is made once, even if several ask for it at the same time.
func TestLiveSwitchAttachesAtOnce(t *testing.T) {
	h := newHost(t)
	s := h.runSwitch()
	g := h.empty()
	ctx := h.context(30 * time.Second)
	changed := make(chan bool)
	nics := []string{"net0", "net1", "net2", "net0", "net1", "net0"}
	for i, nicID := range nics {
		go func() {
			res, err := h.Attach(ctx,
				s.on(g, nicID, map[string]nic.By{"net0": nic.BySocket, "net1": nic.ByTap, "net2": nic.ByAuto}[nicID]))
			if err != nil {
				t.Errorf("%d, %s: %v", i, nicID, err)
			}
			changed <- res.Changed
		}()
	}
	made := 0
	for range nics {
		if <-changed {
			made++
		}
	}
	if ports := s.ports(); made != 3 || len(ports) != 3 {
		t.Errorf("%d made, ports %+v: want 3", made, ports)
	}
	if diff := h.check(); len(diff) != 0 {
		t.Errorf("check %+v", diff)
	}
}
