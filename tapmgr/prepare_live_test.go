package tapmgr_test

import (
	"errors"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/bridge"
	ofguest "vmnet/internal/guest"
	"vmnet/internal/nstest"
	"vmnet/qmp"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
)

const migrantMAC = "52:54:00:00:00:09"

// target is a QEMU that waits for a guest.
func (h *host) target(qemu ...string) *guest {
	h.Helper()
	args := slices.Concat([]string{"-incoming", "defer"}, migratable, qemu)
	return h.booted(testvm.Config{NoWait: true, ExtraArgs: args})
}

// migratable is the memory of a guest that migrates without KVM. Before 9.0, QEMU does not send all
// that such a guest writes while it migrates, if its memory is a multiple of 64 pages: see the fast
// path of cpu_physical_memory_sync_dirty_bitmap (include/exec/ram_addr.h), which leaves the TLB of
// TCG as it is.
var migratable = []string{"-m", "131080k"}

func (g *guest) prepared(nicID string) nic.Spec { return prepared(g.spec(nicID)) }

func prepared(s nic.Spec) nic.Spec {
	s.MAC, _ = net.ParseMAC(migrantMAC)
	s.Prepared = true
	return s
}

func (h *host) prepare(spec nic.Spec) nic.NIC {
	h.Helper()
	res, err := h.Prepare(h.context(20*time.Second), spec)
	if err != nil {
		h.Fatal(err)
	}
	return res.NIC
}

func (h *host) commit(g *guest) error {
	h.Helper()
	_, err := h.Commit(h.context(20*time.Second), nic.Target{VM: g.name}, "", false)
	return err
}

func (h *host) abort(g *guest) error {
	h.Helper()
	_, _, err := h.Abort(h.context(20*time.Second), nic.Target{VM: g.name}, "")
	return err
}

// down demands that a prepared NIC is complete and down, and that check finds nothing.
func (h *host) down(what string, g *guest, name, master string) {
	h.Helper()
	l := h.link(name)
	if got := h.states(g); got != nic.Prepared || l.Up || l.Master != h.link(master).Index {
		h.Errorf("%s: state %s, %+v", what, got, l)
	}
	if got := h.check(); len(got) > 0 {
		h.Errorf("%s: check finds %+v", what, got)
	}
}

// killed has SIGKILL end a process that does o.
func (h *host) killed(o order) {
	h.Helper()
	cmd := h.command(o)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		h.Fatalf("%s: %v: %s", o.KillAt, err, out)
	}
}

// runState is the state of a guest's machine.
func runState(h *host, g *guest) qmp.RunState {
	h.Helper()
	c, err := qmp.Dial(h.context(20*time.Second), g.QMP)
	if err != nil {
		h.Fatal(err)
	}
	defer c.Close()
	state, err := c.RunState(h.context(20 * time.Second))
	if err != nil {
		h.Fatal(err)
	}
	return state
}

