package tapmgr_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/bridge"
	"vmnet/bridge/brport"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/qmp"
	"vmnet/step"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
)

var errFault = errors.New("injected fault")

// stepNames are the steps that an attach of the spec would take now.
func (h *host) stepNames(spec nic.Spec) []string {
	h.Helper()
	return h.stepNamesOf(func() error { _, err := h.Attach(h.context(10*time.Second), spec); return err })
}

// stepNamesOf are the names of the steps that a verb would run. None of them is run.
func (h *host) stepNamesOf(verb func() error) (names []string) {
	h.Helper()
	run := h.Run
	defer func() { h.Run = run }()
	h.Run = func(_ context.Context, list []step.Step) error {
		for _, s := range list {
			names = append(names, s.Name)
		}
		return nil
	}
	if err := verb(); err != nil {
		h.Fatal(err)
	}
	return names
}

// at runs do instead of the step of that name, which it may call.
func (h *host) at(name string, instead func(do func() error) error) {
	h.Run = func(ctx context.Context, list []step.Step) error {
		return step.Run(ctx, list, func(ctx context.Context, s step.Step, do func(context.Context) error) error {
			if s.Name != name {
				return do(ctx)
			}
			return instead(func() error { return do(ctx) })
		})
	}
}

// twoQueues is a NIC with more than one of everything that can fail.
func (g *guest) twoQueues(nic string) nic.Spec {
	spec := g.spec(nic)
	spec.Queues = 2
	return spec
}

// faultAtEveryStep fails each step of an attach before and after it was done, and has left look at
// what there is then.
func (h *host) faultAtEveryStep(spec nic.Spec, left func()) {
	h.Helper()
	h.faultAtEach(h.stepNames(spec), left, func() error {
		_, err := h.Attach(h.context(20*time.Second), spec)
		return err
	})
}

// faultAtEach is faultAtEveryStep for any verb, with the names of its steps.
func (h *host) faultAtEach(names []string, left func(), verb func() error) {
	h.Helper()
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
			if err := verb(); !errors.Is(err, errFault) || strings.Contains(err.Error(), "undo") {
				h.Errorf("%s, done %v: got %v, want only the fault", name, after, err)
			}
			left()
		}
	}
	h.Run = nil
}

// TestLiveFaultAtEveryStep fails each step before and after it was done, on a guest that
// runs and uses another NIC meanwhile.
func TestLiveFaultAtEveryStep(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	g := h.booted(testvm.Config{CPUs: 2})
	h.reach(g, h.attach(g.spec("net0")), guestAddr)
	spec := g.twoQueues("net1")
	before := monitorState(h, g)
	h.faultAtEveryStep(spec, func() { h.nothingLeft(g, "net1") })
	if after := monitorState(h, g); after != before {
		t.Errorf("QEMU changed from\n%s to\n%s", before, after)
	}
	h.ping(g)
	h.attach(spec)
	h.detach(g, "net1")
	h.nothingLeft(g, "net1")
}

// TestLiveQEMUKilledAtEveryStep needs a new guest each time, so it takes empty ones.
func TestLiveQEMUKilledAtEveryStep(t *testing.T) {
	h := newHost(t)
	for _, name := range h.stepNames(h.empty().twoQueues("net0")) {
		g := h.empty()
		h.at(name, func(do func() error) error {
			if err := g.Kill(); err != nil {
				return err
			}
			return do()
		})
		res, err := h.Attach(h.context(20*time.Second), g.twoQueues("net0"))
		if err == nil && res.NIC.Interface == "" {
			t.Errorf("%s: neither error nor NIC", name)
		}
		link, _ := nic.InterfaceName(g.name, "net0")
		h.gone(link)
	}
	h.Run = nil
}

// TestLiveSilentMonitor stops QEMU in the middle. What was sent to it must be taken
// back even though it answers only after we have given up.
func TestLiveSilentMonitor(t *testing.T) {
	t.Parallel() // it waits most of the time
	h := newHost(t)
	g := h.empty()
	for _, name := range h.stepNames(g.twoQueues("net0")) {
		h.at(name, func(do func() error) error {
			if err := g.Signal(syscall.SIGSTOP); err != nil {
				return err
			}
			return do()
		})
		ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
		start := time.Now()
		_, err := h.Attach(ctx, g.twoQueues("net0"))
		cancel()
		if d := time.Since(start); d > step.UndoTimeout {
			t.Errorf("%s: gave up after %v", name, d)
		}
		t.Logf("%s: %v", name, err)
		if err := g.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		h.Run = nil
		if err == nil { // it had all it needed from QEMU before
			_, err := h.Detach(h.context(10*time.Second),
				tapmgr.DetachSpec{Target: nic.Target{VM: g.name}, NIC: "net0", Force: true})
			if err != nil {
				t.Fatal(err)
			}
			h.gone(mustName(g))
			g = h.empty() // the dead device stays, this guest's processors stand still
			continue
		}
		if strings.HasPrefix(name, "device_add") {
			// The request may be run after all, and a standing guest never gives a device back.
			h.gone(mustName(g))
			g = h.empty()
			continue
		}
		h.nothingLeft(g, "net0")
	}
}

