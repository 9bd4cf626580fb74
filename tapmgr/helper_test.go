package tapmgr_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/internal/network/roster"
	"vmnet/step"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

const helperEnv = "VMNET_TEST_HELPER"

// order is what a helper process does: one attach in the netns that is its fd 3.
type order struct {
	Spec   nic.Spec
	KillAt string // dies by SIGKILL at the step of that name
	After  bool   // when it was done
	Other  int    // kills that process first, and itself only once the step waits
	NoTun  bool   // sees no /dev/net/tun

	Prepare bool   // does the hook's part of the guest's start instead
	Set     bool   // changes the NIC to that Spec instead
	Commit  bool   // commits the guest's prepared NICs instead
	Abort   bool   // aborts them
	Libvirt string // URI

	Networks roster.Files

	Reconcile bool   // reconciles instead, with a /proc of its own pid namespace
	Hold      bool   // only holds the fds that it was given
	Flood     string // directory: listens like 64 switches there, says so, and answers ports without end
	Netns     uint64 // inode of the host's netns, for those
	Fill      int    // duplicates its fd 3 until it has so many files, says so and waits
	Race      int    // exchanges the files of that many fds for one another, those that it was given, for ever

	Forge  *forgery // becomes a forged QEMU
	Root   bool     // becomes root's and says something
	Answer bool     // serves fd 3 as a monitor

	Serve    string // path of a switch's control socket: only runs that switch
	Switches []string
}

// command is a process of this test binary that attaches.
func (h *host) command(o order) *exec.Cmd {
	h.Helper()
	text, err := json.Marshal(o)
	if err != nil {
		h.Fatal(err)
	}
	cmd := exec.CommandContext(h.context(30*time.Second), "/proc/self/exe")
	cmd.Env = append(os.Environ(), helperEnv+"="+string(text))
	ns, err := os.Open(h.ns.Path())
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { _ = ns.Close() })
	cmd.ExtraFiles = []*os.File{ns}
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if o.NoTun {
		cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS
	}
	return cmd
}

