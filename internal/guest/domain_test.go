package guest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"vmnet/internal/nstest"
	"vmnet/internal/vmm/qemu"
	"vmnet/internal/vmm/qmptest"
	"vmnet/libvirt"
	"vmnet/libvirt/domainxml"
	"vmnet/libvirt/libvirttest/fakelibvirt"
	"vmnet/qmp"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// TestOpenDomain: libvirt confirms the process that was found, and the guest is locked until it is
// closed.
func TestOpenDomain(t *testing.T) {
	t.Parallel()
	f := newDomain(t)
	g, d := f.open()
	cpus, err := g.CPUs(within(t))
	if err != nil || cpus != 2 || g.PID() != f.PID || g.Alive() != nil || g.HasEnded() || d.user != 0 {
		t.Errorf("%d CPUs, process %d of user %d: %v", cpus, g.PID(), d.user, err)
	}
	if has, err := g.Has(within(t), "net0"); err != nil || has {
		t.Errorf("has net0: %v, %v", has, err)
	}
	r := nic.Record{NIC: "net0"}
	if err := errors.Join(g.Rollback(t.Context(), r), g.RollbackElsewhere(t.Context(), r),
		g.Announce(t.Context(), "net0")); err != nil {
		t.Errorf("what only a monitor does: %v", err)
	}
	if _, err := d.Metadata(within(t), d.dom, "urn:vmnet:nics:1", libvirt.AffectLive); !errors.Is(err,
		libvirt.ErrNoMetadata) {
		t.Errorf("metadata of none: %v", err)
	}

	interrupted := errors.New("interrupted")
	ctx, cancel := context.WithCancelCause(within(t))
	defer cancel(nil)
	f.Progress = func(string, ...any) { cancel(interrupted) }
	if _, err := f.Open(ctx, f.found(), ""); !errors.Is(err, interrupted) ||
		!strings.Contains(err.Error(), "another vmnet works on it") {
		t.Errorf("while it is locked: %v", err)
	}
	reader, err := f.OpenToRead(within(t), f.found(), nic.ViaLibvirt)
	if err != nil {
		t.Fatalf("to read while it is locked: %v", err)
	}
	if err := errors.Join(reader.Close(), g.Close()); err != nil {
		t.Error(err)
	}
	f.open()
}

// TestOpenDomainRefused: why a guest that says that it is libvirt's cannot be opened.
func TestOpenDomainRefused(t *testing.T) {
	t.Parallel()
	f := newDomain(t)
	refuse := func(call string, code int) fakelibvirt.Behaviour {
		return fakelibvirt.Behaviour{Refuse: map[string]fakelibvirt.Refusal{call: {Code: code, Message: "no"}}}
	}
	for name, tc := range map[string]struct {
		behaviour fakelibvirt.Behaviour
		target    nic.Target
		want      error
		text      string
	}{
		"which another libvirt has": {
			refuse("DOMAIN_LOOKUP_BY_NAME", 42), nic.Target{}, libvirt.ErrNoDomain, "name that with --libvirt",
		},
		"whose name cannot be looked up": {
			refuse("DOMAIN_LOOKUP_BY_NAME", 88), nic.Target{}, libvirt.ErrAccessDenied, "guest " + f.Name,
		},
		"which is off": {
			fakelibvirt.Behaviour{Off: true}, nic.Target{}, qemu.ErrNotFound, "is off (virsh start",
		},
		"without a definition": {refuse("DOMAIN_GET_XML_DESC", 38), nic.Target{}, nil, "GET_XML_DESC"},
		"by libvirt's refusal": {refuse("CONNECT_OPEN", 45), nic.Target{}, qemu.ErrLibvirt, "guest " + f.Name},
	} {
		f.Behave(tc.behaviour)
		_, err := f.Open(within(t), f.found(), "")
		if err == nil || tc.want != nil && !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: %v, want %v: %s", name, err, tc.want, tc.text)
		}
	}

	f.Behave(fakelibvirt.Behaviour{})
	for name, call := range map[string]func(*Found) (*Guest, error){
		"by the monitor": func(g *Found) (*Guest, error) { return f.OpenToRead(within(t), g, nic.ViaMonitor) },
		"another libvirt": func(g *Found) (*Guest, error) {
			return (&Finder{Libvirt: "/nowhere/sock"}).Open(within(t), g, "")
		},
		"not libvirt's any more": func(*Found) (*Guest, error) {
			return f.OpenToRead(within(t), &Found{process: qemu.Process{PID: 7}}, nic.ViaLibvirt)
		},
	} {
		if _, err := call(f.found()); err == nil {
			t.Errorf("%s: it is open", name)
		}
	}
	another := fakelibvirt.Start(t, f.Name, nil) // says that it is libvirt's, and has the name
	if g, err := f.Open(within(t), f.found(), ""); err != nil || g.PID() != f.PID {
		t.Errorf("beside another of its name: %v", err)
	} else {
		_ = g.Close()
	}
	f.Daemon.Behave(fakelibvirt.Behaviour{UUID: domainxml.UUID{9}})
	if _, err := f.Open(within(t), f.found(), ""); !errors.Is(err, qemu.ErrNotFound) ||
		!strings.Contains(err.Error(), "no process that is seen") {
		t.Errorf("of another UUID: %v", err)
	}
	f.Daemon.Behave(fakelibvirt.Behaviour{UUID: another.UUID})
	if g, err := f.Open(within(t), f.found(), ""); err != nil || g.PID() != another.PID {
		t.Errorf("which another process has: %v", err)
	} else {
		_ = g.Close()
	}
}

