package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vmnet/internal/nstest"
	"vmnet/testvm/lab"
)

// TestLabAppArmorSwitchUnit has systemd run a switch under its profile. The switch may ask for its
// fast path, and goes on with its ports when it is killed and when its unit is reloaded.
func TestLabAppArmorSwitchUnit(t *testing.T) {
	lab.Inside(t)
	loadProfile(t, "vmnet-switch")
	ns := nstest.New(t)
	ipIn(t, ns.Path(), "link", "add", "up0", "type", "veth", "peer", "name", "lan0")
	ipIn(t, ns.Path(), "link", "set", "up0", "up")
	u := startUnit(t, ns, "--tap a --packet up0")
	a := seat(t, ns, "a", "10.7.0.1")
	seat(t, ns, "lan0", "10.7.0.2")
	for _, step := range []struct{ name, command string }{
		{"start", ""}, {"kill", "kill -KILL $0"}, {"reload", "systemctl reload $1"},
	} {
		if step.command != "" {
			before := u.main()
			u.m.run("sh", "-c", step.command, before, switchUnit)
			u.await(before)
		}
		if got := u.m.run("cat", "/proc/"+u.main()+"/attr/current"); got != "vmnet-switch (enforce)\n" {
			t.Fatalf("%s: the profile is %q", step.name, got)
		}
		awaitAnswer(t, a, "10.7.0.2")
		at := u.ports()["up0"].Stats.FastPath
		if at == nil || !at.On && !strings.Contains(at.Why, "needs Linux 6.6") {
			t.Errorf("%s: fast path: %+v", step.name, at)
		}
	}
}

// loadProfile loads a profile for the program that the tests run, until the test ends.
func loadProfile(t *testing.T, name string) {
	t.Helper()
	program, err := exec.LookPath("vmnet")
	if err == nil {
		program, err = filepath.EvalSymlinks(program)
	}
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("../../docs/apparmor/" + name)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), name)
	own := strings.ReplaceAll(string(text), "@PREFIX@/bin/vmnet", program)
	if err := os.WriteFile(path, []byte(own), 0o600); err != nil {
		t.Fatal(err)
	}
	const securityfs = "/sys/kernel/security"
	if err := unix.Mount("securityfs", securityfs, "securityfs", 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
		t.Fatal(err)
	}
	parser := func(option string) {
		if out, err := exec.Command("apparmor_parser", option, "--skip-cache", path).CombinedOutput(); err != nil {
			t.Errorf("apparmor_parser %s: %v: %s", option, err, out)
		}
	}
	parser("--replace")
	t.Cleanup(func() {
		if out, err := exec.Command("dmesg").Output(); t.Failed() {
			t.Logf("dmesg: %v\n%s", err, out)
		}
		parser("--remove")
	})
}