// helper is the process's main.
func helper() int {
	var o order
	err := json.Unmarshal([]byte(os.Getenv(helperEnv)), &o)
	if err == nil && o.Serve != "" {
		if err := serveSwitch(o.Serve); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}
	if err == nil && (o.Forge != nil || o.Root || o.Answer) {
		return o.pretend()
	}
	if err == nil && o.Hold {
		time.Sleep(time.Minute) // not a wait: it is there for so long
		return 0
	}
	if err == nil && o.Flood != "" {
		return flood(o.Flood, o.Netns)
	}
	if err == nil && o.Fill > 0 {
		return fill(o.Fill)
	}
	if err == nil && o.Race > 0 {
		return race(o.Race)
	}
	if err == nil && o.Reconcile {
		err = errors.Join(syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""),
			syscall.Mount("proc", "/proc", "proc", 0, ""))
	}
	if err == nil && o.NoTun {
		err = syscall.Mount("none", "/dev/net", "tmpfs", 0, "")
	}
	if err == nil {
		err = o.run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func (o order) run() error {
	m, err := tapmgr.Open("/proc/self/fd/3")
	if err != nil {
		return err
	}
	m.Libvirt = o.Libvirt
	m.AskSwitches, m.Switches = true, o.Switches
	m.Host().Networks = o.Networks
	m.Run = func(ctx context.Context, list []step.Step) error {
		return step.Run(ctx, list, func(ctx context.Context, s step.Step, do func(context.Context) error) error {
			switch {
			case s.Name == o.KillAt && o.Other != 0:
				_ = syscall.Kill(o.Other, syscall.SIGKILL)
				time.AfterFunc(200*time.Millisecond, die) // QEMU waits by then
			case s.Name == o.KillAt && !o.After:
				die()
			}
			err := do(ctx)
			if s.Name == o.KillAt {
				die()
			}
			return err
		})
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if o.Reconcile {
		actions, err := m.Reconcile(ctx, false)
		fmt.Println(actions)
		return err
	}
	if o.Prepare {
		_, err = m.Host().Prepare(ctx, o.Spec)
		return err
	}
	if o.Set {
		_, err = m.Set(ctx, o.Spec.Target, o.Spec.NIC, func(nic.Spec) (nic.Spec, error) { return o.Spec, nil })
		return err
	}
	switch {
	case o.Commit:
		_, err = m.Commit(ctx, o.Spec.Target, "", false)
		return err
	case o.Abort:
		_, _, err = m.Abort(ctx, o.Spec.Target, "")
		return err
	case o.Spec.Prepared:
		_, err = m.Prepare(ctx, o.Spec)
		return err
	}
	_, err = m.Attach(ctx, o.Spec)
	return err
}

// die is what kill -9 does.
func die() {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// TestLiveKilledAtEveryStep kills the attaching process at each step. Then reconcile alone
// must make all well: the NIC works, or nothing is left of it.
func TestLiveKilledAtEveryStep(t *testing.T) {
	h := newHost(t)
	g := h.empty()
	h.attach(g.spec("other"))
	spec := g.twoQueues("net0")
	plugged := 0
	for _, name := range h.stepNames(spec) {
		for _, after := range []bool{false, true} {
			cmd := h.command(order{Spec: spec, KillAt: name, After: after})
			out, err := cmd.CombinedOutput()
			if cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("%s: %v: %s", name, err, out)
			}
			h.settled()
			if diff := h.check(); len(diff) > 0 {
				t.Errorf("killed at %s, done %v: reconcile left %+v", name, after, diff)
			}
			nics, err := h.List(g.name)
			if err != nil {
				t.Fatal(err)
			}
			if len(nics) == 1 { // rolled back
				h.nothingLeft(g, "net0")
				continue
			}
			plugged++
			if res, err := h.Attach(h.context(10*time.Second), spec); err != nil || res.Changed {
				t.Errorf("killed at %s, done %v: the same again %+v, %v: want it there, unchanged",
					name, after, res, err)
			}
			if nics[0].State != "forwarding" {
				t.Errorf("killed at %s, done %v: %+v does not forward", name, after, nics[0])
			}
			g = h.empty() // a standing guest gives no device back
			h.attach(g.spec("other"))
			spec = g.twoQueues("net0")
		}
	}
	if plugged != 5 { // from device_add done to verify done
		t.Errorf("%d kills left a plugged NIC, want 5", plugged)
	}
}

func TestLiveReconcileIsNotNeededToAttachAgain(t *testing.T) {
	h := newHost(t)
	g := h.empty()
	spec := g.twoQueues("net0")
	cmd := h.command(order{Spec: spec, KillAt: "netdev_add vmnet-net0-netdev", After: true})
	if err := cmd.Run(); err == nil {
		t.Fatal("it was not killed")
	}
	if list, err := h.List(""); err != nil || len(list) != 1 || list[0].State != nic.Incomplete {
		t.Errorf("list %+v, %v: want one incomplete NIC", list, err)
	}
	if got := h.check(); len(got) == 0 {
		t.Error("check saw no difference")
	}
	h.attach(spec)
	if got := h.check(); len(got) != 0 {
		t.Errorf("check after the second attach: %+v", got)
	}
}

func TestLiveDetachAfterACrash(t *testing.T) {
	h := newHost(t)
	g := h.empty()
	cmd := h.command(order{Spec: g.twoQueues("net0"), KillAt: "getfd vmnet-net0-q1", After: true})
	if err := cmd.Run(); err == nil {
		t.Fatal("it was not killed")
	}
	h.detach(g, "net0")
	h.nothingLeft(g, "net0")
}

func TestLiveWithoutCapNetAdmin(t *testing.T) {
	h := newHost(t)
	g := h.empty()
	cmd := h.command(order{Spec: g.spec("net0")})
	const capDACOverride, capSysPtrace = 1, 19
	const capSysAdmin = 21 // to enter the netns; CAP_NET_ADMIN is what is missing
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
	cmd.SysProcAttr.AmbientCaps = []uintptr{capDACOverride, capSysPtrace, capSysAdmin}
	h.failsToAttach(cmd, g, "--pid") // another user's guest must be named by its process

	spec := g.spec("net0")
	spec.PID = g.Pid()
	cmd = h.command(order{Spec: spec})
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
	cmd.SysProcAttr.AmbientCaps = []uintptr{capDACOverride, capSysPtrace, capSysAdmin}
	h.failsToAttach(cmd, g, "needs CAP_NET_ADMIN")
}

func TestLiveWithoutTunDevice(t *testing.T) {
	h := newHost(t)
	g := h.empty()
	h.failsToAttach(h.command(order{Spec: g.spec("net0"), NoTun: true}), g, "modprobe tun")
}

func (h *host) failsToAttach(cmd *exec.Cmd, g *guest, cure string) {
	h.Helper()
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), cure) {
		h.Errorf("%v: %s\nwant a failure that names %q", err, out, cure)
	}
	h.nothingLeft(g, "net0")
}