// TestOpenStored: a domain that is off has only what is stored, and what runs is no part of it.
func TestOpenStored(t *testing.T) {
	t.Parallel()
	f := newDomain(t)
	f.Behave(fakelibvirt.Behaviour{Off: true})
	if _, err := f.OpenStored(within(t), "another"); !errors.Is(err, libvirt.ErrNoDomain) {
		t.Errorf("another: %v", err)
	}
	d, err := f.OpenStored(within(t), f.Name)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	spec := f.spec(persistent)
	store, err := d.storeStep(spec, recordFor(spec), device)
	if err == nil {
		err = step.Run(within(t), []step.Step{store, d.declareStep(spec, []libvirt.Affect{libvirt.AffectConfig})}, nil)
	}
	if got, want := f.state(), "-, -; interface, declared"; err != nil || got != want {
		t.Errorf("stored: %s, %v, want %s", got, err, want)
	}
	forget, err := d.ForgetSteps(within(t), "net0", true)
	if got := namesOf(forget); err != nil || got != "forget, undeclare stored" {
		t.Fatalf("%s, %v", got, err)
	}
	if err := step.Run(within(t), forget, nil); err != nil || f.state() != "-, -; -, -" {
		t.Errorf("forgotten: %s, %v", f.state(), err)
	}
}

// TestDomainPlan: which steps hand a NIC over, what libvirt has after them, and that each step's
// failure leaves nothing.
func TestDomainPlan(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		edit   func(*nic.Spec)
		steps  string
		state  string
		device string // as it is stored
	}{
		"a tap":     {usual, "declare, attach-device, lifetime", "interface, declared; -, -", ""},
		"a macvtap": {onMacvtap, "declare, attach-device", "interface, declared; -, -", ""},
		"a tap that is stored": {
			persistent, "declare, attach-device, lifetime, store", "interface, declared; interface, declared",
			`<target dev="` + device + `">`,
		},
		"a macvtap that is stored": {
			func(s *nic.Spec) { persistent(s); onMacvtap(s) }, "declare, attach-device, store",
			"interface, declared; interface, declared", `<target dev="` + device + `" managed="no">`,
		},
		"a macvtap that libvirt makes": {
			func(s *nic.Spec) { persistent(s); onMacvtap(s); s.Lower.NoPromisc = false },
			"declare, attach-device, store", "interface, declared; interface, declared",
			`<source dev="eth0" mode="private">`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newDomain(t)
			_, d := f.open()
			h, err := d.Plan(within(t), planned(f.spec(tc.edit)))
			if err != nil || namesOf(h.Steps) != tc.steps || h.Opener != 0 {
				t.Fatalf("steps %s by %d, %v", namesOf(h.Steps), h.Opener, err)
			}
			if len(h.Notices) != 1 || !strings.Contains(h.Notices[0], "libvirt does not call vmnet's hook") {
				t.Errorf("notices %q", h.Notices)
			}
			steps := withoutDevice(h.Steps)
			for _, bad := range steps {
				err := step.Run(within(t), steps, breaking(bad.Name))
				if got := f.state(); !errors.Is(err, errBroken) || got != "-, -; -, -" {
					t.Errorf("after %s has failed: %s, %v", bad.Name, got, err)
				}
			}
			if err := step.Run(within(t), steps, nil); err != nil || f.state() != tc.state {
				t.Errorf("%s, %v, want %s", f.state(), err, tc.state)
			}
			if _, stored := f.Definitions(); tc.device != "" && !strings.Contains(stored.Interfaces[0], tc.device) {
				t.Errorf("stored %s, want %s", stored.Interfaces, tc.device)
			}
			if has, err := d.Has(within(t), "net0"); err != nil || !has {
				t.Errorf("has net0: %v, %v", has, err)
			}
		})
	}
}

