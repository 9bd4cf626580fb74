package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vmnet/internal/kernel/fdpass"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/nstest"
	"vmnet/tapmgr/nic"
)

// attach is vmnet attach by nobody.
func (h *host) attach(vm, nic string, args ...string) result {
	h.Helper()
	return h.nobodysVMNet(append([]string{"attach", "--vm", vm, "--nic", nic}, args...)...)
}

func TestLiveAttachThroughTheHelper(t *testing.T) {
	h := newHost(t).withVMNet()
	h.plainQEMU("N2")
	h.ok(h.attach("N2", "net0", "--bridge", "br0", "--queues", "4", "--isolated"), "tap N2-net0 on br0 with isolated",
		"4 queues")
	h.ok(h.attach("N2", "net0", "--bridge", "br0", "--queues", "4", "--isolated"), "unchanged")
	h.ok(h.nobodysVMNet("list"), "N2-net0", "br0(isolated)", "forwarding")
	h.ok(h.nobodysVMNet("show", "N2"), "port with isolated", "QEMU, pid", "device vmnet-net0")
	nics, err := h.List(t.Context(), "N2")
	if err != nil || len(nics) != 1 || nics[0].UID != nobody || nics[0].Queues != 4 || nics[0].State != "forwarding" {
		t.Errorf("root sees %+v, %v", nics, err)
	}
	h.asItShouldBe()
	h.ok(h.attach("N2", "net1", "--bridge", "br0", "--dry-run"), "helper: "+h.program+" --attach")

	// A paused guest releases no device; with force it is cut off.
	h.fails(h.nobodysVMNet("detach", "--vm", "N2", "--nic", "net0", "--timeout", "300ms"), exitFailure,
		"--timeout allows more")
	h.ok(h.nobodysVMNet("detach", "--vm", "N2", "--nic", "net0", "--force"), "cut off")
	h.gone("N2-net0")
}

// TestLiveAttachCutShort has a NIC whose attach died once the guest had it: only root can say so in
// the alias.
func TestLiveAttachCutShort(t *testing.T) {
	h := newHost(t).withVMNet()
	h.plainQEMU("N2")
	h.ok(h.attach("N2", "net0", "--bridge", "br0"))
	l, err := h.nl.Link("N2-net0")
	if err == nil {
		err = h.nl.Set(l.Index, rtnl.Alias(l.Alias+" state=attaching"))
	}
	if err != nil {
		t.Fatal(err)
	}
	h.ok(h.nobodysVMNet("list"), "incomplete")
	r := h.attach("N2", "net0", "--bridge", "br0")
	h.ok(r, "unchanged")
	if !strings.Contains(r.stderr, "until vmnet reconcile as root") {
		t.Errorf("it does not name the cure for the alias: %s", r.stderr)
	}
	if err := h.nl.Set(l.Index, rtnl.Master(0)); err != nil {
		t.Fatal(err)
	}
	h.fails(h.attach("N2", "net0", "--bridge", "br0"), exitFailure, "N2-net0: bridge: want br0, found none")
	if got, err := h.Reconcile(h.context(20*time.Second), false); err != nil || len(got) == 0 {
		t.Errorf("reconcile %+v, %v", got, err)
	}
	h.asItShouldBe()
}

// asItShouldBe has all NICs checked.
func (h *host) asItShouldBe() {
	h.Helper()
	got, err := h.Check(h.context(20 * time.Second))
	if err != nil || len(got.Differences) != 0 {
		h.Errorf("check %+v, %v", got, err)
	}
}

