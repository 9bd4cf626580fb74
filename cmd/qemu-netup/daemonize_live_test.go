package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// daemon is a QEMU without a guest that goes on in the background, with its pid.
func (h *host) daemon(name string) (args []string, pid func() int) {
	file := h.path("run/" + name + ".pid")
	args = []string{
		"qemu-system-x86_64", "-M", "pc,accel=tcg", "-m", "16", "-nodefaults", "-display", "none", "-S", "-name", "guest=" + name, "-pidfile", file,
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

// TestLiveDaemonizedOnASwitch: a port stays with the process that has the guest's socket, whichever process the program had
// become, and goes with it. So does a tap on a bridge.
func TestLiveDaemonizedOnASwitch(t *testing.T) {
	h := newHost(t).withVMNet()
	sw := h.runSwitch(h.path("run"), nobody)
	h.Switches = func() ([]string, error) { return []string{sw}, nil }
	for _, form := range []struct {
		name          string
		before, after []string // QEMU's command line
	}{
		{"Pd", nil, []string{"-daemonize"}},
		{"Ps", []string{"sh", "-c", `exec >/dev/null 2>&1; "$@" &`, "sh"}, []string{"{vmnet}"}},
	} {
		args, pid := h.daemon(form.name)
		command := append(append([]string{"--vm", form.name, "--switch", sw, "--next-nic", "--bridge", "br0", "--vhost", "off", "--qmp", h.path("run/" + form.name + ".qmp"), "--"}, form.before...), args...)
		h.ok(h.nobodys(append(command, form.after...)...))
		qemu := pid()
		h.await("both NICs to be there", func() error {
			nics, err := h.List(form.name)
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
		c, err := h.Check(h.context(patience(10 * time.Second)))
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
