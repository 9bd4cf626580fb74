package tapmgr_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"vmnet/bridge"
	"vmnet/bridge/brport"
	"vmnet/internal/nstest"
	"vmnet/internal/vmm/qmptest"
	"vmnet/libvirt/libvirttest/fakelibvirt"
	"vmnet/qmp"
	"vmnet/step"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

// fakeDomain is a guest of a fake libvirtd. Its taps and bridges are real.
type fakeDomain struct {
	*fakelibvirt.Daemon
	h *host
}

// libvirtTest makes a host and a libvirt guest on it.
func libvirtTest(t *testing.T) (*host, *fakeDomain) {
	t.Helper()
	t.Parallel()
	h := newUserHost(t)
	g := &fakeDomain{fakelibvirt.Start(h, h.name("P2"), h.ns), h}
	h.Libvirt = g.Socket
	return h, g
}

func (g *fakeDomain) spec(nicID string) nic.Spec {
	return nic.Spec{Target: nic.Target{VM: g.Name}, NIC: nicID, Bridge: "br0", Vhost: nic.VhostOff}
}

func (g *fakeDomain) detach(spec tapmgr.DetachSpec) (tapmgr.DetachResult, error) {
	g.h.Helper()
	spec.Target, spec.NIC = nic.Target{VM: g.Name}, "net0"
	return g.h.Detach(g.h.context(20*time.Second), spec)
}

// has demands that many interfaces and declarations of the domain that runs, and of what is stored.
func (g *fakeDomain) has(what string, running, stored int) {
	g.h.Helper()
	r, s := g.Definitions()
	declared := func(def fakelibvirt.Definition) int { return strings.Count(def.Metadata, "<nic ") }
	if len(r.Interfaces) != running || declared(r) != running || len(s.Interfaces) != stored || declared(s) != stored {
		g.h.Errorf("%s: running %+v, stored %+v, want %d and %d NICs", what, r, s, running, stored)
	}
	if q := g.State(); len(q.Devices) != running || len(q.Netdevs) != running {
		g.h.Errorf("%s: QEMU has %v and %v, want %d", what, q.Devices, q.Netdevs, running)
	}
}

// nothingLeft demands that neither the host, nor libvirt, nor QEMU has anything of any NIC.
func (g *fakeDomain) nothingLeft() {
	g.h.Helper()
	g.has("nothing is left", 0, 0)
	nstest.Eventually(g.h, 20*time.Second, "no tap is left", func() bool {
		taps, err := g.h.nl.Links("tun", 0)
		return err == nil && len(taps) == 0
	})
}

// TestLibvirtAttachAndDetach: libvirt opens a tap by its name, which then lives as long as QEMU
// holds it, and stores the NIC if it is to. The same again does nothing.
func TestLibvirtAttachAndDetach(t *testing.T) {
	h, g := libvirtTest(t)
	spec := g.spec("net0")
	spec.Queues, spec.Persistent, spec.Port = 2, true, brport.Settings{Isolated: true}
	n := h.attach(spec)
	g.has("attached", 1, 1)
	l, err := h.nl.Link(n.Interface)
	if err != nil {
		t.Fatal(err)
	}
	r, ok := nic.ParseRecord(l.Alias)
	switch {
	case l.Tun == nil || l.Tun.Persist || !l.Up || h.masterOf(l) != "br0":
		t.Errorf("link %+v", l)
	case !ok || r.Via != nic.ViaLibvirt || r.Phase != nic.PhasePlugged || r.Port != "isolated" || r.Queues != 2:
		t.Errorf("alias %q", l.Alias)
	}
	list, err := h.List(g.Name)
	if err != nil || len(list) != 1 || list[0].PID != g.PID || list[0].State != "forwarding" || list[0].Queues != 2 {
		t.Errorf("list %+v, %v", list, err)
	}
	details, err := h.Show(h.context(20*time.Second), g.Name)
	if err != nil || len(details) != 1 || len(details[0].Holders) != 1 || details[0].Guest == nil ||
		!details[0].Guest.Plugged {
		t.Errorf("show %+v, %v", details, err)
	}
	if got := h.check(); len(got) > 0 {
		t.Errorf("check %+v", got)
	}
	h.reconciled()
	res, err := h.Attach(h.context(20*time.Second), spec)
	if err != nil || res.Changed {
		t.Errorf("the same again: %+v, %v", res, err)
	}

	if res, err := g.detach(tapmgr.DetachSpec{}); err != nil || !res.Changed || len(res.Notices) != 1 ||
		!strings.Contains(res.Notices[0], "stored") {
		t.Errorf("detach: %+v, %v", res, err)
	}
	g.has("detached", 0, 1)
	if res, err := g.detach(tapmgr.DetachSpec{Persistent: true}); err != nil || !res.Changed {
		t.Errorf("detach what is stored: %+v, %v", res, err)
	}
	g.nothingLeft()
	if res, err := g.detach(tapmgr.DetachSpec{Persistent: true}); err != nil || res.Changed {
		t.Errorf("detach again: %+v, %v", res, err)
	}
}

// TestLibvirtFaultAtEachStep: whatever step fails, before or after it was done, nothing is left.
func TestLibvirtFaultAtEachStep(t *testing.T) {
	for name, via := range map[string]nic.Via{"by name": nic.ViaLibvirt, "by its monitor": nic.ViaMonitor} {
		t.Run(name, func(t *testing.T) {
			h, g := libvirtTest(t)
			spec := g.spec("net0")
			spec.Queues, spec.Via, spec.Persistent = 2, via, via == nic.ViaLibvirt
			h.faultAtEveryStep(spec, g.nothingLeft)
		})
	}
}