func TestLiveAttachDenied(t *testing.T) {
	h := newHost(t).withVMNet()
	h.plainQEMU("N2")
	for _, c := range []struct {
		policy, nic string // the rule; empty: no file
		args        []string
		wants       []string
	}{
		{
			"", "net0",
			[]string{"--bridge", "br1"},
			[]string{"no line of " + h.path("bridge.conf") + " allows it (echo 'allow br1'"},
		},
		{
			"", "net0",
			[]string{"--bridge", "br0", "--vlan", "10"},
			[]string{"policy.yaml: it does not exist", "VLAN 10 may not be asked for", "vlans: [10]"},
		},
		{"", "net0", []string{"--bridge", "br0", "--hairpin"}, []string{"hairpin may not be asked for"}},
		{"", "net0", []string{"--macvtap", "lo"}, []string{
			"only root makes a macvtap while the guest runs",
			"qemu-netup --macvtap lo",
		}},
		{
			"{users: [65534], bridges: [br0], vlans: [20]}", "net0",
			[]string{"--bridge", "br0", "--vlan", "10"},
			[]string{h.path("policy.yaml") + ":2: VLAN 10 is not among 20 (add 10 to vlans)"},
		},
		{
			"{users: [65534], bridges: [br1]}", "net0",
			[]string{"--bridge", "br0"},
			[]string{h.path("policy.yaml") + ":2: bridge br0 is not among br1 (add br0 to bridges)"},
		},
		{"{users: [1], bridges: [br0]}", "net0", []string{"--bridge", "br0"}, []string{h.path("policy.yaml")}},
		{
			`{users: [65534], bridges: [br0], macs: ["02:00:00:00:00:00/24"]}`, "net0",
			[]string{"--bridge", "br0", "--mac", "02:00:01:00:00:00"},
			[]string{h.path("policy.yaml") + ":2: MAC 02:00:01:00:00:00 is not among 02:00:00:00:00:00/24"},
		},
		{
			"{users: [65534], bridges: [br0], queues: 2}", "net0",
			[]string{"--bridge", "br0", "--queues", "3"},
			[]string{h.path("policy.yaml") + ":2: 3 queues are more than 2"},
		},
		{"{users: [65534], bridges: [br0]", "net0", []string{"--bridge", "br0"}, []string{h.path("policy.yaml")}},
	} {
		_ = os.Remove(h.path("policy.yaml"))
		if c.policy != "" {
			h.policy(c.policy)
		}
		r := h.attach("N2", c.nic, c.args...)
		h.fails(r, exitFailure, c.wants...)
		h.fails(r, exitFailure, "vmnet: attach N2/net0: ")
		if n := h.taps(); n != 0 {
			t.Errorf("%v left %d taps", c.args, n)
		}
	}
	h.policy("{users: [65534], bridges: [br0], nics: 1}")
	h.ok(h.attach("N2", "net0", "--bridge", "br0"))
	h.fails(h.attach("N2", "net1", "--bridge", "br0"), exitFailure,
		h.path("policy.yaml")+
			":2: it would be NIC 2 of uid 65534, who may have 1 at one time (detach one, or raise nics)")
}

// TestLiveAttachToAnothersGuest has a guest of another user than nobody, whose monitor all may
// connect to.
func TestLiveAttachToAnothersGuest(t *testing.T) {
	h := newHost(t).withVMNet()
	socket := h.path("other.qmp")
	program, err := exec.LookPath(qemuProgram)
	nstest.Require(t, "qemu", err == nil, "install QEMU")
	cmd := h.command(program, "-name", "guest=N7", "-S", "-nodefaults", "-machine", "none", "-display", "none", "-qmp",
		"unix:"+socket+",server=on,wait=off")
	cmd.SysProcAttr.Credential = nil
	h.start(cmd)
	h.await("QEMU's monitor", func() error { return errors.Join(listens(socket), os.Chmod(socket, 0o777)) })
	h.fails(h.attach("N7", "net0", "--bridge", "br0"), exitFailure, "guest of another user", "runs as user root")
	h.fails(h.nobodysVMNet("attach", "--vm", "N7", "--qmp", socket, "--bridge", "br0"), exitFailure,
		"guest of another user")
	if n := h.taps(); n != 0 {
		t.Errorf("%d taps are left", n)
	}
}

// TestLiveAttachRaces asks for eight NICs of eight guests at once.
func TestLiveAttachRaces(t *testing.T) {
	h := newHost(t).withVMNet()
	h.policy("{users: [65534], bridges: [br0], nics: 3}")
	const guests, most = 8, 3
	for i := range guests {
		h.plainQEMU(fmt.Sprintf("N%d", i))
	}
	stop := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() { h.neverMore(most, stop) })
	var wg sync.WaitGroup
	for i := range guests {
		wg.Go(func() {
			r := h.attach(fmt.Sprintf("N%d", i), "net0", "--bridge", "br0")
			if r.code != 0 && !strings.Contains(r.stderr, "who may have 3 at one time") {
				t.Errorf("exit status %d: %s", r.code, r.stderr)
			}
		})
	}
	wg.Wait()
	close(stop)
	watch.Wait()
	nics, err := h.ListAll(t.Context(), "")
	if err != nil || len(nics) > most || h.taps() != len(nics) {
		t.Errorf("%d NICs and %d taps, %v, want at most %d", len(nics), h.taps(), err, most)
	}
	// What the race has left of the limit is available now, and no more.
	for i := range guests {
		r := h.attach(fmt.Sprintf("N%d", i), "net0", "--bridge", "br0")
		if r.code != 0 && !strings.Contains(r.stderr, "who may have 3 at one time") {
			t.Errorf("exit status %d: %s", r.code, r.stderr)
		}
	}
	if n := h.taps(); n != most {
		t.Errorf("%d taps, want %d", n, most)
	}
}

