package tapmgr_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
)

// TestLiveSwitchOfAServicesUser: a service manager runs a switch as a user of its own, and libvirt
// QEMU as another one. Root, who names both, has NICs there like any others.
func TestLiveSwitchOfAServicesUser(t *testing.T) {
	for _, by := range bothBys {
		for _, user := range []string{"root", "daemon"} {
			t.Run(fmt.Sprintf("%s of %s's guest", by, user), func(t *testing.T) {
				t.Parallel()
				h := newHost(t)
				s := h.nobodysSwitch()
				g := h.runAs(user)
				spec := s.on(g, "net0", by)
				spec.PID = g.Pid()
				h.attach(spec)
				s.forwards(g)
				if res, err := h.Attach(h.context(10*time.Second), spec); err != nil || res.Changed {
					t.Errorf("the same again: %+v, %v", res, err)
				}
				h.reconciled()
				if diff := h.check(); len(diff) != 0 {
					t.Errorf("check %+v", diff)
				}
				if _, err := h.Detach(h.context(10*time.Second), tapmgr.DetachSpec{
					Target: spec.Target, NIC: "net0",
					Force: true,
				}); err != nil {
					t.Error(err)
				}
				s.noPort()
			})
		}
	}
}

// runAs is an empty guest whose QEMU drops its privileges.
func (h *host) runAs(user string) *guest {
	h.Helper()
	if user == "root" {
		return h.empty()
	}
	return h.booted(testvm.Config{Paused: true, ExtraArgs: []string{"-runas", user}})
}

func (s *userSwitch) forwards(g *guest) {
	s.Helper()
	if nics, err := s.List(g.name); err != nil || len(nics) != 1 || nics[0].State != "forwarding" ||
		nics[0].PID != g.Pid() {
		s.Errorf("list %+v, %v: want it forwarding", nics, err)
	}
}

// TestLiveSwitchOfAnotherUsersGuestEnds: no verb asks the switch that such a guest's label names,
// unless the caller names it; then the NIC is replaced. Detaching it takes no switch.
func TestLiveSwitchOfAnotherUsersGuestEnds(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	s := h.runSwitch()
	g := h.booted(testvm.Config{ExtraArgs: []string{"-runas", "daemon"}})
	spec := s.on(g, "net0", nic.BySocket)
	spec.PID = g.Pid()
	h.attach(spec)
	s.forwards(g)
	s.kill()
	h.AskSwitches, h.Switches = true, nil // the switch is another user's
	if nics, err := h.List(g.name); err != nil || len(nics) != 1 || nics[0].State != nic.Unknown {
		t.Errorf("list %+v, %v: want it unknown", nics, err)
	}
	s.start()
	res, err := h.Attach(h.context(60*time.Second), spec)
	if err != nil || !res.Changed || res.NIC.State != "forwarding" {
		t.Errorf("the same attach again: %+v, %v: want it replaced", res, err)
	}
	s.kill()
	gone, err := h.Detach(h.context(60*time.Second), tapmgr.DetachSpec{Target: spec.Target, NIC: "net0"})
	if err != nil || !strings.Contains(strings.Join(gone.Notices, ";"), "its port stays in switch") {
		t.Errorf("detach %+v, %v", gone, err)
	}
	h.nothingLeft(g, "net0")
}

// TestLiveSwitchPortOfTheOtherGuest: of two guests of one name, the one whose port was lost has not
// the other's.
func TestLiveSwitchPortOfTheOtherGuest(t *testing.T) {
	h := newHost(t)
	s := h.runSwitch()
	a := h.empty()
	b := &guest{testvm.StartT(t, testvm.Config{Name: a.name, Paused: true}), a.name}
	specA, specB := s.on(a, "net0", nic.BySocket), s.on(b, "net0", nic.BySocket)
	specA.PID, specB.PID = a.Pid(), b.Pid()
	h.attach(specB)
	s.kill()
	s.start()
	h.attach(specA)
	nics, err := h.List(a.name)
	for _, n := range nics {
		if want := map[int]nic.State{a.Pid(): "forwarding", b.Pid(): nic.NoSwitch}[n.PID]; n.State != want {
			t.Errorf("%+v: want %s", n, want)
		}
	}
	if err != nil || len(nics) != 2 {
		t.Errorf("list %+v, %v", nics, err)
	}
	if _, err := h.Detach(h.context(10*time.Second), tapmgr.DetachSpec{
		Target: specB.Target, NIC: "net0",
		Force: true,
	}); err != nil {
		t.Error(err)
	}
	if ports := s.ports(); len(ports) != 1 || ports[0].Holder != a.Pid() {
		t.Errorf("ports %+v: want the other guest's untouched", ports)
	}
}

