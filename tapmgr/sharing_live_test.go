package tapmgr_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vmnet/internal/nstest"
	"vmnet/internal/rundir"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
	"vmnet/testvm/traffic"
)

// sharing is a guest whose memory a switch can map.
func (h *host) sharing(c testvm.Config) *guest {
	h.Helper()
	h.sharesRun()
	c.MemoryMiB = 128
	c.ExtraArgs = append(c.ExtraArgs,
		"-object", "memory-backend-memfd,id=mem,size=128M", "-machine", "memory-backend=mem")
	return h.booted(c)
}

// sharers counts the tests whose QEMUs listen in this package's own /run.
var sharers struct {
	sync.Mutex
	n int
}

// sharesRun says that a test's QEMUs listen in /run, where the last such test leaves nothing.
func (h *host) sharesRun() {
	sharers.Lock()
	defer sharers.Unlock()
	sharers.n++
	h.Cleanup(func() {
		sharers.Lock()
		defer sharers.Unlock()
		if sharers.n--; sharers.n == 0 {
			_ = os.RemoveAll(rundir.System)
		}
	})
}

// noSockets demands that no socket of the guest's QEMU is left where switches find them.
func (s *userSwitch) noSockets(g *guest) {
	s.Helper()
	left, err := filepath.Glob(filepath.Join(rundir.System, "vhost-user-*", fmt.Sprintf("%d-*", g.Pid())))
	if err != nil || len(left) > 0 {
		s.Errorf("sockets are left: %q, %v", left, err)
	}
}

// TestLiveSharedMemory has one guest that shares its memory with a switch: every fault, traffic, a
// switch that is killed, and the verbs.
func TestLiveSharedMemory(t *testing.T) {
	nstest.RequireRoot(t)
	h := newHost(t)
	s := h.runSwitch()
	private := h.empty()
	_, err := h.Attach(h.context(20*time.Second), s.on(private, "net0", nic.ByVhostUser))
	if !errors.Is(err, nic.ErrHandover) ||
		!strings.Contains(err.Error(), "not shared (share it: qemu-netup --via vhost-user, or memory-backend-memfd") {
		t.Errorf("a guest with private memory: %v", err)
	}
	s.left(private)

	g := h.sharing(testvm.Config{})
	spec := s.on(g, "net0", nic.ByVhostUser)
	before := monitorState(h, g)
	h.faultAtEveryStep(spec, func() { s.left(g); s.noSockets(g) })
	if after := monitorState(h, g); after != before {
		t.Errorf("QEMU changed from\n%s to\n%s", before, after)
	}

	near := s.behind()
	found := h.attach(spec)
	ctx := h.context(2 * time.Minute)
	if found.Type != nic.TypeVhostUser || !found.Switch {
		t.Errorf("%+v", found)
	}
	if err := g.Guest.UseNIC(ctx, found.MAC, guestA+"/24"); err != nil {
		t.Fatal(err)
	}
	tcp, udp := served(t, near, behindTap)
	talk(t, ctx, g, "vhost-user to a tap", behindTap, tcp, udp)
	if list, err := h.List(g.name); err != nil || len(list) != 1 || list[0].State != "forwarding" {
		t.Errorf("list %+v, %v", list, err)
	}
	if place, err := h.OpenCapture(ctx, g.name, "net0"); err != nil || place.Switch == "" || place.Port == "" {
		t.Errorf("captured at %+v, %v", place, err)
	}
	if diff := h.check(); len(diff) > 0 {
		t.Errorf("check %+v", diff)
	}
	if res, err := h.Attach(ctx, spec); err != nil || res.Changed {
		t.Errorf("the same attach again: %+v, %v", res, err)
	}
	_, err = h.Set(ctx, nic.Target{VM: g.name}, "net0", func(now nic.Spec) (nic.Spec, error) {
		now.LinkDown = true
		return now, nil
	})
	if !errors.Is(err, nic.ErrInvalid) || !strings.Contains(err.Error(), "whenever its switch connects") {
		t.Errorf("set --link down: %v", err)
	}

	s.kill()
	diff := h.check()
	if len(diff) != 1 || !strings.Contains(diff[0].Mend, "reconcile") {
		t.Errorf("check without a switch: %+v", diff)
	}
	ctx = h.context(2 * time.Minute)
	ping := traffic.Ping{Addr: behindTap, Timeout: 200 * time.Millisecond}
	if r, err := g.Guest.PingWith(ctx, ping); err == nil {
		t.Errorf("a ping without a switch: %+v", r)
	}
	ping.Count, ping.UntilFirst = 600, true
	answered := make(chan error, 1)
	go func() {
		_, err := g.Guest.PingWith(ctx, ping)
		answered <- err
	}()
	s.start()
	s.asksAgain()
	h.settled()
	again := s.behind()
	if err := <-answered; err != nil {
		t.Errorf("pings since no switch ran: %v", err)
	}
	tcp, udp = served(t, again, behindTap)
	talk(t, ctx, g, "after a restart", behindTap, tcp, udp)
	if diff := h.check(); len(diff) > 0 {
		t.Errorf("check after a restart: %+v", diff)
	}

	h.attach(s.on(g, "net1", nic.ByTap))
	s.kill()
	s.start()
	s.asksAgain()
	for _, want := range []int{2, 0} { // nothing is to do the second time
		actions, err := h.Rejoin(ctx)
		if err != nil || len(actions) != want {
			t.Errorf("rejoin: %+v, %v: want %d actions", actions, err, want)
		}
		for _, a := range actions {
			if a.Error != "" || !strings.HasPrefix(a.Action, "joined again") {
				t.Errorf("rejoin: %+v", a)
			}
		}
	}
	h.detach(g, "net1")
	h.detach(g, "net0")
	h.nothingLeft(g, "net0")
	s.noSockets(g)
	h.reconciled()
}

