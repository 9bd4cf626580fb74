package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmnet/tapmgr/nic"
)

// daemon is a QEMU without a guest that goes on in the background, with its pid.
func (h *host) daemon(name string) (args []string, pid func() int) {
	file := h.path("run/" + name + ".pid")
	args = []string{
		"qemu-system-x86_64", "-M", "pc,accel=tcg", "-m", "16", "-nodefaults", "-display", "none", "-S", "-name",
		"guest=" + name, "-pidfile", file,
	}
	h.Cleanup(func() { // whatever has become of it
		if pid := pidIn(file); pid > 1 {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	return args, func() int {
		h.Helper()
		h.await("the pid file", func() error {
			if pidIn(file) == 0 {
				return fmt.Errorf("%s has no pid", file)
			}
			return nil
		})
		pid := pidIn(file)
		if pid <= 1 { // a signal to it would be one to all
			h.FailNow()
		}
		return pid
	}
}

func pidIn(file string) int {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return pid
}

// TestLiveDaemonizedOnASwitch: a port stays with the process that has the guest's socket, whichever
// process the program had become, and goes with it. So does a tap on a bridge.
func TestLiveDaemonizedOnASwitch(t *testing.T) {
	h := newHost(t).withVMNet()
	sw := h.runSwitch(h.path("run"), nobody)
	h.AskSwitches, h.Switches = true, []string{sw}
	for _, form := range []struct {
		name          string
		before, after []string // QEMU's command line
	}{
		{"Pd", nil, []string{"-daemonize"}},
		{"Ps", []string{"sh", "-c", `exec >/dev/null 2>&1; "$@" &`, "sh"}, []string{"{vmnet}"}},
	} {
		args, pid := h.daemon(form.name)
		command := append(append([]string{
			"--vm", form.name, "--switch", sw, "--next-nic", "--bridge", "br0", "--vhost",
			"off", "--qmp", h.path("run/" + form.name + ".qmp"), "--",
		}, form.before...), args...)
		h.ok(h.nobodys(append(command, form.after...)...))
		qemu := pid()
		h.await("both NICs to be there", func() error {
			nics, err := h.List(h.Context(), form.name)
			if err != nil || len(nics) != 2 {
				return fmt.Errorf("listed %+v, %w", nics, err)
			}
			for _, n := range nics {
				if n.State != "forwarding" || n.PID != qemu {
					return fmt.Errorf("listed %+v, want QEMU %d", n, qemu)
				}
			}
			return nil
		})
		h.ok(h.nobodysVMNet("switch", "show", sw), "heir of ")
		c, err := h.Check(h.context(10 * time.Second))
		if err != nil || len(c.Differences) != 0 {
			t.Errorf("%s: check %+v, %v", form.name, c, err)
		}
		if err := syscall.Kill(qemu, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		h.await("port and tap to go", func() error {
			if ports, taps := h.ports(sw), h.taps(); len(ports) != 0 || taps != 0 {
				return fmt.Errorf("%+v, %d taps", ports, taps)
			}
			return nil
		})
	}
}

// TestLiveWrappers: the NIC reaches a QEMU behind wrappers, by another name, or with a machine from
// a file; where that is not sure, nothing is made.
func TestLiveWrappers(t *testing.T) {
	h := newHost(t).withVMNet()
	link := h.path("run/vendor")
	if err := os.Symlink("/usr/bin/qemu-system-x86_64", link); err != nil {
		t.Fatal(err)
	}
	config := h.path("run/rc")
	if err := os.WriteFile(config, []byte("[machine]\n  type = \"q35\"\n[name]\n  guest = \"Pw\"\n"),
		0o644); err != nil {
		t.Fatal(err)
	}
	qemu := strings.Fields("qemu-system-x86_64 -accel tcg -m 16 -nodefaults -display none -S -name guest=Pw")
	for what, line := range map[string][]string{
		"wrappers": append(strings.Fields("env -u X taskset -c 0 nice -n 1"), qemu...),
		"a link":   append([]string{link}, qemu[1:]...),
		"a file": {
			"qemu-system-x86_64", "-accel", "tcg", "-m", "16", "-nodefaults", "-display", "none", "-S", "-readconfig",
			config,
		},
		"a shell": append([]string{"sh", "-c", `"$@"; true`, "sh"}, append(qemu, "{vmnet}")...),
	} {
		task := h.start(h.command(h.program, append([]string{
			"--vm", "Pw", "--bridge", "br0", "--vhost", "off", "--qmp",
			"auto", "--",
		}, line...)...))
		var nic nic.NIC
		h.await(what+": the NIC to be held by QEMU", func() error {
			nics, err := h.List(h.Context(), "Pw")
			if err != nil || len(nics) != 1 {
				return fmt.Errorf("listed %+v, %w", nics, err)
			}
			nic = nics[0] // until QEMU runs, the wrappers have it
			exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", nic.PID))
			if err != nil || filepath.Base(exe) != "qemu-system-x86_64" {
				return fmt.Errorf("process %d runs %q, %w", nic.PID, exe, err)
			}
			return nil
		})
		h.await(what+": the guest to have it", func() error {
			c, err := h.Check(h.context(5 * time.Second))
			if err == nil && (len(c.Differences) != 0 || len(c.Notices) != 0) {
				err = fmt.Errorf("%+v", c)
			}
			return err
		})
		if what == "a file" {
			argv, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", nic.PID))
			if err != nil || strings.Count(string(argv), "pcie-root-port") != 3 {
				t.Errorf("%s: %q, %v, want a port and two spare ones", what, argv, err)
			}
		}
		if err := syscall.Kill(nic.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-task.done
		h.noTaps()
	}
	for want, line := range map[string][]string{
		"is not known as QEMU":           append([]string{"wrap"}, qemu...),
		"closes all files":               append([]string{"sudo"}, qemu...),
		"sh runs a text of its own":      {"sh", "-c", strings.Join(qemu, " ")},
		`option "--colour" is not known`: append([]string{"taskset", "--colour"}, qemu...),
		"start qemu-netup there instead": append([]string{"systemd-run"}, qemu...),
		"no program follows taskset":     {"taskset", "-c", "0"},
	} {
		h.fails(h.nobodys(append([]string{"-v", "--vm", "Pw", "--bridge", "br0", "--"}, line...)...), exitUsage, want)
	}
	h.noTaps()
}

func (h *host) noTaps() {
	h.Helper()
	h.await("the taps to go", func() error {
		if n := h.taps(); n != 0 {
			return fmt.Errorf("%d taps", n)
		}
		return nil
	})
}