// TestLivePrepared: a prepared NIC stays down, whatever is done to its device and bridge, until it
// is committed, which it is not before its guest is there. It can be aborted, and prepared again.
func TestLivePrepared(t *testing.T) {
	h := newHost(t)
	g := h.target()
	n := h.prepare(g.prepared("net0"))
	name := n.Interface
	if n.State != nic.Prepared {
		t.Errorf("prepared: %+v", n)
	}
	h.down("prepared", g, name, "br0")
	h.reconciled()
	if res, err := h.Prepare(h.context(20*time.Second), g.prepared("net0")); err != nil || res.Changed {
		t.Errorf("the same again: %+v, %v", res, err)
	}
	h.down("the same again", g, name, "br0")
	for what, spoil := range map[string]func(){
		"raised":           func() { h.ip("link", "set", name, "up") },
		"without a bridge": func() { h.ip("link", "set", name, "nomaster") },
		"raised elsewhere": func() { h.ip("link", "set", name, "nomaster", "up") },
	} {
		spoil()
		if got := h.check(); len(got) == 0 {
			t.Errorf("%s: check finds nothing", what)
		}
		h.settled()
		h.down(what, g, name, "br0")
	}
	if err := h.deleteBridge("br0"); err != nil {
		t.Fatal(err)
	}
	h.bridge(bridge.Config{Name: "br0"})
	if done, err := h.Host().PutBack("br0"); err != nil || len(done) != 1 || done[0].Error != "" {
		t.Errorf("put back: %+v, %v", done, err)
	}
	h.down("put back as watch does", g, name, "br0")

	_, attachErr := h.Attach(h.context(20*time.Second), g.spec("net0"))
	_, setErr := h.set(g, func(s *nic.Spec) { s.Port.Isolated = true })
	_, detachErr := h.tryDetach(g, 20*time.Second, false)
	for want, err := range map[string]error{
		"exists already, prepared: it is down until vmnet commit --vm " + g.name + " --nic net0": attachErr,
		"down until vmnet commit":               setErr,
		"vmnet abort":                           detachErr,
		"has not arrived by its migration (--w": h.commit(g),
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	if err := h.commit(g); !errors.Is(err, ofguest.ErrNotArrived) {
		t.Errorf("commit: %v", err)
	}
	h.down("refused", g, name, "br0")

	for _, spec := range []nic.Spec{g.prepared("net1"), g.prepared("net2")} {
		h.prepare(spec)
	}
	for range 2 {
		if err := h.abort(g); err != nil {
			t.Fatal(err)
		}
		for _, id := range []string{"net0", "net1", "net2"} {
			h.nothingLeft(g, id)
		}
	}
	if state := runState(h, g); state != qmp.StateIncoming {
		t.Errorf("QEMU is %s", state)
	}
	h.prepare(g.prepared("net0"))
	if err := h.abort(g); err != nil {
		t.Error(err)
	}
	if err := h.commit(g); err == nil || !strings.Contains(err.Error(), "vmnet prepare makes one") {
		t.Errorf("commit of none: %v", err)
	}
}

// TestLivePrepareFaults fails and kills a prepare and an abort at each step. Then nothing is left,
// or a reconcile or the same again completes it.
func TestLivePrepareFaults(t *testing.T) {
	h := newHost(t)
	g := h.target()
	spec := g.twoQueues("net0")
	spec = prepared(spec)
	prepare := func() error { _, err := h.Prepare(h.context(20*time.Second), spec); return err }
	names := h.stepNamesOf(prepare)
	h.faultAtEach(names, func() { h.nothingLeft(g, "net0") }, prepare)
	link := mustName(g)
	for i, name := range names {
		h.killed(order{Spec: spec, KillAt: name, After: true})
		switch l, err := h.nl.Link(link); {
		case err == nil && l.Up:
			t.Errorf("killed after %s: it is up", name)
		case err == nil && i%2 == 0:
			h.settled()
		}
		if err := prepare(); err != nil {
			t.Errorf("killed after %s: the same again: %v", name, err)
		}
		h.down("killed after "+name, g, link, "br0")
		if err := h.abort(g); err != nil {
			t.Fatalf("killed after %s: abort: %v", name, err)
		}
		h.nothingLeft(g, "net0")
	}

	h.prepare(spec)
	names = h.stepNamesOf(func() error { return h.abort(g) })
	for _, name := range names {
		h.killed(order{Spec: spec, Abort: true, KillAt: name, After: true})
		if l, err := h.nl.Link(link); err == nil && l.Up {
			t.Errorf("abort killed after %s: it is up", name)
		}
		if err := h.abort(g); err != nil {
			t.Errorf("abort killed after %s: again: %v", name, err)
		}
		h.nothingLeft(g, "net0")
		if state := runState(h, g); state != qmp.StateIncoming {
			t.Fatalf("abort killed after %s: QEMU is %s", name, state)
		}
		h.prepare(spec)
	}
}

// TestLiveCommit commits NICs of each kind of device on a guest that is there, and fails and kills
// the commit of a tap at each step. After a fault the NIC is prepared as before; after a kill,
// check says so, and the same commit or reconcile completes it.
func TestLiveCommit(t *testing.T) {
	h := newHost(t)
	g := h.empty()
	n := h.prepare(g.prepared("net0"))
	commit := func() error { return h.commit(g) }
	names := h.stepNamesOf(commit)
	if got := strings.Join(names, " "); got != "record link announce verify" {
		t.Errorf("steps %q", got)
	}
	h.faultAtEach(names, func() {
		h.Run = nil
		h.down("after a fault", g, n.Interface, "br0")
	}, commit)
	for i, name := range names {
		h.killed(order{Spec: g.spec("net0"), Commit: true, KillAt: name, After: true})
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
		h.wants("killed after "+name, h.seat(n.Interface), "br0")
		if got := h.states(g); got != "forwarding" {
			t.Errorf("killed after %s: %s", name, got)
		}
		_, _, err := h.Abort(h.context(20*time.Second), nic.Target{VM: g.name}, "net0")
		if !errors.Is(err, nic.ErrInUse) || !strings.Contains(err.Error(), "vmnet detach") {
			t.Errorf("abort of a committed one: %v", err)
		}
		g = h.empty()
		n = h.prepare(g.prepared("net0"))
	}
	_, err := h.Prepare(h.context(20*time.Second), prepared(h.empty().spec("net0")))
	if err != nil {
		t.Error(err)
	}
}

// TestLiveCommitElsewhere prepares and commits a macvtap, and a tap of a userspace switch.
func TestLiveCommitElsewhere(t *testing.T) {
	h := newHost(t)
	h.wire()
	g := h.empty()
	s := h.runSwitch()
	for id, spec := range map[string]nic.Spec{
		"net0": prepared(g.lowerSpec("net0", nic.Lower{})),
		"net1": prepared(s.on(g, "net1", nic.ByAuto)),
	} {
		spec.MAC[5] += id[3] - '0'
		if n := h.prepare(spec); n.State != nic.Prepared {
			t.Errorf("%s: %+v", id, n)
		}
	}
	if got := h.check(); len(got) > 0 {
		t.Errorf("check finds %+v", got)
	}
	h.reconciled()
	if err := h.commit(g); err != nil {
		t.Fatal(err)
	}
	nstest.Eventually(t, 20*time.Second, "both NICs are up", func() bool {
		all, err := h.List(g.name)
		return err == nil && len(all) == 2 && all[0].State == nic.Up && all[1].State == "forwarding"
	})
	if got := h.check(); len(got) > 0 {
		t.Errorf("check finds %+v", got)
	}
}
