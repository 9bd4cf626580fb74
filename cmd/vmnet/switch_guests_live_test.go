package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"vmnet/internal/nstest"
	"vmnet/testvm"
)

// asNobody are setpriv's options.
var asNobody = nstest.Unprivileged(nobody)

// nobodys is a guest whose QEMU runs as the user nobody, without any capability.
func nobodys(t *testing.T) (*testvm.VM, string) {
	t.Helper()
	name := uniqueVM()
	c := testvm.Config{Name: name, QEMU: qemuProgram}
	return testvm.StartT(t, c.OwnedBy(t, nobody)), name
}

// nobodyRuns runs vmnet as nobody.
func nobodyRuns(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "setpriv",
		append(append([]string{}, asNobody...), append([]string{"vmnet"}, args...)...)...)
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0")
	cmd.Dir, cmd.WaitDelay = "/", 5*time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("vmnet %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// TestLiveSwitchAndGuestsOfNobody: a switch, two guests and vmnet attach, all without a capability.
func TestLiveSwitchAndGuestsOfNobody(t *testing.T) {
	nstest.Require(t, "root", os.Geteuid() == 0, "run it as root")
	forNobody(t)
	sw := runSwitch(t, nil, append([]string{"setpriv"}, asNobody...))
	sw.powerless(nobody)
	red, redName := nobodys(t)
	blue, blueName := nobodys(t)
	for _, name := range []string{redName, blueName} {
		out := nobodyRuns(t, "attach", "--vm", name, "--switch", sw.socket, "--lock-mac", "--nic", "lan")
		if !strings.Contains(out, "socket "+name+"-lan on switch "+sw.socket+" with locked") {
			t.Errorf("attach said %s", out)
		}
	}
	cmd := exec.Command("setpriv",
		append(append([]string{}, asNobody...), "vmnet", "attach", "--vm", redName, "--switch", sw.socket, "--nic",
			"more", "--via", "tap")...)
	if out, err := cmd.CombinedOutput(); err == nil ||
		!strings.Contains(string(out), "(--via socket needs no privilege)") {
		t.Errorf("a tap without privilege: %v: %s", err, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ports := sw.ports()
	if len(ports) != 2 || len(ports[redName+"-lan"].Config.MACs) != 1 {
		t.Fatalf("ports %+v", ports)
	}
	mac := func(name string) string { return ports[name+"-lan"].Config.MACs[0].String() }
	if err := errors.Join(red.Guest.UseNIC(ctx, mac(redName), "10.7.0.2/24"),
		blue.Guest.UseNIC(ctx, mac(blueName), "10.7.0.3/24")); err != nil {
		t.Fatal(err)
	}
	tcp, err := blue.Guest.TCPServe(ctx, "10.7.0.3:0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := red.Guest.TCPSend(ctx, tcp, 4<<20); err != nil {
		t.Error(err)
	}
	for _, name := range []string{redName, blueName} {
		if out := nobodyRuns(t, "list", "--vm", name); !strings.Contains(out, "forwarding") {
			t.Errorf("list said %s", out)
		}
	}
	if out := nobodyRuns(t, "check"); !strings.Contains(out, "no difference") {
		t.Errorf("check said %s", out)
	}
	nobodyRuns(t, "detach", "--vm", redName, "--nic", "lan")
	if err := red.Guest.WaitNICGone(ctx, mac(redName)); err != nil {
		t.Error(err)
	}
	if err := blue.Kill(); err != nil {
		t.Fatal(err)
	}
	nstest.Eventually(t, patience, "the ports of guests that have ended go", func() bool {
		return len(sw.ports()) == 0
	})
	sw.end()
}
