package main

import (
	"os/exec"
	"strings"
	"testing"

	"vmnet/internal/nstest"
)

// TestLiveTapKeptBySystemd has systemd run the process that waits for a tap's VMM. The guest's name
// may have what systemd replaces in command lines, and process ids recur while such processes wait.
func TestLiveTapKeptBySystemd(t *testing.T) {
	m := startManager(t, nstest.New(t), map[string]string{
		// sysinit.target would mount a /tmp, start udev and more.
		"vmnet-tap-.service.d/test.conf": "[Unit]\nDefaultDependencies=no\n",
	})
	program, err := exec.LookPath("vmnet")
	if err != nil {
		t.Fatal(err)
	}
	m.run(program, "bridge", "create", "br0")
	const vm = "a${HOME}$$"
	const create = `systemd-run --quiet --unit=vmnet-tap-$$ sleep 1000; exec "$0" tap create --bridge br0 --vm "$1"`
	m.run("sh", "-c", create, program, vm)
	if out := m.run(program, "list", "-o", "name"); !strings.Contains(out, vm) {
		t.Errorf("list: %s", out)
	}
	// The same again replaces the tap, and what waited for the first one has not failed.
	m.run("systemd-run", "--quiet", "--service-type=notify", "--unit=vmnet-tap-test", "--",
		program, "tap", "keep", "--vm=a$${HOME}$$$$", "--nic=net0")
	m.run("sh", "-c", create, program, vm)
	state := ""
	nstest.Eventually(t, patience, "the process for the first tap ends", func() bool {
		state = m.property("vmnet-tap-test.service", "ActiveState")
		return state == "inactive" || state == "failed"
	})
	if state != "inactive" {
		t.Errorf("the process that waited for it: %s", state)
	}
}
