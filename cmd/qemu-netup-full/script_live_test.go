package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vmnet/bridge/brport"
	"vmnet/internal/kernel/bridges"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/kernel/tun"
	"vmnet/internal/nstest"
)

// scripts are qemu-ifup and qemu-ifdown, as they are installed.
func (h *host) scripts() (up, down string) {
	h.Helper()
	up, down = h.path("qemu-ifup"), h.path("qemu-ifdown")
	for _, link := range []string{up, down} {
		if err := os.Symlink(filepath.Base(h.program), link); err != nil {
			h.Fatal(err)
		}
	}
	return up, down
}

// tap makes a persistent tap that a user owns.
func (h *host) tap(name, user string) {
	h.Helper()
	h.ip(h.ns, "tuntap", "add", "dev", name, "mode", "tap", "user", user)
}

// port is the bridge that a link is a port of, and what else there is to see of it; empty for none.
func (h *host) port(name string) (br string, l *rtnl.Link) {
	h.Helper()
	l, err := h.nl.Link(name)
	if err != nil {
		h.Fatal(err)
	}
	if l.Master == 0 {
		return "", l
	}
	b, err := h.nl.LinkByIndex(l.Master)
	if err != nil {
		h.Fatal(err)
	}
	return b.Name, l
}

const scriptPolicy = `rules:
- {users: ["*"], bridges: ["*"]}
profiles:
  lab: {bridge: br1, isolated: true}
scripts:
- {interface: "lab*", profile: lab}
`

// Real QEMUs of root and of the user nobody call the scripts; when one ends its tap is off the
// bridge and down.
func TestLiveQEMUCallsTheScripts(t *testing.T) {
	h := newHost(t)
	h.config("policy.yaml", scriptPolicy)
	h.config("bridge.conf", "allow all\n")
	up, down := h.scripts()
	for _, c := range []struct {
		tap, bridge, port string
		root              bool
	}{
		{tap: "vm0", bridge: "br0"},
		{tap: "lab0", bridge: "br1", port: "isolated"},
		{tap: "vm1", bridge: "br0", root: true},
		{tap: "lab1", bridge: "br1", port: "isolated", root: true},
	} {
		user := "nobody"
		if c.root {
			user = "root"
		}
		h.tap(c.tap, user)
		cmd := h.qemu("P1", "-netdev", "tap,id=n0,ifname="+c.tap+",script="+up+",downscript="+down, "-device",
			"virtio-net-pci,netdev=n0")
		cmd.Stderr = os.Stderr
		if c.root {
			cmd.SysProcAttr.Credential = nil
		}
		guest := h.start(cmd)
		h.await(c.tap+" on "+c.bridge, func() error { // the script sets one thing after the other
			n := h.nicOf("P1")
			br, l := h.port(c.tap)
			if n.Interface != c.tap || n.Source != c.bridge || n.Port != c.port || n.PID != guest.Process.Pid ||
				br != c.bridge || !l.Up || l.Port.Isolated != (c.port != "") {
				return fmt.Errorf("listed as %+v, on %q as %+v", n, br, l)
			}
			return nil
		})
		h.catches(guest.Process.Pid, unix.SIGTERM)
		_ = guest.Process.Signal(unix.SIGTERM) // by which QEMU ends in order
		<-guest.done
		if br, l := h.port(c.tap); br != "" || l.Up || l.Alias != "" {
			t.Errorf("%s after QEMU: on %q, %+v", c.tap, br, l)
		}
	}
}

// catches waits until a process has a handler for a signal.
func (h *host) catches(pid int, s unix.Signal) {
	h.Helper()
	h.await("a handler", func() error {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return err
		}
		_, rest, _ := strings.Cut(string(status), "\nSigCgt:\t")
		text, _, _ := strings.Cut(rest, "\n")
		caught, err := strconv.ParseUint(text, 16, 64)
		if err == nil && caught&(1<<(s-1)) == 0 {
			err = fmt.Errorf("signals %#x have one", caught)
		}
		return err
	})
}

