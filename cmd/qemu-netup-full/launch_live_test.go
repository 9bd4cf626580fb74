package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"vmnet/internal/cli/console"
	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/netns"
	"vmnet/macvtap/vtap"
	"vmnet/tapmgr/nic"
	"vmnet/testvm"
	"vmnet/testvm/traffic"
	"vmnet/vhost"
)

func TestLiveNobodyGetsWhatIsAllowed(t *testing.T) {
	h := newHost(t)
	h.ok(h.nobodys("--vm", "P3", "--bridge", "br0", "--queues", "2", "--", "/bin/sh", "-c",
		"echo $VMNET_JSON; grep Cap /proc/self/status"),
		`"interface":"P3-net0"`, "CapPrm:\t0000000000000000")
	h.gone("P3-net0")
	h.fails(h.nobodys("--vm", "P3", "--bridge", "br1", "--vmm", "env", "--", "/bin/true"), exitFailure,
		"no line of "+h.path("bridge.conf")+" allows it")
	if n := h.taps(); n != 0 {
		t.Errorf("%d taps are left", n)
	}
}

// guest is a tiny one whose QEMU the user nobody has started by qemu-netup.
type guest struct {
	*testvm.VM
	name string
}

// boot starts a guest: qemu-netup's options stand before --, and edit changes QEMU's own.
func (h *host) boot(c testvm.Config, edit string, options ...string) *guest {
	h.Helper()
	testvm.Require(h)
	c.Kernel = h.kernel()
	c.Netns = h.ns.Path()
	c.QEMU = h.starter(c.Name, edit, options)
	if edit == ":" {
		c.Emulator = qemuProgram
	}
	return &guest{testvm.StartT(h, c), c.Name}
}

// kernel is the guests', with an image that nobody may read.
func (h *host) kernel() testvm.Kernel {
	h.Helper()
	kernel, err := testvm.FindKernel()
	if err != nil {
		h.Fatal(err)
	}
	parts := testvm.Parts{Kernel: kernel.Image}
	if err := parts.CopyKernel(h.path(".")); err != nil {
		h.Fatal(err)
	}
	kernel.Image = parts.Kernel
	return kernel
}

// starter is a program that is started in QEMU's place: it gives the machine's directory to nobody
// and becomes nobody, and then qemu-netup and QEMU.
func (h *host) starter(name, edit string, options []string) string {
	h.Helper()
	line := append([]string{h.program}, options...)
	script := fmt.Sprintf(`#!/bin/bash
set -e
args=()
for arg; do
	case $arg in */initramfs) chown -R %[1]d:%[1]d "${arg%%/*}" ;; esac
	%[2]s
	args+=("$arg")
done
cd /
export XDG_RUNTIME_DIR=%[3]s
exec setpriv --reuid %[1]d --regid %[1]d --clear-groups %[4]s -- %[5]s "${args[@]}"
`, nobody, edit, console.Quote([]string{h.path("run")}), console.Quote(line), qemuProgram)
	path := h.path("start-" + name)
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		h.Fatal(err)
	}
	return path
}

// toMicroVM makes the command line of a machine with PCI one without. Nor has it the emulated timer
// by which a kernel measures its clocks: that fails while other programs run, and the guest hangs.
const toMicroVM = `arg=${arg/#pc,accel/microvm,pit=off,pic=off,accel}; arg=${arg/#virtio-serial-pci/virtio-serial-device}`

// steadyClock replaces measured times.
var steadyClock = []string{"tsc_early_khz=2500000"}