// neverMore watches that no more NICs than that are plugged in.
func (h *host) neverMore(most int, stop chan struct{}) {
	for {
		nics, err := h.List(h.Context(), "")
		if err != nil {
			h.Error(err)
			return
		}
		plugged := 0
		for _, n := range nics {
			if n.State == "forwarding" {
				plugged++
			}
		}
		if plugged > most {
			h.Errorf("%d NICs at one time: %+v", plugged, nics)
			return
		}
		select {
		case <-stop:
			return
		case <-time.After(time.Millisecond):
		}
	}
}

func TestLiveAttachWithoutAUsableHelper(t *testing.T) {
	h := newHost(t).withVMNet()
	h.plainQEMU("N2")
	h.reconfigure(0o755, nil)
	h.fails(h.attach("N2", "net0", "--bridge", "br0"), exitFailure, "CAP_NET_ADMIN is missing",
		"must be installed setuid root")
	if err := os.Remove(h.program); err != nil {
		t.Fatal(err)
	}
	h.fails(h.attach("N2", "net0", "--bridge", "br0"), exitFailure, "needs CAP_NET_ADMIN",
		"or install qemu-netup setuid root")
	if n := h.taps(); n != 0 {
		t.Errorf("%d taps are left", n)
	}
}

// TestLiveAttachKilled kills vmnet, or its helper, after ever longer.
func TestLiveAttachKilled(t *testing.T) {
	h := newHost(t).withVMNet()
	h.policy("{users: [65534], bridges: [br0], nics: 1}") // what is left counts
	for _, who := range []string{"vmnet", "the helper"} {
		t.Run(who, func(t *testing.T) {
			h := h.in(t)
			name := "K" + who[:1]
			q := h.plainQEMU(name)
			done := 0
			for delay := time.Duration(0); delay < 2*time.Second && done < 4; delay += time.Millisecond + delay/6 {
				if h.killedAfter(name, delay, who == "vmnet") {
					done++
				}
				if !h.recovers(name) {
					done++
				}
				q.kill() // a paused guest releases nothing
				h.gone(name + "-net0")
				q = h.plainQEMU(name)
			}
			if done == 0 {
				t.Error("no attach ended before it was killed: the grid is too short")
			}
			q.kill()
		})
	}
}