func TestLiveScriptsRefuse(t *testing.T) {
	h := newHost(t)
	h.config("policy.yaml", scriptPolicy) // bridge.conf allows br0 alone
	up, down := h.scripts()
	h.tap("lab0", "nobody")
	r := h.do(h.qemu("P1", "-netdev", "tap,id=n0,ifname=lab0,script="+up+",downscript="+down))
	if r.code == 0 || !strings.Contains(r.stderr, `qemu-netup: bridge "br1": no line of `) ||
		!strings.Contains(r.stderr, "network script "+up+" failed with status 256") {
		t.Errorf("a denial: exit status %d, %s", r.code, r.stderr)
	}
	h.tap("vm0", "root")
	h.tap("vm1", "nobody")
	h.fails(h.do(h.command(up, "vm0")), exitFailure, "its queue is not open here")
	h.fails(h.do(h.command(up, "vm1")), exitFailure, "its queue is not open here") // its own, but not proven
	h.fails(h.do(h.command(down, "vm0")), exitFailure, "its queue is not open here")
	h.fails(h.do(h.command(up, "br0")), exitFailure, "is not a tap")
	h.fails(h.do(h.command(up, "nosuch")), exitFailure, "interface nosuch")
	h.ok(h.do(h.command(down, "nosuch")))
	h.fails(h.do(h.command(up)), exitUsage, "0 arguments")
	h.fails(h.do(h.command(up, "vm0", "vm1")), exitUsage, "2 arguments")
	h.fails(h.do(h.command(up, "--bridge=br1", "vm0")), exitUsage, "unknown flag")
	h.fails(h.do(h.command(up, "a/b")), exitUsage, "want 1 to 15 bytes")
	h.fails(h.do(h.command(up, strings.Repeat("x", 200))), exitUsage, "want 1 to 15 bytes")
	for _, name := range []string{"vm0", "vm1", "lab0"} {
		if br, l := h.port(name); br != "" || l.Up {
			t.Errorf("%s is on %q, %+v", name, br, l)
		}
	}
}

// Root proves nothing; both names of a form mean the same; and what vmnet gave a guest is left
// alone.
func TestLiveScriptsOfRoot(t *testing.T) {
	h := newHost(t)
	up, down := h.scripts()
	h.tap("vm0", "nobody")
	root := func(program string, args ...string) result {
		cmd := h.command(program, args...)
		cmd.SysProcAttr.Credential = nil
		return h.do(cmd)
	}
	for _, steps := range [][2][]string{
		{{up, "vm0"}, {down, "vm0"}},
		{{h.program, "ifup", "vm0"}, {h.program, "ifdown", "vm0"}},
	} {
		h.ok(root(steps[0][0], steps[0][1:]...))
		h.ok(root(steps[0][0], steps[0][1:]...)) // it is there already
		if br, l := h.port("vm0"); br != "br0" || !l.Up {
			t.Errorf("up: on %q, %+v", br, l)
		}
		h.ok(root(steps[1][0], steps[1][1:]...))
		if br, l := h.port("vm0"); br != "" || l.Up {
			t.Errorf("down: on %q, %+v", br, l)
		}
	}
	h.fails(root(down, "vm0"), exitFailure, "qemu-ifup did not put vm0 on a bridge")
	b, err := bridges.Get(h.nl, "br1")
	if err != nil {
		t.Fatal(err)
	}
	_, l := h.port("vm0")
	if err := bridges.AddPort(h.nl, b, l, brport.Settings{}); err != nil {
		t.Fatal(err)
	}
	h.fails(root(up, "vm0"), exitFailure, "it is a port of br1 now")
	if br, _ := h.port("vm0"); br != "br1" {
		t.Errorf("taken off to %q", br)
	}
	if nics, err := h.ListAll(t.Context(), ""); err != nil || len(nics) != 0 {
		t.Errorf("%+v, %v", nics, err)
	}
}