// TestLiveSwitchAmongMany: however many sockets others have made, the switches that NICs are on are
// asked.
func TestLiveSwitchAmongMany(t *testing.T) {
	h := newHost(t)
	s := h.runSwitch()
	h.AskSwitches, h.Switches = true, nil
	for i := range 300 {
		h.Switches = append(h.Switches, filepath.Join("/a", fmt.Sprint(i)))
	}
	h.Switches = append(h.Switches, s.path)
	h.onUnseen(func(string) {})
	g := h.empty()
	for i, by := range bothBys {
		h.attach(s.on(g, fmt.Sprintf("net%d", i), by))
	}
	nics, err := h.List(g.name)
	if err != nil || len(nics) != 2 || slices.ContainsFunc(nics, func(n nic.NIC) bool {
		return n.State != "forwarding"
	}) {
		t.Errorf("list %+v, %v", nics, err)
	}
}

// TestLiveSwitchLimitsAskedFor: what is asked for is compared, the default too, and what is left
// open is not.
func TestLiveSwitchLimitsAskedFor(t *testing.T) {
	h := newHost(t)
	s := h.runSwitch()
	g := h.booted(testvm.Config{Paused: true, CPUs: 2})
	spec := s.on(g, "net0", nic.BySocket)
	spec.Queues = nic.QueuesAuto // of a socket, one
	spec.Switch.LockMAC, spec.Switch.Storm = true, nic.NoLimit
	if nic := h.attach(spec); nic.Queues != 1 {
		t.Errorf("%+v: want one queue", nic)
	}
	for name, c := range map[string]struct {
		switchReply nic.Switch
		same        bool
	}{
		"nothing":       {nic.Switch{}, true},
		"the lock":      {nic.Switch{LockMAC: true}, true},
		"no limit":      {nic.Switch{Storm: nic.NoLimit}, true},
		"the default":   {nic.Switch{Storm: nic.DefaultStorm}, false},
		"other numbers": {nic.Switch{MaxAddresses: 3}, false},
	} {
		again := s.on(g, "net0", nic.BySocket)
		again.Switch.LockMAC, again.Switch.Storm, again.Switch.MaxAddresses = c.switchReply.LockMAC,
			c.switchReply.Storm, c.switchReply.MaxAddresses
		res, err := h.Attach(h.context(10*time.Second), again)
		if c.same && (err != nil || res.Changed) || !c.same && !errors.Is(err, nic.ErrExist) {
			t.Errorf("%s: %+v, %v", name, res, err)
		}
	}
}

// TestLiveSwitchTapChanged: check reports what another program does to the tap, and none of it
// makes the tap a port twice.
func TestLiveSwitchTapChanged(t *testing.T) {
	h := newHost(t)
	s := h.runSwitch()
	g := h.empty()
	spec := s.on(g, "net0", nic.ByTap)
	nic := h.attach(spec)
	h.ip("link", "set", nic.Interface, "name", "renamed0")
	// The switch does not know whether it is still claimed, so that its port ends. With the right
	// to claim it again it is back.
	s.noPort()
	if diff := h.check(); len(diff) != 2 || diff[0].What != "name" || diff[1].What != "switch" {
		t.Errorf("renamed: check %+v", diff)
	}
	if actions, err := h.Reconcile(h.context(10*time.Second), false); err != nil || len(actions) != 2 ||
		!actions[0].Changed || !actions[1].Changed {
		t.Errorf("renamed: reconcile %+v, %v", actions, err)
	}
	s.forwards(g)
	if diff := h.check(); len(diff) != 0 {
		t.Errorf("renamed: check %+v", diff)
	}
	if ports := s.ports(); len(ports) != 1 {
		t.Errorf("renamed: ports %+v", ports)
	}

	h.ip("link", "set", "renamed0", "mtu", "1400", "master", "br0")
	if diff := h.check(); len(diff) != 1 || diff[0].What != "bridge" {
		t.Errorf("on a bridge: check %+v", diff)
	}
	s.kill() // and it does not join again what somebody has put elsewhere
	s.start()
	actions, err := h.Reconcile(h.context(10*time.Second), false)
	if err != nil || len(actions) != 1 || actions[0].Changed || !strings.Contains(actions[0].Action, "a port of br0") {
		t.Errorf("on a bridge: reconcile %+v, %v", actions, err)
	}
	h.ip("link", "set", "renamed0", "mtu", "1500", "nomaster")
	if res, err := h.Attach(h.context(10*time.Second), spec); err != nil || !res.Changed ||
		res.NIC.State != "forwarding" {
		t.Errorf("the same attach again: %+v, %v: want it back on its switch", res, err)
	}
	if diff := h.check(); len(diff) != 0 {
		t.Errorf("check %+v", diff)
	}
}