func TestLiveBridgeDeletedUnderThePort(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	g := h.empty()
	h.at("verify", func(do func() error) error {
		if err := h.deleteBridge("br0"); err != nil {
			return err
		}
		return do()
	})
	ctx := h.context(20 * time.Second)
	_, err := h.Attach(ctx, g.spec("net0"))
	if !errors.Is(err, nic.ErrLink) || !strings.Contains(err.Error(), "bridge was changed") {
		t.Errorf("during attach: got %v", err)
	}
	h.gone(mustName(g))
	h.Run = nil

	g = h.empty()
	h.bridge(bridge.Config{Name: "br0"})
	found := h.attach(g.spec("net0"))
	if err := h.deleteBridge("br0"); err != nil {
		t.Fatal(err)
	}
	if got := h.check(); len(got) != 1 || got[0].What != "bridge" || got[0].Want != "br0" {
		t.Errorf("check %+v: want the bridge to be missed", got)
	}
	if list, err := h.List(""); err != nil || list[0].State != nic.NoBridge {
		t.Errorf("list %+v, %v", list, err)
	}
	h.bridge(bridge.Config{Name: "br0"})
	h.reconciled(nic.Action{
		VM: g.name, NIC: "net0", Interface: found.Interface, Action: "put back on br0",
		Changed: true,
	})
	if got := h.check(); len(got) != 0 {
		t.Errorf("check after reconcile: %+v", got)
	}
	h.reconciled()
}

func (h *host) check() []nic.Difference {
	h.Helper()
	c, err := h.Check(h.context(10 * time.Second))
	if err != nil {
		h.Fatal(err)
	}
	return c.Differences
}

// reconciled reconciles and demands these actions.
func (h *host) reconciled(want ...nic.Action) {
	h.Helper()
	got, err := h.Reconcile(h.context(20*time.Second), false)
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		h.Errorf("reconcile: %+v, %v\nwant %+v", got, err, want)
	}
}

func TestLivePortOnAnotherBridgeIsReportedNotMoved(t *testing.T) {
	h := newHost(t)
	g := h.empty()
	made := h.attach(g.spec("net0"))
	h.bridge(bridge.Config{Name: "br1"})
	h.ip("link", "set", made.Interface, "master", "br1")
	if got := h.check(); len(got) != 1 || got[0].Found != "br1" {
		t.Errorf("check %+v: want br1 found", got)
	}
	h.reconciled(nic.Action{
		VM: g.name, NIC: "net0", Interface: made.Interface,
		Action: "left alone: it is a port of br1, not of br0",
	})
	if l, err := h.nl.Link(made.Interface); err != nil || h.masterOf(l) != "br1" {
		t.Errorf("%+v, %v: want it on br1 still", l, err)
	}
}

func (h *host) masterOf(l *rtnl.Link) string {
	h.Helper()
	m, err := h.nl.LinkByIndex(l.Master)
	if err != nil {
		h.Fatal(err)
	}
	return m.Name
}

func TestLivePortSettingsAreKeptTrue(t *testing.T) {
	h := newHost(t)
	g := h.empty()
	spec := g.spec("net0")
	spec.Port = brport.Settings{Isolated: true, NoLearning: true}
	found := h.attach(spec)
	if list, err := h.List(g.name); err != nil || list[0].Port != "isolated;nolearn" {
		t.Errorf("list %+v, %v", list, err)
	}
	if res, err := h.Attach(h.context(10*time.Second), spec); err != nil || res.Changed {
		t.Errorf("the same again: %+v, %v", res, err)
	}
	spec.Port = brport.Settings{Hairpin: true}
	if _, err := h.Attach(h.context(10*time.Second), spec); !errors.Is(err, nic.ErrExist) ||
		!strings.Contains(err.Error(), "port setting is isolated;nolearn") {
		t.Errorf("another setting: %v", err)
	}
	h.ip("link", "set", found.Interface, "type", "bridge_slave", "isolated", "off")
	if got := h.check(); len(got) != 1 || got[0].What != "port" {
		t.Errorf("check %+v: want the port to be missed", got)
	}
	h.settled()
	if got := h.check(); len(got) != 0 {
		t.Errorf("check after reconcile: %+v", got)
	}
	h.ip("link", "set", found.Interface, "nomaster")
	h.settled()
	if got := h.check(); len(got) != 0 {
		t.Errorf("check after it was put back: %+v", got)
	}
}

