package tapmgr_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"vmnet/internal/backend"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

// named is a host on which a VMM, this process, opens a tap by its name.
type named struct {
	*host
	vm   string
	kept chan error // results of KeepTap
}

// newNamed returns one on which processes that wait for VMMs are goroutines, which end with the
// test.
func newNamed(t *testing.T) *named {
	t.Helper()
	t.Parallel()
	h := newUserHost(t)
	n := &named{host: h, vm: h.name("fc"), kept: make(chan error, 20)}
	var keepers sync.WaitGroup
	t.Cleanup(keepers.Wait)
	h.Keep = func(_ context.Context, vm, nicID string) error {
		ready := make(chan struct{})
		keepers.Go(func() {
			n.kept <- n.KeepTap(t.Context(), vm, nicID, func() error { close(ready); return nil })
		})
		<-ready
		return nil
	}
	return n
}

func (n *named) spec() tapmgr.TapSpec {
	return tapmgr.TapSpec{
		Spec: nic.Spec{Target: nic.Target{VM: n.vm}, NIC: "net0", Bridge: "br0"}, Wait: time.Hour,
	}
}

func (n *named) create(spec tapmgr.TapSpec) nic.NIC {
	n.Helper()
	res, err := n.CreateTap(n.context(20*time.Second), spec)
	if err != nil {
		n.Fatal(err)
	}
	return res.NIC
}

// open opens the tap as Firecracker does: by name, with the flags that the tap package has.
func (n *named) open(queues int) *tun.Tap {
	n.Helper()
	tap, err := tun.Open(n.ns, n.link().Name, queues > 1, queues)
	if err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() { tap.Close() })
	return tap
}

func (n *named) link() *rtnl.Link {
	n.Helper()
	name, _ := nic.InterfaceName(n.vm, "net0")
	l, err := n.nl.Link(name)
	if err != nil {
		n.Fatal(err)
	}
	return l
}

// is demands that state of the only NIC.
func (n *named) is(what string, want nic.State) {
	n.Helper()
	list, err := n.List("")
	if err != nil || len(list) != 1 || list[0].State != want || list[0].Via != nic.ViaName {
		n.Errorf("%s: %+v, %v; want state %s", what, list, err, want)
	}
}

func (n *named) detach(force bool) error {
	spec := tapmgr.DetachSpec{Target: nic.Target{VM: n.vm}, NIC: "net0", Force: force}
	res, err := n.Detach(n.context(20*time.Second), spec)
	if err == nil && !res.Changed {
		n.Errorf("detach has found nothing")
	}
	return err
}

// handedOver waits until the process that waits has given the tap to its VMM.
func (n *named) handedOver() {
	n.Helper()
	nstest.Eventually(n, 20*time.Second, "the VMM has the tap", func() bool { return !n.link().Tun.Persist })
	nstest.Eventually(n, 20*time.Second, "its alias says so", func() bool {
		r, ok := nic.ParseRecord(n.link().Alias)
		return ok && r.Phase == nic.PhasePlugged
	})
}

// TestTapByName: a tap waits for its VMM, and goes with it.
func TestTapByName(t *testing.T) {
	for _, queues := range []int{1, 2} {
		t.Run(strconv.Itoa(queues), func(t *testing.T) { testTapByName(t, queues) })
	}
}

func testTapByName(t *testing.T, queues int) {
	n := newNamed(t)
	spec := n.spec()
	spec.Queues = queues
	made := n.create(spec)
	if made.State != nic.Starting || made.Vhost != "off" {
		t.Errorf("made: %+v", made)
	}
	n.is("waiting", nic.Starting)
	if got := n.check(); len(got) > 0 {
		t.Errorf("waiting: check finds %+v", got)
	}
	if l := n.link(); !l.Tun.Persist || l.Tun.Attached || !l.Up || n.masterOf(l) != "br0" {
		t.Errorf("waiting: %+v", l)
	}
	tap := n.open(queues)
	n.handedOver()
	n.is("opened", "forwarding")
	if got := n.check(); len(got) > 0 {
		t.Errorf("opened: check finds %+v", got)
	}
	n.reconciled()
	if _, err := n.CreateTap(n.context(20*time.Second), spec); !errors.Is(err, nic.ErrExist) {
		t.Errorf("made again while a VMM has it: %v", err)
	}
	_, err := n.Set(n.context(20*time.Second), spec.Target, "net0",
		func(now nic.Spec) (nic.Spec, error) { return now, nil })
	if !errors.Is(err, nic.ErrInUse) {
		t.Errorf("set: %v", err)
	}
	if err := tap.Close(); err != nil {
		t.Error(err)
	}
	n.gone(made.Interface)
}