// TestLiveCheckIsNotKeptWaiting: guests that do not answer are waited for at once, other
// users' behind root's own, and each is named, in an order that does not depend on which
// gives up first.
func TestLiveCheckIsNotKeptWaiting(t *testing.T) {
	t.Parallel() // it waits most of the time
	h := newHost(t)
	s := h.runSwitch()
	var silent []*guest
	for _, user := range []string{"daemon", "daemon", "daemon", "root", "root", "root"} {
		g := h.runAs(user)
		spec := s.on(g, "net0", nic.BySocket)
		spec.PID = g.Pid()
		h.attach(spec)
		silent = append(silent, g)
	}
	own := h.booted(testvm.Config{Name: "z", Paused: true}) // behind the others by its name
	h.attach(s.on(own, "net0", nic.BySocket))
	for _, g := range silent {
		h.signal(g, syscall.SIGSTOP)
		defer h.signal(g, syscall.SIGCONT)
	}
	silent = slices.Concat(silent[3:], silent[:3])
	const most = 9 * time.Second // one after the other they take 12 s
	start := time.Now()
	c, err := h.Check(h.context(60 * time.Second))
	if d := time.Since(start); d > most || err != nil || c.NICs != len(silent)+1 || len(c.Differences) != 0 ||
		len(c.Notices) != len(silent) {
		t.Fatalf("check after %v: %+v, %v", d, c, err)
	}
	start = time.Now()
	actions, err := h.Reconcile(h.context(60*time.Second), false)
	if d := time.Since(start); d > most || err != nil || len(actions) != len(silent) {
		t.Fatalf("reconcile after %v: %+v, %v", d, actions, err)
	}
	for i, g := range silent {
		if !strings.HasPrefix(c.Notices[i], g.name+" was not asked") || actions[i].VM != g.name ||
			actions[i].Error == "" {
			t.Errorf("%d: %q, %+v: want %s, not asked", i, c.Notices[i], actions[i], g.name)
		}
	}
}

func (h *host) signal(g *guest, sig syscall.Signal) {
	h.Helper()
	if p, err := os.FindProcess(g.Pid()); err != nil || p.Signal(sig) != nil {
		h.Errorf("signal %v to %s: %v", sig, g.name, err)
	}
}

// TestLiveSwitchOfAServicesUserAfterACrash: what a crash has left in it is in nobody's way. A port
// on a stream goes as soon as the switch reads that nobody has the other end.
func TestLiveSwitchOfAServicesUserAfterACrash(t *testing.T) {
	h := newHost(t)
	s := h.nobodysSwitch()
	g := h.empty()
	for _, by := range bothBys {
		out, err := h.command(order{
			Spec: s.on(g, "net0", by), KillAt: "port",
			After: true, Switches: []string{s.path},
		}).CombinedOutput()
		if err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("%s: %v: %s", by, err, out)
		}
		h.attach(s.on(g, "net0", by))
		s.forwards(g)
		if err := g.Kill(); err != nil {
			t.Fatal(err)
		}
		s.noPort()
		g = h.empty()
	}
}

// TestLiveSwitchEndsInADetach: at whichever step, the NIC goes all the same.
func TestLiveSwitchEndsInADetach(t *testing.T) {
	h := newHost(t)
	s := h.runSwitch()
	g := h.booted(testvm.Config{})
	for _, step := range []string{"mark", "unplug", "leave"} {
		h.attach(s.on(g, "net0", nic.BySocket))
		killed := false
		h.at(step, func(do func() error) error {
			killed = true
			s.kill()
			return do()
		})
		h.detach(g, "net0")
		h.Run = nil
		h.nothingLeft(g, "net0")
		if !killed {
			t.Errorf("there is no step %s", step)
		}
		s.start()
	}
}

// TestLiveSwitchEndedAndAnotherAsked: only the same attach again replaces a disconnected NIC.
func TestLiveSwitchEndedAndAnotherAsked(t *testing.T) {
	h := newHost(t)
	s := h.runSwitch()
	g := h.empty()
	h.attach(s.on(g, "net0", nic.BySocket))
	s.kill()
	if _, err := h.Attach(h.context(10*time.Second), g.spec("net0")); !errors.Is(err, nic.ErrExist) {
		t.Errorf("on a bridge: %v, want %v", err, nic.ErrExist)
	}
}