func TestLiveGuests(t *testing.T) {
	testvm.Require(t)
	h := newHost(t).withVMNet()
	h.kernel()
	for i, c := range []struct {
		name   string
		edit   string
		config testvm.Config
		queues int
		plugs  bool // NICs come and go while it runs
	}{
		{"pc", ":", testvm.Config{}, 4, true},
		{"q35", ":", testvm.Config{Machine: "q35", QMP: "none", Cold: true}, 4, true},
		{"microvm", toMicroVM, testvm.Config{Modules: []string{"virtio_mmio"}, KernelArgs: steadyClock}, 4, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel() // what they share does not change
			h := h.in(t)
			c.config.Name = "P" + c.name
			g := h.boot(c.config, c.edit, "--bridge", "br0", "--queues", fmt.Sprint(c.queues), "--qmp",
				"auto", "--vhost", "off")
			nic := h.one(g)
			if nic.Queues != c.queues || nic.State != "forwarding" || nic.PID != g.Pid() || nic.UID != nobody {
				t.Errorf("listed %+v", nic)
			}
			h.reach(g, nic, fmt.Sprintf("10.7.0.%d", i+2))
			h.hasNothing(g, c.queues, 0)
			h.seen(g, c.queues)
			if c.plugs {
				h.unplugAndPlug(g, nic)
			}
			h.killed(g, nic)
		})
	}
}

// in is the host for a subtest.
func (h *host) in(t *testing.T) *host {
	i, inner := *h.installation, *h
	i.TB = t
	inner.installation = &i
	return &inner
}

// one is the guest's only NIC, as root sees it.
func (h *host) one(g *guest) nic.NIC {
	h.Helper()
	nics, err := h.List(h.Context(), g.name)
	if err != nil || len(nics) != 1 {
		h.Fatalf("%s has %+v, %v", g.name, nics, err)
	}
	return nics[0]
}

// reach makes the guest use its NIC with an address of br0's network, and pings both ways.
func (h *host) reach(g *guest, nic nic.NIC, addr string) {
	h.Helper()
	h.use(g, nic, addr+"/24")
	h.pings(g, hostAddr)
	h.pinged(h.ns, addr)
}

func (h *host) use(g *guest, nic nic.NIC, addr string) {
	h.Helper()
	if err := g.Guest.UseNIC(h.context(30*time.Second), nic.MAC, addr); err != nil {
		h.Fatal(err)
	}
}

func (h *host) pings(g *guest, addr string) {
	h.Helper()
	if _, err := g.Guest.Ping(h.context(10*time.Second), addr); err != nil {
		h.Errorf("the guest pings %s: %v", addr, err)
	}
}

func (h *host) pinged(from *netns.NS, addr string) {
	h.Helper()
	ctx := h.context(10 * time.Second)
	err := from.Do(func() error {
		_, err := traffic.SendPing(ctx, traffic.Ping{Addr: addr, Count: 50, UntilFirst: true})
		return err
	})
	if err != nil {
		h.Errorf("ping %s: %v", addr, err)
	}
}

// hasNothing checks that QEMU runs as nobody in each thread, without a privilege and without extra
// fds.
func (h *host) hasNothing(g *guest, queues, netns int) {
	h.Helper()
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", g.Pid()))
	for _, name := range tasks {
		status, err := os.ReadFile(name)
		if err != nil {
			continue // the thread has ended
		}
		for _, want := range []string{
			"Uid:\t65534\t65534\t65534\t65534\n", "Gid:\t65534\t65534\t65534\t65534\n", "Groups:\t \n",
			"CapInh:\t0000000000000000\n", "CapPrm:\t0000000000000000\n", "CapEff:\t0000000000000000\n",
			"CapAmb:\t0000000000000000\n",
		} {
			if !strings.Contains(string(status), want) {
				h.Errorf("%s lacks %q:\n%s", name, want, status)
			}
		}
	}
	if len(tasks) == 0 {
		h.Errorf("QEMU has no threads")
	}
	h.fds(g, queues, netns)
}

