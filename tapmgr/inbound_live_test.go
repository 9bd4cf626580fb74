package tapmgr_test

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"vmnet/bridge"
	"vmnet/bridge/inbound"
	"vmnet/bridge/portsec/portsectest"
	"vmnet/internal/kernel/bpfguard"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/nstest"
	"vmnet/tapmgr/nic"
)

func rulesOf(t testing.TB, words ...string) (all inbound.Rules) {
	t.Helper()
	for _, word := range words {
		r, err := inbound.ParseRule(word)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
	return all
}

// ping is an echo request of an IPv4 host to another.
func ping(src, dst byte) []byte {
	return slices.Concat(portsectest.MAC, portsectest.OtherMAC, []byte{8, 0, 0x45, 0, 0, 36, 0, 0, 0, 0, 64, 1, 0, 0},
		[]byte{10, 7, 0, src}, []byte{10, 7, 0, dst}, []byte{8, 0, 0, 0, 0, 1, 0, 1}, make([]byte, 8))
}

// refused sends a frame to the guest and demands that it is, or is not, dropped on its way in.
func (h *host) refused(vm string, far *os.File, frame []byte, want bool) {
	h.Helper()
	count := func() uint64 { return h.showed(vm).Drops[inbound.Refused] }
	send := func() (before uint64) {
		before = count()
		if _, err := far.Write(frame); err != nil {
			h.Fatal(err)
		}
		return before
	}
	if want {
		before := send()
		nstest.Eventually(h, 20*time.Second, "a frame is refused", func() bool { return count() > before })
		return
	}
	// The host's own neighbor discovery may be refused meanwhile, but not each time.
	nstest.Eventually(h, 20*time.Second, "a frame is allowed in", func() bool { return send() == count() })
}

// TestLiveInbound: what nobody has asked for does not reach the guest of a tap and of a macvtap,
// and what its rules allow does.
func TestLiveInbound(t *testing.T) {
	for _, name := range []string{"tap", "macvtap"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			g := h.empty()
			spec := secure(g.spec("net0"))
			spec.AllowIn = rulesOf(t, "icmp,from=10.7.0.2")
			far := places[name](h, &spec)
			h.attach(spec)
			h.refused(g.name, far, ping(3, 1), true)
			h.refused(g.name, far, ping(2, 1), false)
			if got := h.check(); len(got) != 0 {
				t.Errorf("check: %+v", got)
			}
			if res, err := h.Attach(h.context(20*time.Second), spec); err != nil || res.Changed {
				t.Errorf("the same again: %+v, %v", res, err)
			}
			h.frames(g.name, far, "ipv4", "ip-spoof") // port security beside it
		})
	}
}

// TestLiveInboundFaults fails and kills an attach at the step: nothing is left. The step comes
// before the one that lets frames in.
func TestLiveInboundFaults(t *testing.T) {
	h := newHost(t)
	g := h.empty()
	spec := g.spec("net0")
	spec.AllowIn = rulesOf(t, "tcp:22")
	names := h.stepNames(spec)
	at := slices.Index(names, "allow in")
	if at < 0 || slices.Index(names, "port") < at {
		t.Fatalf("the steps are %q", names)
	}
	h.faultAtEach(names[at:at+2], func() { h.nothingLeft(g, "net0") }, func() error {
		_, err := h.Attach(h.context(20*time.Second), spec)
		return err
	})
	for _, after := range []bool{false, true} {
		h.killed(order{Spec: spec, KillAt: "allow in", After: after})
		h.nothingLeft(g, "net0")
	}
}

// TestLiveInboundChanges: check names filters that somebody has removed, reconcile puts them back,
// and set changes them, also with a move; a killed set is completed.
func TestLiveInboundChanges(t *testing.T) {
	h := newHost(t)
	h.bridge(bridge.Config{Name: "br1"})
	g := h.empty()
	spec := g.spec("net0")
	spec.MAC, spec.AllowIn = portsectest.MAC, rulesOf(t, "tcp:22")
	n := h.attach(spec)
	dev, far := h.link(n.Interface), h.hearBridge()
	wants := func(what string, words ...string) {
		t.Helper()
		want := inbound.Config{Rules: rulesOf(t, words...)}
		s, err := bpfguard.ReadInbound(h.nl, dev)
		if rtnl.IgnoreNotExist(err) != nil || !s.Is(want) {
			t.Errorf("%s: it is %s, %v, want %s", what, s, err, want)
		}
		if got := h.check(); len(got) != 0 {
			t.Errorf("%s: check finds %+v", what, got)
		}
	}
	wants("attached", "tcp:22")
	if err := h.nl.DeleteClsact(dev.Index); err != nil { // tc qdisc del dev DEVICE clsact
		t.Fatal(err)
	}
	if got := h.check(); len(got) != 1 || got[0].What != "allow in" || got[0].Found != "all" {
		t.Errorf("removed: check finds %+v", got)
	}
	h.settled()
	wants("put back", "tcp:22")

	change := func(s *nic.Spec) { s.Bridge, s.AllowIn = "br1", rulesOf(t, "icmp") }
	steps := h.stepNamesOf(func() error { _, err := h.set(g, change); return err })
	h.faultAtEach(steps, func() {
		h.Run = nil
		wants("after a fault", "tcp:22")
	}, func() error { _, err := h.set(g, change); return err })
	h.refused(g.name, far, ping(2, 1), true)
	h.killed(order{Spec: h.changed(g, change), Set: true, KillAt: "allow in", After: true})
	h.settled()
	wants("completed", "icmp")
	if _, err := h.set(g, func(s *nic.Spec) { s.AllowIn = nil }); err != nil {
		t.Fatal(err)
	}
	wants("off")
	_, err := h.set(g, func(s *nic.Spec) { s.AllowIn = rulesOf(t, "icmp", "icmp") })
	if !errors.Is(err, nic.ErrInvalid) || !strings.Contains(err.Error(), "twice") {
		t.Errorf("a rule twice: %v", err)
	}
}
