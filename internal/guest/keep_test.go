package guest

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"

	"vmnet/libvirt"
	"vmnet/libvirt/libvirttest/fakelibvirt"
	"vmnet/step"
	"vmnet/tapmgr/nic"
)

// run runs steps, which must have these names, and demands the state that they lead to; then it
// undoes them.
func (f *domainOfFake) run(what string, steps []step.Step, err error, names, state string) {
	f.t.Helper()
	was := f.state()
	if err != nil || namesOf(steps) != names {
		f.t.Errorf("%s: steps %q, %v, want %q", what, namesOf(steps), err, names)
		return
	}
	if err := step.Run(within(f.t), steps, nil); err != nil || f.state() != state {
		f.t.Errorf("%s: %s, %v, want %s", what, f.state(), err, state)
	}
	if undone := step.Undo(within(f.t), steps); undone != nil || f.state() != was {
		f.t.Errorf("%s, undone: %s, %v, want %s", what, f.state(), undone, was)
	}
}

// TestKeepPlugged: what makes a plugged NIC come back is added as far as it is missing, and what
// libvirt has stored of another NIC stays.
func TestKeepPlugged(t *testing.T) {
	t.Parallel()
	f := newDomain(t)
	_, d := f.open()
	keep := func(spec nic.Spec, dev string) ([]step.Step, error) {
		steps, notices, err := d.KeepPlugged(within(t), spec, recordFor(spec), dev)
		if stores := strings.Contains(namesOf(steps), "store"); stores != (len(notices) > 0) {
			t.Errorf("steps %s with notices %q", namesOf(steps), notices)
		}
		return steps, err
	}
	tap, kept := f.spec(usual), f.spec(persistent)
	steps, err := keep(tap, device)
	f.run("not declared", steps, err, "declare", "-, declared; -, -")
	steps, err = keep(kept, device)
	f.run("nothing is there", steps, err, "declare, store", "-, declared; interface, declared")

	f.plug(d, tap)
	steps, err = keep(tap, device)
	f.run("declared", steps, err, "", "interface, declared; -, -")
	steps, err = keep(kept, device)
	f.run("not stored", steps, err, "declare, store", "interface, declared; interface, declared")
	if err := step.Run(within(t), steps, nil); err != nil {
		t.Fatal(err)
	}
	steps, err = keep(kept, device)
	f.run("stored", steps, err, "", "interface, declared; interface, declared")
	if _, err := keep(f.spec(func(s *nic.Spec) { persistent(s); onMacvtap(s) }), "another"); !errors.Is(err,
		nic.ErrExist) {
		t.Errorf("stored for another device: %v", err)
	}
	kept.MAC = net.HardwareAddr{0x52, 0x54, 0, 0, 0, 2}
	if _, err := keep(kept, device); !errors.Is(err, nic.ErrExist) ||
		!strings.Contains(err.Error(), "52:54:00:00:00:01") {
		t.Errorf("stored with another MAC: %v", err)
	}
}

// TestStoreSteps: libvirt stores a plugged NIC or forgets it, and nothing is done twice.
func TestStoreSteps(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(*nic.Spec){"tap": usual, "macvtap": onMacvtap} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newDomain(t)
			_, d := f.open()
			r := f.plug(d, f.spec(edit))
			store := func(isStored bool) ([]step.Step, error) {
				spec := r.Spec()
				spec.Persistent = isStored
				return d.StoreSteps(within(t), spec, r, device)
			}
			const only, both = "interface, declared; -, -", "interface, declared; interface, declared"
			steps, err := store(false)
			f.run("not stored", steps, err, "", only)
			steps, err = store(true)
			f.run("to be stored", steps, err, "declare, store", both)
			if err := step.Run(within(t), steps, nil); err != nil {
				t.Fatal(err)
			}
			if _, stored := f.Definitions(); name == "macvtap" && !strings.Contains(stored.Metadata, "promisc") {
				t.Errorf("an option that only the declaration has is lost: %s", stored.Metadata)
			}
			steps, err = store(true)
			f.run("stored", steps, err, "", both)
			steps, err = store(false)
			f.run("to be forgotten", steps, err, "forget, undeclare stored", only)
			steps, err = d.ForgetSteps(within(t), "net0", true)
			f.run("all of it", steps, err, "forget, undeclare stored, undeclare", "interface, declared; -, -")
		})
	}
}