// fds counts those of our devices. Of the others none leads out of what QEMU opened itself.
func (h *host) fds(g *guest, queues, netns int) {
	h.Helper()
	links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", g.Pid()))
	gotQueues, gotNetns := 0, 0
	for _, l := range links {
		target, err := os.Readlink(l)
		dir, base := filepath.Split(target)
		switch {
		case err != nil:
		case strings.HasPrefix(base, "net:["):
			gotNetns++
		case strings.HasPrefix(target, "/memfd:"): // QEMU's own, or a label
		case target == "/dev/net/tun", strings.HasPrefix(base, "tap"), strings.Contains(target, "macvtap"),
			strings.Contains(target, "(deleted)"):
			gotQueues++
		case strings.HasPrefix(target, "anon_inode:"), strings.HasPrefix(target, "socket:"),
			strings.HasPrefix(target, "pipe:"):
		case target == "/dev/null", target == vhost.Device, base == "console", base == "stderr", base == "kvm",
			base == "initramfs", strings.HasPrefix(base, "vmlinu"):
		default:
			h.Errorf("QEMU has %s open as fd %s (%s)", target, filepath.Base(l), dir)
		}
	}
	if gotQueues != queues || gotNetns != netns {
		h.Errorf("QEMU has %d queues and %d netns, want %d and %d", gotQueues, gotNetns, queues, netns)
	}
}

// seen demands that the user nobody can look at the NIC of its own guest by vmnet.
func (h *host) seen(g *guest, queues int) {
	h.Helper()
	h.ok(h.nobodysVMNet("list"), g.name+"-", "forwarding")
	h.ok(h.nobodysVMNet("show", g.name), "queues", fmt.Sprintf("QEMU, pid %d", g.Pid()), "device vmnet-net0")
}

// unplugAndPlug does so as the user nobody, the latter through the helper.
func (h *host) unplugAndPlug(g *guest, found nic.NIC) {
	h.Helper()
	h.ok(h.nobodysVMNet("detach", "--vm", g.name, "--nic", "net0"), "detached")
	h.gone(found.Interface)
	for _, id := range []string{"net0", "net1"} {
		h.ok(h.nobodysVMNet("attach", "--vm", g.name, "--nic", id, "--bridge", "br0", "--queues", "4",
			"--vhost", "off"), "4 queues")
	}
	ctx := h.context(30 * time.Second)
	if _, err := g.Guest.WaitNIC(ctx, nic.DefaultMAC(g.name, "net1").String()); err != nil {
		h.Errorf("the NIC that was attached does not reach the guest: %v", err)
	}
	h.ok(h.nobodysVMNet("detach", "--vm", g.name, "--nic", "net1"), "detached")
}

// killed kills QEMU: nothing may be left.
func (h *host) killed(g *guest, nic nic.NIC) {
	h.Helper()
	if err := g.Kill(); err != nil {
		h.Fatal(err)
	}
	if err := g.Wait(h.context(10 * time.Second)); errors.Is(err, context.DeadlineExceeded) {
		h.Error(err)
	}
	h.gone(nic.Interface)
	if nics, err := h.List(h.Context(), g.name); err != nil || len(nics) != 0 {
		h.Errorf("left %+v, %v", nics, err)
	}
}

const farAddr = "10.8.0.1"

func TestLiveMacvtap(t *testing.T) {
	testvm.Require(t)
	h := newHost(t)
	far := h.far(farAddr)
	launch := []string{"--vm", "Pmac", "--macvtap", "eth0", "--vhost", "off"}
	vmm := append(launch, "--vmm", "env", "--", "/bin/true")
	h.fails(h.nobodys(vmm...), exitFailure, "it does not exist, and without it lower eth0 may not be asked for",
		"lowers: [eth0]")
	h.policy("{users: [65534], lowers: [eth1]}")
	h.fails(h.nobodys(vmm...), exitFailure, "policy.yaml:2: lower eth0 is not among eth1 (add eth0 to lowers)")
	h.free()

	h.policy("{users: [65534], lowers: [eth0]}")
	g := h.boot(testvm.Config{Name: "Pmac"}, ":", launch...)
	found := h.one(g)
	if found.Type != "macvtap" || found.Source != "eth0" || found.State != nic.Up ||
		found.PID != g.Pid() || found.UID != nobody {
		t.Errorf("listed %+v", found)
	}
	h.use(g, found, "10.8.0.2/24")
	h.pings(g, farAddr)
	h.pinged(far, "10.8.0.2")
	h.hasNothing(g, 1, 1)
	if err := g.Kill(); err != nil {
		t.Fatal(err)
	}
	h.free()
}