func TestLiveVLANsNeedABridgeThatFilters(t *testing.T) {
	h := newHost(t)
	g := h.empty()
	spec := g.spec("net0")
	spec.Port = brport.Settings{VLAN: 10}
	_, err := h.Attach(h.context(10*time.Second), spec)
	if !errors.Is(err, nic.ErrLink) || !strings.Contains(err.Error(), "VLAN") {
		t.Errorf("got %v", err)
	}
	h.nothingLeft(g, "net0")
}

func TestLiveNameTaken(t *testing.T) {
	h := newHost(t)
	g := h.empty()
	stranger, err := tun.Create(h.ns, mustName(g), false)
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	_, err = h.Attach(h.context(10*time.Second), g.spec("net0"))
	if !errors.Is(err, nic.ErrExist) || !errors.Is(err, syscall.EBUSY) ||
		!strings.Contains(err.Error(), "which vmnet did not make") {
		t.Errorf("got %v", err)
	}
	if _, err := h.nl.Link(mustName(g)); err != nil {
		t.Errorf("the stranger's link: %v", err)
	}
	h.reconciled()
	if state := monitorState(h, g); strings.Contains(state, "vmnet-") {
		t.Errorf("QEMU has\n%s", state)
	}
}

func TestLiveRefusedByQEMU(t *testing.T) {
	h := newHost(t)
	g := h.empty()
	ctx := h.context(20 * time.Second)
	for _, change := range []func(*nic.Spec){
		func(s *nic.Spec) { s.Model = "no-such-nic" },
		func(s *nic.Spec) { s.DeviceOptions = map[string]string{"no-such-property": "1"} },
		func(s *nic.Spec) { s.DeviceOptions = map[string]string{"rx_queue_size": "3"} },
	} {
		spec := g.twoQueues("net0")
		if change(&spec); spec.Model == "no-such-nic" {
			spec.Queues = 1
		}
		_, err := h.Attach(ctx, spec)
		var refusal *qmp.Error
		if !errors.Is(err, nic.ErrHandover) ||
			!errors.As(err, &refusal) && !strings.Contains(err.Error(), "-device help") {
			t.Errorf("%+v: got %v, want QEMU's refusal", spec, err)
		}
		h.nothingLeft(g, "net0")
	}
}

func TestLiveNoFreePort(t *testing.T) {
	h := newHost(t)
	g := h.booted(testvm.Config{Machine: "q35", SparePorts: 1, Paused: true})
	h.attach(g.spec("net0"))
	_, err := h.Attach(h.context(10*time.Second), g.spec("net1"))
	if !errors.Is(err, qmp.ErrNoPort) || !strings.Contains(err.Error(), "pcie-root-port") {
		t.Errorf("got %v, want the cure", err)
	}
	h.nothingLeft(g, "net1")
}

func TestLiveForeignDeviceOfOurName(t *testing.T) {
	h, elsewhere := newHost(t), newHost(t)
	g := h.empty()
	found := elsewhere.attach(g.spec("net0"))
	_, err := h.Attach(h.context(10*time.Second), g.spec("net0"))
	if !errors.Is(err, nic.ErrExist) || !strings.Contains(err.Error(), "another netns") {
		t.Errorf("got %v", err)
	}
	if _, err := elsewhere.nl.Link(found.Interface); err != nil {
		t.Errorf("the other NIC was hurt: %v", err)
	}
}

func TestReconcileLeavesStrangersAlone(t *testing.T) {
	h := newUserHost(t)
	const alias = "vmnet vm=%s nic=net0 type=tap source=br0 mac=52:54:00:00:00:01 model=virtio-net-pci queues=1 state=attaching"
	for name, alias := range map[string]string{
		"plain":   "",
		"worded":  "vmnet is a fine thing",
		"working": fmt.Sprintf(alias, "living"),
	} {
		tap, err := tun.Create(h.ns, name, false)
		if err != nil {
			t.Fatal(err)
		}
		defer tap.Close()
		l, err := h.nl.Link(name)
		if err == nil {
			err = h.nl.Set(l.Index, rtnl.Alias(alias))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	got, err := h.Reconcile(h.context(10*time.Second), false)
	if err != nil || len(got) != 1 || got[0].Changed || got[0].Interface != "working" {
		t.Errorf("reconcile %+v, %v: want only that a process works on one", got, err)
	}
	list, err := h.List("")
	if err != nil || len(list) != 1 || list[0].State != nic.Attaching {
		t.Errorf("list %+v, %v: want one that is attaching", list, err)
	}
	for _, name := range []string{"plain", "worded", "working"} {
		if _, err := h.nl.Link(name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
