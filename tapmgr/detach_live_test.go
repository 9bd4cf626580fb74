package tapmgr_test

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vmnet/bridge"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/vmm/qemu"
	"vmnet/qmp"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
)

func (h *host) tryDetach(g *guest, timeout time.Duration, force bool) (tapmgr.DetachResult, error) {
	h.Helper()
	return h.Detach(h.context(timeout), tapmgr.DetachSpec{Target: nic.Target{VM: g.name}, NIC: "net0", Force: force})
}

func TestLiveGuestThatIgnoresTheUnplug(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	// Without ACPI nothing in the guest hears of it. The machine has hot-pluggable
	// slots all the same, but the guest sees a new NIC only when it looks.
	g := h.booted(testvm.Config{KernelArgs: []string{"acpi=off"}})
	found := h.attach(g.spec("net0"))
	if _, err := g.Guest.Exec(h.context(10*time.Second), "sh", "-c", "echo 1 > /sys/bus/pci/rescan"); err != nil {
		t.Fatal(err)
	}
	h.reach(g, found, guestAddr)

	waits := 0
	h.Progress = func(tapmgr.ProgressKind, string) { waits++ }
	_, err := h.tryDetach(g, 2500*time.Millisecond, false)
	if !errors.Is(err, qmp.ErrUnplugTimeout) || !errors.Is(err, context.DeadlineExceeded) || waits < 2 {
		t.Errorf("got %v after telling %d times that it waits, want a time-out", err, waits)
	}
	h.ping(g) // it works as before
	if list, err := h.List(g.name); err != nil || len(list) != 1 || list[0].State != nic.Detaching {
		t.Errorf("list %+v, %v: want detaching", list, err)
	}
	if _, err := h.Attach(h.context(10*time.Second), g.spec("net0")); !errors.Is(err, nic.ErrExist) {
		t.Errorf("attach meanwhile: got %v, want ErrExist", err)
	}
	h.reconciled(nic.Action{
		VM: g.name, NIC: "net0", Interface: found.Interface,
		Action: "left alone: the guest has not released it yet",
	})

	res, err := h.tryDetach(g, 10*time.Second, true)
	if err != nil || !strings.Contains(strings.Join(res.Notices, " "), "keeps the dead device") {
		t.Errorf("forced: %+v, %v: want a notice of what stays", res, err)
	}
	h.gone(found.Interface)
	if _, err := h.tryDetach(g, 2*time.Second, false); !errors.Is(err, qmp.ErrUnplugTimeout) {
		t.Errorf("the dead device: got %v, want a time-out", err)
	}
	_, err = h.Attach(h.context(10*time.Second), g.spec("net0"))
	if !errors.Is(err, nic.ErrExist) || !strings.Contains(err.Error(), "vmnet detach") {
		t.Errorf("attach over the dead device: got %v, want the cure", err)
	}
}