// TestDomainRefusesANIC: libvirt's refusals are explained, and a transient domain stores nothing.
func TestDomainRefusesANIC(t *testing.T) {
	t.Parallel()
	f := newDomain(t)
	_, d := f.open()
	h, err := d.Plan(within(t), planned(f.spec(usual)))
	if err != nil {
		t.Fatal(err)
	}
	f.QEMU.Behave(qmptest.Behaviour{Refuse: map[string]string{
		"device_add": "Bus 'pci.0' does not support hotplugging",
	}})
	err = step.Run(within(t), withoutDevice(h.Steps), nil)
	if err == nil || !strings.Contains(err.Error(), "give it PCI Express root ports") || f.state() != "-, -; -, -" {
		t.Errorf("%s, %v", f.state(), err)
	}
	f.Daemon.Behave(fakelibvirt.Behaviour{Transient: true})
	if _, err := d.Plan(within(t), planned(f.spec(persistent))); !errors.Is(err, nic.ErrInvalid) {
		t.Errorf("a transient domain is to store it: %v", err)
	}
	if stored, err := d.Stored(within(t), "net0"); err != nil || stored {
		t.Errorf("a transient domain has stored it: %v, %v", stored, err)
	}
	if err := h.Steps[1].Undo(within(t)); err != nil {
		t.Errorf("what is not plugged: %v", err)
	}
}

// TestDomainUnplugByEvents: the guest's answer to a detach comes as an event of libvirt.
func TestDomainUnplugByEvents(t *testing.T) {
	t.Parallel()
	never := func(time.Duration) { t.Error("it waits for an answer") }
	for name, tc := range map[string]struct {
		behaviour qmptest.Behaviour
		want      error
		state     string
	}{
		"released": {qmptest.Behaviour{}, nil, "-, declared; -, -"},
		"refused":  {qmptest.Behaviour{Object: true}, qmp.ErrGuestRefused, "interface, declared; -, -"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newDomain(t)
			g, d := f.open()
			f.plug(d, f.spec(usual))
			f.QEMU.Behave(tc.behaviour)
			if text := g.UnplugText("net0"); !strings.Contains(text, "detach ua-vmnet-net0 from "+f.Name) {
				t.Error(text)
			}
			if err := g.Unplug(within(t), "net0", never); !errors.Is(err, tc.want) || (err == nil) != (tc.want == nil) {
				t.Errorf("%v, want %v", err, tc.want)
			}
			if got := f.state(); got != tc.state {
				t.Errorf("%s, want %s", got, tc.state)
			}
		})
	}
}

// TestDomainThatEnds: the end of QEMU ends an unplug, and so does that of libvirtd. A guest that
// was asked before is asked again with success.
func TestDomainThatEnds(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		end  func(*domainOfFake)
		want error
	}{
		"QEMU":     {func(f *domainOfFake) { f.Kill() }, qmp.ErrClosed},
		"libvirtd": {func(f *domainOfFake) { f.Disconnect() }, libvirt.ErrNoConnection},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newDomain(t)
			g, d := f.open()
			f.plug(d, f.spec(usual))
			f.QEMU.Behave(qmptest.Behaviour{Keep: true})
			ended := make(chan error, 1)
			go func() { ended <- g.Unplug(within(t), "net0", func(time.Duration) {}) }()
			nstest.Eventually(t, 20*time.Second, "the guest is asked", func() bool {
				return slices.Contains(f.QEMU.State().Asked, "device_del")
			})
			tc.end(f)
			err := <-ended
			if !errors.Is(err, tc.want) || errors.Is(err, qmp.ErrUnplugTimeout) {
				t.Errorf("%v, want %v", err, tc.want)
			}
		})
	}
	f := newDomain(t)
	g, d := f.open()
	f.plug(d, f.spec(usual))
	f.QEMU.Behave(qmptest.Behaviour{Refuse: map[string]string{
		"device_del": "Device ua-vmnet-net0 is already in the process of unplug",
	}})
	if err := g.RequestUnplug(within(t), "net0"); err != nil {
		t.Errorf("asked before: %v", err)
	}
	f.QEMU.Behave(qmptest.Behaviour{Refuse: map[string]string{"device_del": "no"}})
	if err := g.RequestUnplug(within(t), "net0"); err == nil {
		t.Error("a refusal is success")
	}
	f.Kill()
	if err := g.RequestUnplug(within(t), "net0"); !errors.Is(err, libvirt.ErrOperationInvalid) {
		t.Errorf("of a domain that has ended: %v", err)
	}
}