// TestTapByNameEnds: what detach does with such a tap.
func TestTapByNameEnds(t *testing.T) {
	n := newNamed(t)
	name := n.create(n.spec()).Interface
	first := n.link().Index
	n.create(n.spec())
	if n.link().Index == first {
		t.Error("the same again has not replaced the tap")
	}
	_, err := n.Detach(n.context(20*time.Second), tapmgr.DetachSpec{
		Target: nic.Target{VM: n.vm, PID: os.Getpid()}, NIC: "net0",
	})
	if !errors.Is(err, nic.ErrInUse) || !strings.Contains(err.Error(), "waits for a VMM") {
		t.Errorf("waiting, of a process: %v", err)
	}
	if err := n.detach(false); err != nil {
		t.Errorf("waiting: %v", err)
	}
	n.noLink(name)

	n.create(n.spec())
	tap := n.open(1)
	n.handedOver()
	if err := n.detach(false); !errors.Is(err, nic.ErrInUse) || !strings.Contains(err.Error(), "--force") {
		t.Errorf("opened: %v", err)
	}
	n.is("not detached", "forwarding")
	if err := n.detach(true); err != nil {
		t.Errorf("by force: %v", err)
	}
	n.is("cut off", nic.Detaching)
	if l := n.link(); l.Up || l.Master != 0 {
		t.Errorf("cut off: %+v", l)
	}
	if err := tap.Close(); err != nil {
		t.Error(err)
	}
	n.gone(name)
}

// TestTapByNameUnopened: a tap that no VMM opens in time is removed, and so is one whose process
// that waits was killed, by reconcile.
func TestTapByNameUnopened(t *testing.T) {
	n := newNamed(t)
	spec := n.spec()
	spec.Wait = 0
	keep := n.Keep
	n.Keep = func(context.Context, string, string) error { return nil } // it is killed at once
	name := n.create(spec).Interface
	n.is("left", nic.LeftOver)
	n.reconciled(nic.Action{
		VM: n.vm, NIC: "net0", Interface: name, Action: "removed: nobody holds it", Changed: true,
	})
	n.noLink(name)

	n.Keep = keep
	spec.Wait = time.Second
	name = n.create(spec).Interface
	n.gone(name)
	if err := <-n.kept; !errors.Is(err, backend.ErrNotOpened) {
		t.Errorf("the process that waits: %v", err)
	}
	if err := n.KeepTap(t.Context(), n.vm, "net0", nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("to wait for no tap: %v", err)
	}
}

// TestTapByNameAlone: reconcile does what the process that waits would have done.
func TestTapByNameAlone(t *testing.T) {
	n := newNamed(t)
	n.Keep = func(context.Context, string, string) error { return nil }
	name := n.create(n.spec()).Interface
	n.reconciled(nic.Action{
		VM: n.vm, NIC: "net0", Interface: name, Action: "left alone: it waits for a VMM that opens it by its name",
	})
	tap := n.open(1)
	n.is("opened", nic.Incomplete)
	if got := n.check(); len(got) != 1 || got[0].What != "attach" || got[0].MendedBy != nic.MendReconcile {
		t.Errorf("check finds %+v", got)
	}
	n.reconciled(nic.Action{
		VM: n.vm, NIC: "net0", Interface: name, Action: "its VMM has opened it, and it goes with that", Changed: true,
	})
	n.is("reconciled", "forwarding")
	n.reconciled()
	if err := tap.Close(); err != nil {
		t.Error(err)
	}
	n.gone(name)
}

// TestTapByNameFaults fails each step before and after it was done.
func TestTapByNameFaults(t *testing.T) {
	n := newNamed(t)
	spec := n.spec()
	create := func() error { _, err := n.CreateTap(n.context(20*time.Second), spec); return err }
	names := n.stepNamesOf(create)
	if want := "port persist wait keep"; !strings.HasSuffix(strings.Join(names, " "), want) {
		t.Errorf("steps %q, want %q", names, want)
	}
	name, _ := nic.InterfaceName(n.vm, "net0")
	n.faultAtEach(names, func() { n.gone(name) }, create)
	n.reconciled()
}

// TestTapByNameInvalid: what such a tap cannot have.
func TestTapByNameInvalid(t *testing.T) {
	n := newNamed(t)
	for what, change := range map[string]func(*tapmgr.TapSpec){
		"a switch":    func(s *tapmgr.TapSpec) { s.Bridge, s.Switch = "", &nic.Switch{Name: "sw0"} },
		"an MTU":      func(s *tapmgr.TapSpec) { s.MTU = 1400 },
		"auto queues": func(s *tapmgr.TapSpec) { s.Queues = nic.QueuesAuto },
		"no carrier":  func(s *tapmgr.TapSpec) { s.LinkDown = true },
		"an option":   func(s *tapmgr.TapSpec) { s.DeviceOptions = map[string]string{"rombar": "0"} },
	} {
		spec := n.spec()
		change(&spec)
		if _, err := n.CreateTap(n.context(20*time.Second), spec); !errors.Is(err, nic.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