// held makes a persistent tap of the user nobody and opens its queue, as a VMM does that then calls
// its script.
func (h *host) held(name string) *os.File {
	h.Helper()
	h.tap(name, "nobody")
	return h.queueOf(h.ns, name)
}

// queueOf opens the queue of a tap.
func (h *host) queueOf(ns *netns.NS, name string) (queue *os.File) {
	h.Helper()
	err := ns.Do(func() error {
		fd, err := unix.Open(tun.Device, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		req, err := unix.NewIfreq(name)
		if err == nil {
			req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
		}
		queue = os.NewFile(uintptr(fd), tun.Device)
		return err
	})
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { _ = queue.Close() })
	return queue
}

// with prepares a script that inherits a queue.
func (h *host) with(queue *os.File, program string, args ...string) *exec.Cmd {
	cmd := h.command(program, args...)
	cmd.ExtraFiles = []*os.File{queue}
	return cmd
}

const oneNIC = "rules: [{users: ['*'], bridges: [br0], nics: 1}]\n"

// A tap that is on the bridge already, as after a crash, counts once.
func TestLiveScriptsCountATapOnce(t *testing.T) {
	h := newHost(t)
	h.config("policy.yaml", oneNIC)
	up, down := h.scripts()
	first, second := h.held("vm0"), h.held("vm1")
	for range 2 {
		h.ok(h.do(h.with(first, up, "vm0")))
		h.ok(h.do(h.with(first, up, "vm0")))
		h.fails(h.do(h.with(second, up, "vm1")), exitFailure, "policy.yaml:1")
		if br, l := h.port("vm1"); br != "" || l.Up || l.Alias != "" {
			t.Errorf("vm1, which was refused: on %q, %+v", br, l)
		}
		h.ok(h.do(h.with(first, down, "vm0")))
	}
	h.ok(h.do(h.with(second, up, "vm1")))
}

// Of several that are asked for at once there is at most one, and those that were refused are as
// they were.
func TestLiveScriptsAtOnce(t *testing.T) {
	h := newHost(t)
	h.config("policy.yaml", oneNIC)
	up, _ := h.scripts()
	wait, begin, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	var tasks []*task
	for i := range 6 {
		name := fmt.Sprint("vm", i)
		cmd := h.with(h.held(name), "/bin/sh", "-c", "read line; exec "+up+" "+name)
		cmd.Stdin = wait
		tasks = append(tasks, h.start(cmd))
	}
	if err := errors.Join(wait.Close(), begin.Close()); err != nil {
		t.Fatal(err)
	}
	on := 0
	for i, task := range tasks {
		<-task.done
		br, l := h.port(fmt.Sprint("vm", i))
		if br != "" {
			on++
		}
		if done := task.ProcessState.ExitCode() == 0; done != (br == "br0") || done != l.Up || done != (l.Alias != "") {
			t.Errorf("exit status %d, on %q, %+v", task.ProcessState.ExitCode(), br, l)
		}
	}
	if on > 1 {
		t.Errorf("%d taps are on the bridge", on)
	}
}

// A tap of that name elsewhere proves nothing, however few files may be opened.
func TestLiveScriptsProofIsHard(t *testing.T) {
	h := newHost(t)
	up, down := h.scripts()
	h.tap("vm0", "root")
	far := nstest.New(t)
	h.ip(far, "tuntap", "add", "dev", "vm0", "mode", "tap")
	queue := h.queueOf(far, "vm0")
	for files := 4; files <= 16; files++ {
		for _, script := range []string{up, down} {
			r := h.do(h.with(queue, "/bin/sh", "-c", fmt.Sprintf("ulimit -n %d && exec %s vm0", files, script)))
			if br, l := h.port("vm0"); r.code == 0 || br != "" || l.Up || l.Alias != "" {
				t.Errorf("with %d files: exit status %d, on %q, %+v", files, r.code, br, l)
			}
		}
	}
}