// TestLiveSharedMemoryKilled kills the attaching process at each step, and the switch and QEMU at
// those in between.
func TestLiveSharedMemoryKilled(t *testing.T) {
	nstest.RequireRoot(t)
	h := newHost(t)
	s := h.runSwitch()
	g := h.sharing(testvm.Config{Paused: true})
	for _, name := range h.stepNames(s.on(g, "net0", nic.ByVhostUser)) {
		spec := s.on(g, "net0", nic.ByVhostUser)
		out, err := h.command(order{Spec: spec, KillAt: name, After: true, Switches: []string{s.path}}).CombinedOutput()
		if err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("%s: %v: %s", name, err, out)
		}
		h.settled()
		if diff := h.check(); len(diff) > 0 {
			t.Errorf("killed at %s: what is left: %+v", name, diff)
		}
		nics, err := h.List(g.name)
		switch {
		case err != nil:
			t.Fatal(err)
		case len(nics) == 0:
			s.left(g)
			s.noSockets(g)
		default: // a standing guest gives no device back
			if err := g.Kill(); err != nil {
				t.Fatal(err)
			}
			s.noPort()
			g = h.sharing(testvm.Config{Paused: true})
		}
	}
}

// TestLiveSharedMemoryWithoutSwitch: a switch that ends, or is paused, while QEMU waits for it
// keeps QEMU waiting no longer than the attach.
func TestLiveSharedMemoryWithoutSwitch(t *testing.T) {
	nstest.RequireRoot(t)
	t.Parallel() // it waits most of the time
	h := newHost(t)
	s := h.runSwitch()
	g := h.sharing(testvm.Config{Paused: true})
	for _, sig := range []syscall.Signal{syscall.SIGSTOP, syscall.SIGKILL} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		h.at("netdev_add vmnet-net0-netdev", func(do func() error) error {
			s.signal(sig)
			if sig == syscall.SIGKILL {
				_ = s.cmd.Wait()
			}
			time.AfterFunc(200*time.Millisecond, cancel) // QEMU waits by then
			return do()
		})
		_, err := h.Attach(ctx, s.on(g, "net0", nic.ByVhostUser))
		cancel()
		h.Run = nil
		if err == nil {
			t.Errorf("%v: the attach succeeded", sig)
		}
		if state := monitorState(h, g); strings.Contains(state, "vmnet-net0") { // QEMU answers
			t.Errorf("%v: QEMU still has it:\n%s", sig, state)
		}
		if sig == syscall.SIGSTOP {
			s.signal(syscall.SIGCONT)
			s.settledByAnswer()
		}
	}
	s.start()
	s.asksAgain()
	h.settled()
	s.left(g)
	s.noSockets(g)
}

// TestLiveSharedMemoryAllKilled: a QEMU whose switch and vmnet were killed while it adds a NIC
// waits for a switch. Reconcile frees it, and so does the next switch.
func TestLiveSharedMemoryAllKilled(t *testing.T) {
	nstest.RequireRoot(t)
	t.Parallel() // it waits most of the time
	h := newHost(t)
	s := h.runSwitch()
	g := h.sharing(testvm.Config{Paused: true})
	before := monitorState(h, g)
	for _, again := range []bool{false, true} {
		h.killed(order{
			Spec: s.on(g, "net0", nic.ByVhostUser), KillAt: "netdev_add vmnet-net0-netdev",
			Other: s.cmd.Process.Pid, Switches: []string{s.path},
		})
		_ = s.cmd.Wait()
		if again {
			s.start()
			s.asksAgain()
		}
		h.settled()
		if after := monitorState(h, g); after != before { // QEMU answers
			t.Errorf("QEMU changed from\n%s to\n%s", before, after)
		}
		if !again {
			s.start()
			s.asksAgain()
		}
		s.left(g)
		s.noSockets(g)
	}
}

// TestLiveSharedMemoryOfAnotherUser: a switch of another user gets a guest's memory only if it may,
// also when it was started again.
func TestLiveSharedMemoryOfAnotherUser(t *testing.T) {
	nstest.RequireRoot(t)
	t.Parallel()
	h := newHost(t)
	s := h.nobodysSwitch()
	g := h.sharing(testvm.Config{Paused: true})
	attach := func() error {
		_, err := h.Attach(h.context(20*time.Second), s.on(g, "net0", nic.ByVhostUser))
		return err
	}
	const refusal = "is uid 65534's, and the guest uid 0's: run the switch as that user or root"
	if err := attach(); !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), refusal) {
		t.Errorf("without a rule: %v", err)
	}
	s.left(g)
	asked := 0
	allow := func(uid, owner int) error {
		if asked++; uid != 0 || owner != 65534 {
			t.Errorf("asked for a guest of %d and a switch of %d", uid, owner)
		}
		return nil
	}
	h.MayShare = allow
	if err := attach(); err != nil || asked == 0 {
		t.Fatalf("with a rule: %v, asked %d times", err, asked)
	}
	if diff := h.check(); len(diff) > 0 {
		t.Errorf("check %+v", diff)
	}
	if port := s.onlyPort(); port.Kind != "vhost-user" {
		t.Errorf("port %+v", port)
	}
}