// TestLiveLaunchKilled kills qemu-netup after ever longer, and at last what it has become.
func TestLiveLaunchKilled(t *testing.T) {
	h := newHost(t)
	h.far(farAddr)
	h.policy("{users: [65534], bridges: [br0], lowers: [eth0]}")
	became := 0
	for delay := time.Duration(0); delay < 2*time.Second && became < 3; delay += time.Millisecond {
		task := h.start(h.command(h.program, "--vm", "P8", "--bridge", "br0", "--queues", "4", "--vhost", "off",
			"--next-nic", "--macvtap", "eth0", "--vhost", "off", "--vmm", "env", "--", "/bin/sleep", "1000"))
		time.Sleep(delay) // not a wait: how far it is when it is killed
		if name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", task.Process.Pid)); string(name) == "sleep\n" {
			became++
		}
		task.kill()
		h.gone("P8-net0")
	}
	if became == 0 {
		t.Error("it was killed before it became anything, each time")
	}
	h.free()
}

// free demands that nothing is left on eth0: passthru is allowed only then.
func (h *host) free() {
	h.Helper()
	h.await("eth0 is not free", func() error {
		lower, err := h.nl.Link("eth0")
		if err != nil {
			return err
		}
		d, err := macvlan.Create(h.nl, lower,
			vtap.Config{Kind: vtap.Macvtap, Name: "probe", Mode: "passthru", MAC: lower.MAC})
		if err != nil {
			return err
		}
		return d.Close()
	})
}

// TestLiveVMM has a VMM that is not QEMU receive what the outside sends, and try what it may not.
func TestLiveVMM(t *testing.T) {
	h := newHost(t)
	far := h.far(farAddr)
	h.policy("{users: [65534], bridges: [br0], lowers: [eth0]}")
	vmm := h.vmm()
	br0, err := h.nl.Link("br0")
	if err != nil {
		t.Fatal(err)
	}
	h.ip(far, "link", "set", "far0", "address", "02:00:00:00:00:01")
	for _, c := range []struct {
		options []string
		ping    func() // makes somebody ask who has an address
		want    seen
	}{
		{
			[]string{"--bridge", "br0", "--queues", "2"},
			func() { h.asks(h.ns, "10.7.0.99") },
			seen{
				Frame: br0.MAC.String(), Second: "operation not permitted", Reopen: "a queue of nothing",
				Enter: "there is none",
			},
		},
		{
			[]string{"--macvtap", "eth0"},
			func() { h.asks(far, "10.8.0.99") },
			seen{
				Frame: "02:00:00:00:00:01", Second: "operation not permitted", Reopen: "permission denied",
				Enter: "operation not permitted",
			},
		},
	} {
		cmd := h.command(h.program, append(append([]string{"--vm", "P4", "--vhost", "off"}, c.options...), "--",
			vmm, "before", "{vmnet}", "after")...)
		cmd.Env = append(cmd.Env, vmmEnv+"=1")
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		task := h.start(cmd)
		for running := true; running; {
			c.ping()
			select {
			case <-task.done:
				running = false
			case <-time.After(50 * time.Millisecond):
			}
		}
		var got seen
		if err := json.Unmarshal(stdout.Bytes(), &got); err != nil {
			t.Fatalf("%v: %s%s", err, &stdout, &stderr)
		}
		line := strings.Join(got.Args, " ")
		if !strings.HasPrefix(line, "before -netdev tap,id=vmnet-net0-netdev,fds=") ||
			!strings.HasSuffix(line, " after") {
			t.Errorf("arguments %q", line)
		}
		got.Args = nil
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%v (-want +got):\n%s", c.options, diff)
		}
	}
	h.free()
	h.gone("P4-net0")
}

// asks sends to an address that nobody has: an ARP request is what all others get of it.
func (h *host) asks(from *netns.NS, addr string) {
	_ = from.Do(func() error {
		conn, err := net.Dial("udp", addr+":9")
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Write([]byte("x"))
		return err
	})
}
