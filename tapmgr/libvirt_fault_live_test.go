package tapmgr_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vmnet/internal/nstest"
	"vmnet/libvirt/libvirttest"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
)

// stored is a NIC with more than one of everything that can fail.
func (h *libvirtHost) stored(g *libvirttest.Guest, nic string) nic.Spec {
	spec := h.spec(g, nic)
	spec.Queues, spec.Persistent = 2, true
	return spec
}

// nothingLeft demands that neither the kernel nor libvirt knows of a NIC.
func (h *libvirtHost) nothingLeft(g *libvirttest.Guest, nicID string) {
	h.Helper()
	name, _ := nic.InterfaceName(g.Name, nicID)
	h.gone(name)
	for _, args := range [][]string{{"dumpxml", g.Name}, {"dumpxml", "--inactive", g.Name}} {
		if out := h.virt.Virsh(args...); strings.Contains(out, "ua-vmnet-"+nicID) ||
			strings.Contains(out, `id="`+nicID+`"`) {
			h.Errorf("virsh %v still has it:\n%s", args, out)
		}
	}
}

// TestLiveLibvirtFaultAtEveryStep fails each step of an attach before and after it was done, on a
// guest that uses another NIC meanwhile.
func TestLiveLibvirtFaultAtEveryStep(t *testing.T) {
	h := newLibvirtHost(t)
	g := h.domain(testvm.Domain{CPUs: 2})
	h.useNIC(g, h.attach(h.spec(g, "net0")), guestAddr, hostAddr)
	spec := h.stored(g, "net1")
	h.faultAtEveryStep(spec, func() { h.nothingLeft(g, "net1") })
	h.attach(spec)
	if out := h.virt.Virsh("dumpxml", "--inactive", g.Name); !strings.Contains(out, "ua-vmnet-net1") ||
		!strings.Contains(out, `id="net1"`) {
		t.Errorf("it is not stored:\n%s", out)
	}
	if res := h.take(g, "net1"); len(res.Notices) != 1 || !strings.Contains(res.Notices[0], "stored") {
		t.Errorf("notices %q", res.Notices)
	}
	res, err := h.Detach(h.context(20*time.Second),
		tapmgr.DetachSpec{Target: h.target(g), NIC: "net1", Persistent: true})
	if err != nil || !res.Changed {
		t.Errorf("%+v, %v", res, err)
	}
	h.nothingLeft(g, "net1")
	if _, err := g.Ping(h.context(20*time.Second), hostAddr); err != nil {
		t.Error(err)
	}
}

// TestLiveLibvirtKilledAtEveryStep kills vmnet before and after each step. What is left then,
// reconcile or the next attach clears up.
func TestLiveLibvirtKilledAtEveryStep(t *testing.T) {
	h := newLibvirtHost(t)
	g := h.domain(testvm.Domain{})
	spec := h.spec(g, "net0")
	name, _ := nic.InterfaceName(g.Name, "net0")
	for _, at := range h.stepNames(spec) {
		for _, after := range []bool{false, true} {
			for _, reconcile := range []bool{false, true} {
				what := fmt.Sprintf("%s, done %v, reconciled %v", at, after, reconcile)
				out, err := h.command(order{Spec: spec, Libvirt: h.Libvirt, KillAt: at, After: after}).CombinedOutput()
				if err == nil || len(out) != 0 {
					t.Errorf("%s: not killed: %v: %s", what, err, out)
				}
				if reconcile {
					h.reconciled(what)
				}
				if _, err := h.Attach(h.context(20*time.Second), spec); err != nil {
					t.Errorf("%s: attach again: %v", what, err)
				}
				if c, err := h.Check(h.context(20 * time.Second)); err != nil || c.NICs != 1 ||
					len(c.Differences)+len(c.Notices) != 0 {
					t.Errorf("%s: check %+v, %v", what, c, err)
				}
				h.take(g, "net0")
				h.gone(name)
			}
		}
	}
}

// reconciled demands that reconcile leaves nothing to do.
func (h *libvirtHost) reconciled(what string) {
	h.Helper()
	for round := range 2 {
		actions, err := h.Reconcile(h.context(20*time.Second), false)
		text, _ := json.Marshal(actions)
		if err != nil || strings.Contains(string(text), `"error"`) ||
			round == 1 && strings.Contains(string(text), `"changed":true`) {
			h.Errorf("%s: reconcile: %s, %v", what, text, err)
		}
	}
}

// TestLiveLibvirtdKilled ends libvirtd around the moment in which it plugs the NIC.
func TestLiveLibvirtdKilled(t *testing.T) {
	h := newLibvirtHost(t)
	g := h.domain(testvm.Domain{})
	spec := h.spec(g, "net0")
	for _, after := range []bool{false, true} {
		h.at("attach-device", func(do func() error) error {
			kill := func() error { return syscall.Kill(h.virt.PID(), syscall.SIGKILL) }
			if after {
				return errors.Join(do(), kill())
			}
			return errors.Join(kill(), do())
		})
		_, err := h.Attach(h.context(20*time.Second), spec)
		if !after && err == nil {
			t.Error("attached without libvirtd")
		}
		h.Run = nil
		h.virt.Await()
		h.reconciled("libvirtd killed")
		h.attach(spec)
		h.useNIC(g, h.listed(g), guestAddr, hostAddr)
		h.take(g, "net0")
		h.nothingLeft(g, "net0")
	}
}

func (h *libvirtHost) listed(g *libvirttest.Guest) nic.NIC {
	h.Helper()
	all, err := h.List(g.Name)
	if err != nil || len(all) != 1 {
		h.Fatalf("listed %+v, %v", all, err)
	}
	return all[0]
}

