package tapmgr_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"vmnet/bridge"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// set changes a guest's net0 by edit.
func (h *host) set(g *guest, edit func(*nic.Spec)) (nic.ChangeResult, error) {
	return h.Set(h.context(20*time.Second), nic.Target{VM: g.name}, "net0", func(now nic.Spec) (nic.Spec, error) {
		edit(&now)
		return now, nil
	})
}

// moved is a change of everything that a tap of a bridge can change, without a VLAN, and back.
func moved(s *nic.Spec)  { s.Bridge, s.Port.Isolated, s.LinkDown = "br1", true, true }
func former(s *nic.Spec) { s.Bridge, s.Port.Isolated, s.LinkDown = "br0", false, false }

// seat describes where a tap is, and how.
func (h *host) seat(name string) string {
	h.Helper()
	l := h.link(name)
	master := "none"
	if br, err := h.nl.LinkByIndex(l.Master); err == nil {
		master = br.Name
	}
	words := []string{master}
	if l.Port != nil && l.Port.Isolated {
		words = append(words, "isolated")
	}
	if !l.Carrier {
		words = append(words, "no carrier")
	}
	return strings.Join(words, ", ")
}

// wants demands that the NIC is at that seat, and that check finds nothing.
func (h *host) wants(what, name, seat string) {
	h.Helper()
	if got := h.seat(name); got != seat {
		h.Errorf("%s: %s, want %s", what, got, seat)
	}
	if got := h.check(); len(got) != 0 {
		h.Errorf("%s: check finds %+v", what, got)
	}
}

// TestLiveSet changes a NIC, whose device and index stay, and fails and cuts the change at each
// step. After a fault all is as it was; after a cut, check says so, and the same set or reconcile
// completes it.
func TestLiveSet(t *testing.T) {
	h := newHost(t)
	h.bridge(bridge.Config{Name: "br1"})
	g := h.empty()
	n := h.attach(g.spec("net0"))
	index := h.link(n.Interface).Index
	names := h.stepNamesOf(func() error { _, err := h.set(g, moved); return err })
	for _, want := range []string{"record", "set_link", "bridge", "carrier", "announce", "verify"} {
		if !strings.Contains(" "+strings.Join(names, " ")+" ", " "+want+" ") {
			t.Errorf("steps %q lack %q", names, want)
		}
	}
	for _, name := range names {
		for _, after := range []bool{false, true} {
			h.at(name, func(do func() error) error {
				if after {
					if err := do(); err != nil {
						return err
					}
				}
				return errFault
			})
			if _, err := h.set(g, moved); !errors.Is(err, errFault) || strings.Contains(err.Error(), "undo") {
				t.Errorf("%s, done %v: got %v, want only the fault", name, after, err)
			}
			h.Run = nil
			h.wants("fault at "+name, n.Interface, "br0")
		}
	}
	for i, name := range names {
		h.cutAfter(name)
		if _, err := h.set(g, moved); !errors.Is(err, errFault) {
			t.Fatal(name, err)
		}
		h.Run = nil
		if got := h.check(); name != "verify" && (len(got) == 0 || h.states(g) != nic.Changing) {
			t.Errorf("cut after %s: state %s, check finds %+v", name, h.states(g), got)
		}
		if i%2 == 0 {
			if _, err := h.Reconcile(h.context(20*time.Second), false); err != nil {
				t.Error(err)
			}
		} else if _, err := h.set(g, moved); err != nil {
			t.Error(err)
		}
		h.wants("cut after "+name, n.Interface, "br1, isolated, no carrier")
		if _, err := h.set(g, former); err != nil {
			t.Fatal(err)
		}
		h.wants("back after "+name, n.Interface, "br0")
	}
	if res, err := h.set(g, former); err != nil || res.Changed || len(res.Changes) > 0 {
		t.Errorf("the same again: %+v, %v", res, err)
	}
	if now := h.link(n.Interface).Index; now != index {
		t.Errorf("the tap's index was %d, and is %d", index, now)
	}
}

// cutAfter stops a verb after that step, without an undo, as SIGKILL does.
func (h *host) cutAfter(name string) {
	h.Run = func(ctx context.Context, list []step.Step) error {
		for _, s := range list {
			if err := s.Do(ctx); err != nil {
				return err
			}
			if s.Name == name {
				return errFault
			}
		}
		return nil
	}
}

func (h *host) states(g *guest) nic.State {
	h.Helper()
	all, err := h.List(g.name)
	if err != nil || len(all) != 1 {
		h.Fatal(all, err)
	}
	return all[0].State
}

// TestLiveSetRefuses: what the guest would notice is refused with the reason, and changes nothing.
func TestLiveSetRefuses(t *testing.T) {
	h := newHost(t)
	h.bridge(bridge.Config{Name: "br1", MTU: 1400})
	g := h.empty()
	n := h.attach(g.spec("net0"))
	for what, edit := range map[string]func(*nic.Spec){
		"driver for the device":  func(s *nic.Spec) { s.Model = "e1000" },
		"opens a NIC's queues":   func(s *nic.Spec) { s.Queues = 2 },
		"has read its address":   func(s *nic.Spec) { s.MAC = nic.DefaultMAC("other", "net0") },
		"announces the MTU":      func(s *nic.Spec) { s.MTU = 1300 },
		"carries at most 1400":   func(s *nic.Spec) { s.Bridge = "br1" },
		"no such network device": func(s *nic.Spec) { s.Bridge = "br7" },
	} {
		if _, err := h.set(g, edit); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("got %v, want %q", err, what)
		}
	}
	h.wants("refused", n.Interface, "br0")
	spec := g.spec("net0")
	spec.Port.Isolated = true
	_, err := h.Attach(h.context(20*time.Second), spec)
	want := "vmnet set --vm " + g.name + " --nic net0 --isolated"
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
}