// killedAfter attaches, kills one of the two processes, and reports whether the attach was done by
// then.
func (h *host) killedAfter(vm string, delay time.Duration, parent bool) (done bool) {
	h.Helper()
	cmd := h.command(h.vmnet, "attach", "--vm", vm, "--bridge", "br0", "--timeout", "5s")
	task := h.start(cmd)
	pid := cmd.Process.Pid
	if !parent {
		pid = childOf(task)
	}
	select {
	case <-task.done:
	case <-time.After(delay):
	}
	if pid != 0 {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	<-task.done
	return cmd.ProcessState.Success()
}

// childOf waits for the only child of a process; 0 where that has ended without.
func childOf(t *task) (child int) {
	for {
		lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", t.Process.Pid))
		for _, l := range lists {
			text, _ := os.ReadFile(l)
			if _, err := fmt.Sscan(string(text), &child); err == nil {
				return child
			}
		}
		select {
		case <-t.done:
			return 0
		case <-time.After(time.Millisecond / 2):
		}
	}
}

// deadDevice is in the error about a guest that had the device when an attach was undone: a paused
// guest does not release it.
const deadDevice = "the guest has not released a former one"

// recovers demands that the same attach again gives the guest a NIC, whatever a kill left, and that
// all is as it should be then. It is not whole where the guest keeps a dead device.
func (h *host) recovers(vm string) (whole bool) {
	h.Helper()
	var r result
	h.await("attach again", func() error {
		r = h.attach(vm, "net0", "--bridge", "br0")
		if r.code != 0 && !strings.Contains(r.stderr, deadDevice) {
			return errors.New(r.stderr)
		}
		return nil
	})
	if r.code != 0 {
		h.gone(vm + "-net0")
		return false
	}
	nics, err := h.List(h.Context(), vm)
	if err != nil || len(nics) != 1 {
		h.Fatalf("%s has %+v, %v", vm, nics, err)
	}
	if nics[0].State == nic.Incomplete { // the user nobody may not write the alias
		if got, err := h.Reconcile(h.context(20*time.Second), false); err != nil || len(got) != 1 {
			h.Errorf("reconcile %+v, %v", got, err)
		}
		if nics, err = h.List(h.Context(), vm); err != nil || len(nics) != 1 || nics[0].State != "forwarding" {
			h.Errorf("%s has %+v, %v", vm, nics, err)
		}
	}
	h.asItShouldBe()
	return true
}

// TestLiveReconcileAfterAKill takes back, as root, what a vmnet left that died with QEMU holding
// the queues.
func TestLiveReconcileAfterAKill(t *testing.T) {
	h := newHost(t)
	sock, helper := h.client()
	h.wish(sock, "N9", 2)
	_, queues, err := sock.Receive(4096)
	if err != nil || len(queues) != 2 {
		t.Fatalf("%d queues, %v", len(queues), err)
	}
	_ = helper.Process.Kill()
	<-helper.done
	if nics, err := h.List(h.Context(), ""); err != nil || len(nics) != 1 || nics[0].State != nic.Attaching {
		t.Errorf("list %+v, %v: want it incomplete", nics, err)
	}
	fdpass.CloseAll(queues)
	h.gone("N9-net0")
	if got, err := h.Reconcile(h.context(20*time.Second), false); err != nil || len(got) != 0 {
		t.Errorf("reconcile %+v, %v", got, err)
	}
}

// client starts a helper as nobody, and speaks with it in vmnet's place.
func (h *host) client() (*fdpass.Socket, *task) {
	h.Helper()
	sock, theirs, err := fdpass.Pair()
	if err != nil {
		h.Fatal(err)
	}
	defer theirs.Close()
	h.Cleanup(func() { _ = sock.Close() })
	cmd := h.command(h.program, "--attach", "--fd=3")
	cmd.ExtraFiles = []*os.File{theirs}
	return sock, h.start(cmd)
}

func (h *host) wish(sock *fdpass.Socket, vm string, queues int) {
	h.Helper()
	text, err := json.Marshal(map[string]any{
		"vm": vm, "nic": "net0", "bridge": "br0", "port": "", "mac": "52:54:00:00:00:01",
		"model": "virtio-net-pci", "queues": queues, "mtu": 0, "vhost": false, "options": "",
	})
	if err == nil {
		err = sock.Send(text)
	}
	if err != nil {
		h.Fatal(err)
	}
}

// TestLiveHelperOfASlowClient pauses the client at each message and then ends it there: the helper
// ends, and with the client's own queues the tap.
func TestLiveHelperOfASlowClient(t *testing.T) {
	h := newHost(t)
	for _, step := range []string{"connected", "asked", "offered", "plugged", "killed while offered"} {
		sock, helper := h.client()
		var queues []*os.File
		if step != "connected" {
			h.wish(sock, "N9", 2)
		}
		if step != "connected" && step != "asked" {
			var err error
			if _, queues, err = sock.Receive(4096); err != nil || len(queues) != 2 {
				t.Fatalf("%s: %d queues, %v", step, len(queues), err)
			}
			select {
			case <-helper.done:
				t.Errorf("%s: the helper did not wait", step)
			case <-time.After(20 * time.Millisecond):
			}
		}
		switch step {
		case "plugged":
			if err := sock.Send([]byte(`{"plugged":true}`)); err != nil {
				t.Fatal(err)
			}
			if _, _, err := sock.Receive(4096); err != nil {
				t.Errorf("plugged: %v", err)
			}
		case "killed while offered":
			_ = helper.Process.Kill()
		default:
			_ = sock.Close()
		}
		ends(t, step, helper)
		fdpass.CloseAll(queues)
		h.gone("N9-net0")
		_ = sock.Close()
	}
}

func ends(t *testing.T, what string, helper *task) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), nstest.Patience(5*time.Second))
	defer cancel()
	select {
	case <-helper.done:
	case <-ctx.Done():
		t.Errorf("%s: the helper goes on", what)
	}
}