// TestForgetRunning: the declaration of a NIC whose device the guest keeps stays, and so do other
// NICs. What has gone by itself is no error.
func TestForgetRunning(t *testing.T) {
	t.Parallel()
	f := newDomain(t)
	g, d := f.open()
	f.plug(d, f.spec(persistent))
	steps, err := d.ForgetSteps(within(t), "net1", true)
	f.run("another", steps, err, "", "interface, declared; interface, declared")
	steps, err = d.ForgetSteps(within(t), "net0", false)
	f.run("that the guest keeps", steps, err, "undeclare", "interface, declared; interface, declared")
	if err := g.Unplug(within(t), "net0", nil); err != nil {
		t.Fatal(err)
	}
	f.run("that has gone", steps, nil, "undeclare", "-, -; interface, declared")

	steps, err = d.ForgetSteps(within(t), "net0", true)
	if err != nil {
		t.Fatal(err)
	}
	f.Define(fakelibvirt.Definition{}, fakelibvirt.Definition{})
	if err := step.Run(within(t), steps, nil); err != nil {
		t.Errorf("what somebody else has forgotten: %v", err)
	}
	f.Kill()
	declare := d.declareStep(f.spec(usual), []libvirt.Affect{libvirt.AffectLive})
	if err := declare.Do(within(t)); !errors.Is(err, errEnded) {
		t.Errorf("of a domain that has ended: %v", err)
	}
	if _, err := d.declares(within(t), "net0", libvirt.AffectLive); !errors.Is(err, errEnded) {
		t.Errorf("of a domain that has ended: %v", err)
	}
}

// TestDomainChange: libvirt follows a change of a plugged NIC in the interface and in what is
// declared, wherever it has the NIC, and nothing changes that is so already.
func TestDomainChange(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		edit         func(*nic.Spec)
		change       func(from, to *nic.Record)
		steps, state string
	}{
		"nothing": {usual, func(_, _ *nic.Record) {}, "", "interface, declared; -, -"},
		"the link": {
			usual, func(_, to *nic.Record) { to.LinkDown = true },
			"update-device", "interface down, declared; -, -",
		},
		"the port": {
			persistent, func(_, to *nic.Record) { to.Port = isolated.String() },
			"declare, declare stored", "interface, isolated; interface, isolated",
		},
		"both, stored too": {
			persistent, func(_, to *nic.Record) { to.LinkDown, to.Port = true, isolated.String() },
			"declare, declare stored, update-device, update-device stored",
			"interface down, isolated; interface down, isolated",
		},
		"what was not finished": {
			usual, func(from, _ *nic.Record) { from.Phase = nic.PhaseChanging },
			"update-device", "interface, declared; -, -",
		},
		"a macvtap's link": {
			func(s *nic.Spec) { persistent(s); onMacvtap(s) }, func(_, to *nic.Record) { to.LinkDown = true },
			"update-device, update-device stored",
			"interface down, declared; interface down, declared",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newDomain(t)
			g, d := f.open()
			from := f.plug(d, f.spec(tc.edit))
			to := from
			tc.change(&from, &to)
			steps, err := g.ChangeSteps(within(t), device, from, to)
			f.run("change", steps, err, tc.steps, tc.state)
		})
	}
}

// TestMonitorChange: a guest whose monitor is open learns of the state of its link only.
func TestMonitorChange(t *testing.T) {
	t.Parallel()
	f := newDomain(t)
	g, err := f.Open(within(t), f.found(), nic.ViaMonitor)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	from := recordFor(f.spec(usual))
	to := from
	to.Port = isolated.String()
	if steps, err := g.ChangeSteps(within(t), device, from, to); err != nil || len(steps) > 0 {
		t.Errorf("the port: %s, %v", namesOf(steps), err)
	}
	to.LinkDown = true
	steps, err := g.ChangeSteps(within(t), device, from, to)
	if err != nil || namesOf(steps) != "set_link" {
		t.Fatalf("the link: %s, %v", namesOf(steps), err)
	}
	if err := steps[0].Do(within(t)); err == nil || !strings.Contains(err.Error(), "not found") {
		t.Errorf("of no NIC: %v", err)
	}
}

// TestChangeThatLibvirtRefuses: a refusal is explained, and what was changed before is undone.
func TestChangeThatLibvirtRefuses(t *testing.T) {
	t.Parallel()
	f := newDomain(t)
	g, d := f.open()
	from := f.plug(d, f.spec(persistent))
	to := from
	to.LinkDown, to.Port = true, isolated.String()
	steps, err := g.ChangeSteps(within(t), device, from, to)
	if err != nil {
		t.Fatal(err)
	}
	was := f.state()
	busy := "Timed out during operation: cannot acquire state change lock (held by monitor=remoteDispatch)"
	for _, bad := range steps {
		err := step.Run(within(t), steps, func(ctx context.Context, s step.Step, do func(context.Context) error) error {
			if s.Name == bad.Name {
				f.Daemon.Behave(fakelibvirt.Behaviour{Refuse: map[string]fakelibvirt.Refusal{
					"DOMAIN_UPDATE_DEVICE_FLAGS": {Code: 68, Message: busy}, "DOMAIN_SET_METADATA": {Code: 68, Message: busy},
				}})
				defer f.Daemon.Behave(fakelibvirt.Behaviour{})
			}
			return do(ctx)
		})
		if !errors.Is(err, libvirt.ErrTimeout) || f.state() != was {
			t.Errorf("%s refused: %s, %v", bad.Name, f.state(), err)
		}
		if bad.Name == "update-device" && !strings.Contains(err.Error(), "virsh domjobinfo") {
			t.Errorf("%s refused: %v, want what to do", bad.Name, err)
		}
	}
}
