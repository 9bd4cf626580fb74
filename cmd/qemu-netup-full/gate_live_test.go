package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/nstest"
)

func TestLiveAnAltnameGetsRoundNoRule(t *testing.T) {
	i := install(t)
	i.config("bridge.conf", "allow all\ndeny secret0\n")
	i.config("policy.yaml", "rules: [{users: ['*'], bridges: ['*'], lowers: [open0]}]\n")
	ns := nstest.New(t)
	makeBridges(t, ns, "secret0")
	c, err := rtnl.Open(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	br, err := c.Link("secret0")
	if err == nil {
		err = c.AddAltName(br.Index, "sidedoor")
	}
	if err == nil {
		err = c.AddAltName(br.Index, "open0")
	}
	if err != nil {
		t.Fatal(err)
	}
	_ = ns.Do(func() error {
		for _, args := range [][]string{
			{"--vm", "P3", "--bridge", "sidedoor", "--vmm", "env", "--", "/bin/true"},
			{"--vm", "P3", "--bridge", "secret0", "--vmm", "env", "--", "/bin/true"},
			{"--vm", "P3", "--macvtap", "open0", "--vmm", "env", "--", "/bin/true"},
		} {
			out, err := i.as(nobody, args...).CombinedOutput()
			if err == nil || !strings.Contains(string(out), "secret0") {
				t.Errorf("%q: %v: %s", args, err, out)
			}
		}
		return nil
	})
}

// TestLiveAHiddenHolderCounts has a VMM that other processes of its user may not look into: it may
// be executed and not read.
func TestLiveAHiddenHolderCounts(t *testing.T) {
	i := install(t)
	i.config("policy.yaml", "rules: [{users: ['*'], lowers: [eth0], nics: 1}]\n")
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(sleep)
	if err == nil {
		err = os.WriteFile(i.path("sleep"), program, 0o711)
	}
	if err != nil {
		t.Fatal(err)
	}
	ns := nstest.New(t)
	_ = ns.Do(func() error {
		for _, line := range []string{
			"link add eth0 type veth peer name far0",
			"link set eth0 up", "link set far0 up",
		} {
			if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
				t.Fatalf("ip %s: %v: %s", line, err, out)
			}
		}
		first := i.as(nobody, "--vm", "H1", "--macvtap", "eth0", "--vmm", "env", "--", "./sleep", "60")
		if err := first.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { _, _ = first.Process.Kill(), first.Wait() }()
		i.becomes(first.Process.Pid, "sleep")
		out, err := i.as(nobody, "--vm", "H2", "--macvtap", "eth0", "--vmm", "env", "--", "/bin/true").CombinedOutput()
		if exit := new(exec.ExitError); !errors.As(err, &exit) || !strings.Contains(string(out), "policy.yaml:1") {
			t.Errorf("a second one: %v: %s", err, out)
		}
		return nil
	})
}

// becomes waits until the process has executed a program of that name.
func (i *installation) becomes(pid int, name string) {
	i.Helper()
	nstest.Eventually(i, 30*time.Second, fmt.Sprintf("process %d becomes %s", pid, name), func() bool {
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		return err == nil && strings.TrimSpace(string(comm)) == name
	})
}
