package main

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/nstest"
	"vmnet/testvm"
)

// runSwitch runs a switch as a user, in the user's directory, and returns the path of its socket.
func (h *host) runSwitch(dir string, uid uint32) string {
	h.Helper()
	return h.runSwitchOf(dir+"/sw", dir+"/sw", uid)
}

// runSwitchOf is runSwitch for one that is called by a name, and where its socket is then.
func (h *host) runSwitchOf(name, path string, uid uint32) string {
	h.Helper()
	cmd := exec.Command(h.vmnet, "switch", "run", name)
	cmd.Env = []string{"XDG_RUNTIME_DIR=" + h.path("run")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	nstest.Eventually(h, 30*time.Second, "the switch listens", func() bool {
		c, err := control.Dial(h.context(time.Second), path)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	return path
}

func (h *host) ports(path string) []control.Port {
	h.Helper()
	c, err := control.Dial(h.context(20*time.Second), path)
	if err != nil {
		h.Fatal(err)
	}
	defer c.Close()
	ports, err := c.Ports(h.context(20 * time.Second))
	if err != nil {
		h.Fatal(err)
	}
	return ports
}

// A switch is found by its name in its user's directories, beside any other NICs, and no privilege
// is left.
func TestLiveLaunchOnANamedSwitch(t *testing.T) {
	h := newHost(t).withVMNet()
	path := h.runSwitchOf("sw7", h.path("run/vmnet/switch/sw7/socket"), nobody)
	for _, more := range [][]string{nil, {"--next-nic", "--bridge", "br0", "--vhost", "off"}} {
		args := append([]string{"--vm", "P3", "--switch", "sw7"}, more...)
		h.ok(h.nobodys(append(args, "--", "/bin/sh", "-c", "grep Cap /proc/self/status; env | grep -v VMNET_JSON")...),
			"CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000",
			"CapAmb:\t0000000000000000",
			"XDG_RUNTIME_DIR="+h.path("run"))
	}
	h.await("the ports to go", func() error {
		if ports := h.ports(path); len(ports) > 0 {
			return fmt.Errorf("%+v", ports)
		}
		return nil
	})
}

// TestLiveLaunchOnASwitch: two guests that the user nobody starts talk over a switch of that user,
// one of them on a bridge as well.
func TestLiveLaunchOnASwitch(t *testing.T) {
	testvm.Require(t)
	h := newHost(t).withVMNet()
	sw := h.runSwitch(h.path("run"), nobody)
	h.AskSwitches, h.Switches = true, []string{sw}
	a := h.boot(testvm.Config{Name: "Pa"}, ":", "--switch", sw, "--lock-mac")
	b := h.boot(testvm.Config{Name: "Pb"}, ":", "--bridge", "br0", "--vhost", "off", "--next-nic", "--switch", sw)
	nicA := h.one(a)
	if nicA.Type != "socket" || nicA.State != "forwarding" || nicA.PID != a.Pid() || nicA.Limits != "locked" ||
		nicA.UID != nobody {
		t.Errorf("listed %+v", nicA)
	}
	h.hasNothing(a, 0, 0)
	nics, err := h.List(t.Context(), "Pb")
	if err != nil || len(nics) != 2 || nics[1].Type != "socket" || nics[1].State != "forwarding" {
		t.Fatalf("listed %+v, %v", nics, err)
	}
	h.hasNothing(b, 1, 0)
	h.use(a, nicA, "10.9.0.1/24")
	h.use(b, nics[1], "10.9.0.2/24")
	h.pings(a, "10.9.0.2")
	if c, err := h.Check(h.context(10 * time.Second)); err != nil || len(c.Differences) != 0 {
		t.Errorf("check %+v, %v", c, err)
	}
	if err := a.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := b.Kill(); err != nil {
		t.Fatal(err)
	}
	nstest.Eventually(t, 20*time.Second, "the ports of guests that have ended go",
		func() bool { return len(h.ports(sw)) == 0 })
}

// TestLiveLaunchOnAnothersSwitch: the program is root's, and asks as nobody all the same, whom
// root's switch does not admit.
func TestLiveLaunchOnAnothersSwitch(t *testing.T) {
	h := newHost(t).withVMNet()
	dir := h.path("roots")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	sw := h.runSwitch(dir, 0)
	if err := os.Chmod(sw, 0o666); err != nil { // that is not what keeps nobody out
		t.Fatal(err)
	}
	for _, options := range [][]string{{}, {"--bridge", "br0", "--vhost", "off", "--next-nic"}} {
		args := append([]string{"--vm", "P3"}, append(options, "--switch", sw, "--vmm", "env", "--", "/bin/true")...)
		h.fails(h.nobodys(args...), exitFailure, "has closed the connection")
		if ports := h.ports(sw); len(ports) != 0 {
			t.Errorf("ports %+v", ports)
		}
		if n := h.taps(); n != 0 {
			t.Errorf("%d taps are left", n)
		}
	}
	if err := os.Chmod(sw, 0o600); err != nil {
		t.Fatal(err)
	}
	h.fails(h.nobodys("--vm", "P3", "--switch", sw, "--vmm", "env", "--", "/bin/true"), exitFailure,
		"permission denied")
}