func TestLiveDetachWhileTheGuestBoots(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	g := h.booted(testvm.Config{NoWait: true})
	nic := h.attach(g.spec("net0"))
	if _, err := h.tryDetach(g, 60*time.Second, false); err != nil {
		t.Fatal(err)
	}
	h.nothingLeft(g, "net0")
	if _, err := g.Guest.WaitReady(h.context(60 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := g.Guest.WaitNICGone(h.context(20*time.Second), nic.MAC); err != nil {
		t.Error(err)
	}
}

func TestLiveDetachOfWhatIsGone(t *testing.T) {
	h := newHost(t)
	g := h.empty()
	if res, err := h.tryDetach(g, 10*time.Second, false); err != nil || res.Changed {
		t.Errorf("never attached: %+v, %v: want success without a change", res, err)
	}
	h.attach(g.spec("net0"))
	g.Stop()
	h.gone(mustName(g))
	if res, err := h.tryDetach(g, 10*time.Second, false); err != nil || res.Changed || len(res.Notices) != 1 {
		t.Errorf("guest gone: %+v, %v: want success with a notice", res, err)
	}
}

// TestLiveDetachFromAGuestThatEnds: a QEMU that was killed holds its taps a little longer than it
// is found as a guest.
func TestLiveDetachFromAGuestThatEnds(t *testing.T) {
	h := newHost(t)
	for range 8 {
		g := h.empty()
		found := h.attach(g.spec("net0"))
		if err := g.Signal(os.Kill); err != nil {
			t.Fatal(err)
		}
		if _, err := h.tryDetach(g, 20*time.Second, false); err != nil {
			t.Error(err)
		}
		h.gone(found.Interface)
	}
}

func TestLeftOverTapIsRemoved(t *testing.T) {
	h := newUserHost(t)
	makeLeftOver := func() {
		t.Helper()
		h.ip("tuntap", "add", "dead-net0", "mode", "tap")
		l, err := h.nl.Link("dead-net0")
		if err == nil {
			err = h.nl.Set(l.Index,
				rtnl.Alias(
					"vmnet vm=dead nic=net0 type=tap source=br0 mac=52:54:00:00:00:01 model=virtio-net-pci queues=1"))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	makeLeftOver()
	if list, err := h.List(""); err != nil || len(list) != 1 || list[0].State != nic.LeftOver {
		t.Errorf("list %+v, %v: want one left over", list, err)
	}
	dry, err := h.Reconcile(h.context(20*time.Second), true)
	if err != nil || len(dry) != 1 || !dry[0].Changed {
		t.Errorf("dry run: %+v, %v", dry, err)
	}
	if _, err := h.nl.Link("dead-net0"); err != nil {
		t.Errorf("the dry run changed something: %v", err)
	}
	h.reconciled(nic.Action{
		VM: "dead", NIC: "net0", Interface: "dead-net0", Action: "removed: nobody holds it",
		Changed: true,
	})
	h.gone("dead-net0")

	makeLeftOver()
	res, err := h.Detach(h.context(20*time.Second), tapmgr.DetachSpec{Target: nic.Target{VM: "dead"}, NIC: "net0"})
	if err != nil || !res.Changed {
		t.Errorf("detach: %+v, %v", res, err)
	}
	h.gone("dead-net0")
}

// ip runs ip(8) in the host's netns.
func (h *host) ip(args ...string) {
	h.Helper()
	h.ipIn(h.ns, args...)
}

func (h *host) ipIn(ns *netns.NS, args ...string) {
	h.Helper()
	if err := ns.Do(func() error { h.run("ip", args...); return nil }); err != nil {
		h.Fatal(err)
	}
}

// run runs a program and fails the test, from whatever goroutine, if that fails.
func (h *host) run(program string, args ...string) {
	h.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		h.Errorf("%s %s: %v: %s", program, strings.Join(args, " "), err, out)
	}
}

func TestLiveSTPIsANoticeAndCanBeWaitedFor(t *testing.T) {
	h := newHost(t)
	h.bridge(bridge.Config{Name: "br1", STP: true})
	h.ip("link", "set", "br1", "type", "bridge", "forward_delay", "200") // 2 s, the least
	g := h.empty()
	spec := g.spec("net0")
	spec.Bridge = "br1"
	res, err := h.Attach(h.context(10*time.Second), spec)
	if err != nil {
		t.Fatal(err)
	}
	if res.ForwardIn < 3*time.Second || res.ForwardIn > 4*time.Second ||
		!strings.Contains(strings.Join(res.Notices, " "), "forwards in about") {
		t.Errorf("%+v: want a notice of nearly 4 s", res)
	}
	if err := h.WaitForwarding(h.context(10*time.Second), res.NIC); err != nil {
		t.Error(err)
	}
	if list, _ := h.List(""); list[0].State != "forwarding" {
		t.Errorf("after the wait: %+v", list)
	}
}

func TestLiveWhichGuest(t *testing.T) {
	h := newHost(t)
	g := h.empty()
	twin := testvm.StartT(t, testvm.Config{Name: g.name, Paused: true})
	silentName := h.name("silent")
	silent := testvm.StartT(t, testvm.Config{Name: silentName, Paused: true, QMP: "none"})
	ctx := h.context(20 * time.Second)

	attempt := func(change func(*nic.Target)) error {
		spec := g.spec("net0")
		change(&spec.Target)
		_, err := h.Attach(ctx, spec)
		return err
	}
	if err := attempt(func(*nic.Target) {}); !errors.Is(err, qemu.ErrAmbiguous) {
		t.Errorf("two of one name: got %v", err)
	}
	if err := attempt(func(s *nic.Target) { s.PID = twin.Pid() }); err != nil {
		t.Errorf("named by process: %v", err)
	}
	if err := attempt(func(s *nic.Target) { s.QMP = twin.QMP }); err != nil {
		t.Errorf("named by socket: %v", err)
	}
	if err := attempt(func(s *nic.Target) {
		s.PID, s.QMP = g.Pid(), twin.QMP
	}); err == nil || !strings.Contains(err.Error(), "listens there") {
		t.Errorf("another guest's socket: got %v", err)
	}
	if err := attempt(func(s *nic.Target) {
		s.VM, s.PID = "someone-else", g.Pid()
	}); !errors.Is(err, nic.ErrOtherGuest) {
		t.Errorf("another guest's process: got %v", err)
	}
	if err := attempt(func(s *nic.Target) { s.VM, s.QMP = "someone-else", g.QMP }); !errors.Is(err, nic.ErrOtherGuest) {
		t.Errorf("another guest's socket, by name: got %v", err)
	}
	if err := attempt(func(s *nic.Target) { s.VM = "no-such-guest" }); !errors.Is(err, qemu.ErrNotFound) {
		t.Errorf("none: got %v", err)
	}
	if err := attempt(func(s *nic.Target) { s.VM, s.PID = "x", silent.Pid() }); !errors.Is(err, nic.ErrOtherGuest) {
		t.Errorf("a process of another name: got %v", err)
	}
	if err := attempt(func(s *nic.Target) { s.VM = h.likeLibvirts() }); !errors.Is(err, qemu.ErrLibvirt) {
		t.Errorf("libvirt's: got %v", err)
	}
	if err := attempt(func(s *nic.Target) { s.VM = silentName }); !errors.Is(err, qemu.ErrNoMonitor) {
		t.Errorf("no monitor: got %v", err)
	}
}

// likeLibvirts is a guest started as libvirt does it: QEMU inherits a monitor socket
// that somebody else listens on.
func (h *host) likeLibvirts() string {
	h.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(h.TempDir(), "monitor")})
	if err != nil {
		h.Fatal(err)
	}
	f, err := l.File()
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { _, _ = f.Close(), l.Close() })
	name := h.name("virt")
	testvm.StartT(h, testvm.Config{
		Name: name, Paused: true, QMP: "none", ExtraFiles: []*os.File{f},
		ExtraArgs: []string{
			"-chardev", "socket,id=charmonitor,fd=3,server=on,wait=off", "-mon",
			"chardev=charmonitor,id=monitor,mode=control",
		},
	})
	return name
}