// TestLiveLibvirtAtOnce attaches and detaches many NICs of one guest at once, some of them the
// same.
func TestLiveLibvirtAtOnce(t *testing.T) {
	h := newLibvirtHost(t)
	g := h.domain(testvm.Domain{})
	each := func(f func(nic string) error) {
		var wg sync.WaitGroup
		for i := range 6 {
			wg.Go(func() {
				if err := f(fmt.Sprintf("net%d", i%3)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	each(func(nic string) error {
		_, err := h.Attach(h.context(60*time.Second), h.spec(g, nic))
		return err
	})
	if all, err := h.List(g.Name); err != nil || len(all) != 3 {
		t.Errorf("listed %+v, %v", all, err)
	}
	each(func(nic string) error {
		_, err := h.Detach(h.context(60*time.Second), tapmgr.DetachSpec{Target: h.target(g), NIC: nic})
		return err
	})
	for i := range 3 {
		h.nothingLeft(g, fmt.Sprintf("net%d", i))
	}
}

// TestLiveLibvirtDetachMeanwhile detaches from guests that boot, that end, and that do not answer.
func TestLiveLibvirtDetachMeanwhile(t *testing.T) {
	h := newLibvirtHost(t)
	g := h.virt.NewGuest(h, testvm.Domain{Name: h.name("P2")})
	g.Start()
	found := h.attach(h.spec(g, "net0"))
	h.take(g, "net0") // a request during boot is swallowed
	h.gone(found.Interface)
	g.Await()

	found = h.attach(h.spec(g, "net0"))
	h.virt.Virsh("suspend", g.Name) // paused, it never releases a device
	ctx := h.context(2 * time.Second)
	if _, err := h.Detach(ctx, tapmgr.DetachSpec{Target: h.target(g), NIC: "net0"}); err == nil ||
		!strings.Contains(err.Error(), "the guest") {
		t.Errorf("detached from a paused guest: %v", err)
	}
	if n := h.listed(g); n.State != nic.Detaching {
		t.Errorf("listed %+v", n)
	}
	res, err := h.Detach(h.context(20*time.Second), tapmgr.DetachSpec{Target: h.target(g), NIC: "net0", Force: true})
	if err != nil || len(res.Notices) == 0 {
		t.Errorf("forced: %+v, %v", res, err)
	}
	if l, err := h.nl.Link(found.Interface); err != nil || l.Up || l.Master != 0 {
		t.Errorf("not cut off: %+v, %v", l, err)
	}
	h.detachWhile(g, func() { h.virt.Virsh("destroy", g.Name) })
	h.gone(found.Interface)

	g.Boot()
	found = h.attach(h.spec(g, "net0"))
	h.virt.Virsh("suspend", g.Name)
	h.detachWhile(g, func() {
		if err := syscall.Kill(g.QEMU(), syscall.SIGKILL); err != nil {
			t.Error(err)
		}
	})
	h.gone(found.Interface)
}

// detachWhile ends the guest while it is asked for its NIC, which is success.
func (h *libvirtHost) detachWhile(g *libvirttest.Guest, end func()) {
	h.Helper()
	done := make(chan error)
	go func() {
		_, err := h.Detach(h.context(20*time.Second), tapmgr.DetachSpec{Target: h.target(g), NIC: "net0"})
		done <- err
	}()
	nstest.Eventually(h, 20*time.Second, "the guest was asked", func() bool {
		return nstest.Waiting("internal/guest.(*unplugging).awaitRemoved") == 1
	})
	end()
	if err := <-done; err != nil {
		h.Errorf("the guest ended meanwhile: %v", err)
	}
}

// TestLiveLibvirtRefusals are requests that libvirt cannot express, or that contradict what is
// there.
func TestLiveLibvirtRefusals(t *testing.T) {
	h := newLibvirtHost(t)
	g := h.domain(testvm.Domain{})
	plain := h.empty()
	h.attach(h.spec(g, "net0"))
	for _, test := range []struct {
		name   string
		change func(*nic.Spec)
		want   error
		text   string
	}{
		{"options", func(s *nic.Spec) {
			s.DeviceOptions = map[string]string{"rx_queue_size": "1024"}
		}, nic.ErrInvalid, "--via monitor"},
		{"model", func(s *nic.Spec) { s.Model = "virtio-net-device" }, nic.ErrInvalid, "no model"},
		{"not a libvirt guest", func(s *nic.Spec) {
			s.VM, s.Via = plain.name, nic.ViaLibvirt
		}, nic.ErrInvalid, "not libvirt's"},
		{"another way", func(s *nic.Spec) { s.NIC, s.Via = "net0", nic.ViaMonitor }, nic.ErrExist, "via is libvirt"},
		{"other queues", func(s *nic.Spec) { s.NIC, s.Queues = "net0", 2 }, nic.ErrExist, "queues is 1"},
		{"vhost", func(s *nic.Spec) { s.Vhost = nic.VhostOn }, nic.ErrLink, "vhost"},
	} {
		spec := h.spec(g, "net7")
		test.change(&spec)
		_, err := h.Attach(h.context(20*time.Second), spec)
		if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: got %v, want %v and %q", test.name, err, test.want, test.text)
		}
	}
	h.nothingLeft(g, "net7")
	h.Libvirt = h.virt.Socket() + "-none"
	if _, err := h.Attach(h.context(20*time.Second), h.spec(g, "net7")); err == nil ||
		!strings.Contains(err.Error(), "is libvirtd or virtqemud running") {
		t.Errorf("no libvirt: %v", err)
	}
}