// TestLibvirtRefusals: whatever libvirt refuses is the error of an attach, and nothing is left.
func TestLibvirtRefusals(t *testing.T) {
	h, g := libvirtTest(t)
	spec := g.spec("net0")
	spec.Persistent = true
	for _, call := range []string{
		"DOMAIN_ATTACH_DEVICE_FLAGS", "DOMAIN_SET_METADATA", "DOMAIN_IS_PERSISTENT", "DOMAIN_GET_XML_DESC",
		"DOMAIN_LOOKUP_BY_NAME", "CONNECT_OPEN",
	} {
		g.Daemon.Behave(fakelibvirt.Behaviour{Refuse: map[string]fakelibvirt.Refusal{
			call: {Code: 1, Message: "it is refused"},
		}})
		_, err := h.Attach(h.context(20*time.Second), spec)
		if err == nil || !strings.Contains(err.Error(), "it is refused") {
			t.Errorf("%s refused: %v", call, err)
		}
		g.Daemon.Behave(fakelibvirt.Behaviour{})
		g.nothingLeft()
	}
	g.QEMU.Behave(qmptest.Behaviour{Refuse: map[string]string{"device_add": "no room"}})
	if _, err := h.Attach(h.context(20*time.Second), spec); err == nil || !strings.Contains(err.Error(), "no room") {
		t.Errorf("QEMU refuses: %v", err)
	}
	g.nothingLeft()
}

// TestLibvirtGuestThatKeepsItsNIC: a guest that refuses to release its NIC keeps it, and by force
// it is cut off.
func TestLibvirtGuestThatKeepsItsNIC(t *testing.T) {
	h, g := libvirtTest(t)
	n := h.attach(g.spec("net0"))
	g.QEMU.Behave(qmptest.Behaviour{Object: true})
	if _, err := g.detach(tapmgr.DetachSpec{}); !errors.Is(err, qmp.ErrGuestRefused) {
		t.Errorf("detach: %v", err)
	}
	g.has("refused", 1, 0)
	list, err := h.List(g.Name)
	if err != nil || len(list) != 1 || list[0].State != "forwarding" || list[0].Interface != n.Interface {
		t.Errorf("list %+v, %v", list, err)
	}
	g.QEMU.Behave(qmptest.Behaviour{Keep: true})
	res, err := g.detach(tapmgr.DetachSpec{Force: true})
	if l, linkErr := h.nl.Link(n.Interface); err == nil && linkErr == nil && l.Up {
		t.Errorf("by force: %+v, and its tap is up: %+v", res, l)
	}
	g.QEMU.Behave(qmptest.Behaviour{})
	if _, err := g.detach(tapmgr.DetachSpec{}); err != nil {
		t.Errorf("once the guest releases it: %v", err)
	}
	g.nothingLeft()
}

// TestLibvirtGuestThatEnds: with a libvirt guest its NICs go, and what was stored stays.
func TestLibvirtGuestThatEnds(t *testing.T) {
	h, g := libvirtTest(t)
	spec := g.spec("net0")
	spec.Persistent = true
	n := h.attach(spec)
	g.Kill()
	h.gone(n.Interface)
	if list, err := h.List(""); err != nil || len(list) != 0 {
		t.Errorf("list %+v, %v", list, err)
	}
	if res, err := g.detach(tapmgr.DetachSpec{Persistent: true}); err != nil || !res.Changed {
		t.Errorf("what is stored of a guest that is off: %+v, %v", res, err)
	}
	if _, stored := g.Definitions(); len(stored.Interfaces) != 0 || strings.Contains(stored.Metadata, "net0") {
		t.Errorf("stored: %+v", stored)
	}
}

// TestLibvirtSet: a set changes a NIC in place, on the host and in what libvirt has of it. If a
// step fails, all is as it was.
func TestLibvirtSet(t *testing.T) {
	h, g := libvirtTest(t)
	h.bridge(bridge.Config{Name: "br1"})
	spec := g.spec("net0")
	spec.Persistent = true
	n := h.attach(spec)
	edit := func(now nic.Spec) (nic.Spec, error) {
		now.Bridge, now.LinkDown, now.Port = "br1", true, brport.Settings{Isolated: true}
		return now, nil
	}
	set := func() (nic.ChangeResult, error) { return h.Set(h.context(20*time.Second), spec.Target, "net0", edit) }
	is := func(what, bridge, inDeclaration, inInterface string) {
		running, stored := g.Definitions()
		for _, def := range []fakelibvirt.Definition{running, stored} {
			if !strings.Contains(def.Metadata, inDeclaration) || len(def.Interfaces) != 1 ||
				strings.Contains(def.Interfaces[0], `state="down"`) != (inInterface == "down") {
				t.Errorf("%s: %+v", what, def)
			}
		}
		if l, err := h.nl.Link(n.Interface); err != nil || h.masterOf(l) != bridge {
			t.Errorf("%s: link %+v, %v", what, l, err)
		}
	}
	var names []string
	h.Run = func(_ context.Context, steps []step.Step) error {
		for _, s := range steps {
			names = append(names, s.Name)
		}
		return nil
	}
	if res, err := set(); err != nil || !slices.Contains(names, "update-device stored") {
		t.Fatalf("steps %q: %+v, %v", names, res, err)
	}
	h.faultAtEach(names, func() { is("broken", "br0", `bridge="br0"`, "up") }, func() error {
		_, err := set()
		return err
	})
	if res, err := set(); err != nil || !res.Changed {
		t.Fatalf("%+v, %v", res, err)
	}
	is("set", "br1", `bridge="br1"`, "down")
	if _, stored := g.Definitions(); !strings.Contains(stored.Metadata, "isolated") {
		t.Errorf("stored: %+v", stored)
	}
	if res, err := set(); err != nil || res.Changed {
		t.Errorf("the same again: %+v, %v", res, err)
	}
}
