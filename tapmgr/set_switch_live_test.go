package tapmgr_test

import (
	"context"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/endpoint"
	"vmnet/internal/kernel/rtnl"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
)

// seatOn describes a guest's port on the switches, and how it is.
func seatOn(g *guest, switches ...*userSwitch) string {
	var words []string
	for _, s := range switches {
		for _, p := range s.ports() {
			if p.Holder != g.Pid() {
				continue
			}
			words = append(words, s.path)
			if p.Config.Isolated {
				words = append(words, "isolated")
			}
			if p.Config.MaxAddresses != nic.DefaultMaxAddresses {
				words = append(words, "addresses")
			}
		}
	}
	return strings.Join(words, ", ")
}

// ask sends requests to the switch.
func (s *userSwitch) ask(do func(context.Context, *control.Client) error) {
	s.Helper()
	c, err := control.Dial(s.context(20*time.Second), s.path)
	if err == nil {
		err = do(s.context(20*time.Second), c)
		_ = c.Close()
	}
	if err != nil {
		s.Fatal(err)
	}
}

// TestLiveSetOnSwitch changes the port of a switch, and the link.
func TestLiveSetOnSwitch(t *testing.T) {
	eachBy(t, func(t *testing.T, s *userSwitch, by nic.By) {
		g := s.empty()
		s.attach(s.on(g, "net0", by))
		fixed := control.FDBEntry{MAC: "02:00:00:00:00:09", Port: s.ports()[0].Name, Static: true}
		s.ask(func(ctx context.Context, c *control.Client) error { return c.AddStatic(ctx, fixed) })
		s.try(g, trial{
			there: func(n *nic.Spec) { n.Port.Isolated, n.Switch.MaxAddresses, n.LinkDown = true, 7, true },
			back:  func(n *nic.Spec) { n.Port.Isolated, n.Switch.MaxAddresses, n.LinkDown = false, 0, false },
			seat:  func() string { return seatOn(g, s) },
			then:  s.path + ", isolated, addresses", before: s.path, switches: s.Switches,
		})
		s.ask(func(ctx context.Context, c *control.Client) error {
			all, err := c.FDB(ctx)
			if !slices.ContainsFunc(all, func(e control.FDBEntry) bool { return e.MAC == fixed.MAC && e.Static }) {
				t.Errorf("the FDB has %+v: the port was removed meanwhile", all)
			}
			return err
		})
	})
}

// TestLiveSetToAnotherSwitch moves a tap from one switch to another.
func TestLiveSetToAnotherSwitch(t *testing.T) {
	h := newHost(t)
	a, b := h.runSwitch(), h.runSwitch()
	h.Switches = []string{a.path, b.path}
	g := h.empty()
	n := h.attach(a.on(g, "net0", nic.ByTap))
	index := h.link(n.Interface).Index
	names := h.try(g, trial{
		there: func(s *nic.Spec) { s.Switch.Name, s.Port.Isolated = b.path, true },
		back:  func(s *nic.Spec) { s.Switch.Name, s.Port.Isolated = a.path, false },
		seat:  func() string { return seatOn(g, a, b) },
		then:  b.path + ", isolated", before: a.path, switches: h.Switches,
	})
	if !slices.Contains(names, "switch") || h.link(n.Interface).Index != index {
		t.Errorf("steps %q, index %d to %d", names, index, h.link(n.Interface).Index)
	}
	other := h.empty()
	h.attach(a.on(other, "net0", nic.BySocket))
	for want, edit := range map[string]func(*nic.Spec){
		"has the other end":     func(s *nic.Spec) { s.Switch.Name = b.path },
		"from switch to switch": func(s *nic.Spec) { s.Switch, s.Bridge = nil, "br0" },
	} {
		if _, err := h.set(other, edit); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// TestLiveSetMovesBetweenSwitches moves a guest that answers a ping each 10 ms to another switch of
// its LAN, and back. It tells how many answers are missing.
func TestLiveSetMovesBetweenSwitches(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	a, b := h.runSwitch(), h.runSwitch()
	h.Switches = []string{a.path, b.path}
	if err := h.nl.Create("veth", rtnl.Name("c0"), rtnl.VethPeer("c1", h.ns)); err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]*userSwitch{"c0": a, "c1": b} {
		h.ip("link", "set", name, "up")
		files, err := endpoint.PacketFiles(h.ns, name)
		if err != nil {
			t.Fatal(err)
		}
		s.addPort(control.Port{Name: name, Kind: control.Packet, Device: name}, files...)
		for _, f := range files {
			_ = f.Close()
		}
	}
	near := a.behind()
	g := h.booted(testvm.Config{})
	n := h.attach(a.on(g, "net0", nic.ByTap))
	if err := g.Guest.UseNIC(h.context(30*time.Second), n.MAC, guestA+"/24"); err != nil {
		t.Fatal(err)
	}
	p := h.pinging(near, guestA)
	p.answered(1)
	sent := p.sent.Load()
	for _, to := range []*userSwitch{b, a} {
		if _, err := h.set(g, func(s *nic.Spec) { s.Switch.Name = to.path }); err != nil {
			t.Error(err)
		}
		p.answered(p.sent.Load() + 20)
	}
	lost := p.missing()
	t.Logf("two moves: %d of %d answers are missing (10 ms each)", lost, p.sent.Load()-sent)
	if lost > 300 {
		t.Errorf("%d answers are missing", lost)
	}

	// A detach completes a move that was cut short: neither switch has the port any more.
	wanted := h.changed(g, func(s *nic.Spec) { s.Switch.Name = b.path })
	cmd := h.command(order{Spec: wanted, Set: true, KillAt: "record", After: true, Switches: h.Switches})
	if out, err := cmd.CombinedOutput(); cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("%v: %s", err, out)
	}
	if got := seatOn(g, a, b); got != a.path {
		t.Errorf("a killed set: the NIC is on %q", got)
	}
	h.detach(g, "net0")
	if got := seatOn(g, a, b); got != "" {
		t.Errorf("after the detach %q has the port", got)
	}
}
