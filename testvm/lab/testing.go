package lab

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"

	"vmnet/internal/nstest"
	"vmnet/testvm/guest"
)

// Inside skips a test that does not run in a lab host. Each TestLab* begins with it.
func Inside(tb testing.TB) {
	tb.Helper()
	if !guest.Inside() {
		tb.Skip("runs in the lab host: make lab")
	}
}

// Require skips the test if lab hosts cannot boot here, and names the cure; see nstest.Require. The
// features are "qemu" and "full kernel".
func Require(tb testing.TB) {
	tb.Helper()
	_, err := exec.LookPath("qemu-system-x86_64")
	nstest.Require(tb, "qemu", err == nil, setupCure)
	_, err = FindKernel()
	nstest.Require(tb, "full kernel", err == nil, setupCure)
}

// StartT is Start for a test: it calls Require, fails the test on an error, logs to it, and stops
// the lab host in its cleanup. If the test has failed by then, it logs the console.
func StartT(tb testing.TB, c Config) *Host {
	tb.Helper()
	Require(tb)
	if c.Logf == nil {
		c.Logf = tb.Logf
	}
	h, err := Start(context.Background(), c)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("the lab host's console:\n%s", h.Console())
		}
		h.Stop()
	})
	return h
}

// WithoutModule unloads a module inside the lab host and prevents it from being loaded until the
// test ends, as on a host that does not have it.
func WithoutModule(tb testing.TB, name string) {
	tb.Helper()
	file := "/etc/modprobe.d/without-" + name + ".conf"
	if out, err := exec.Command("modprobe", "-r", name).CombinedOutput(); err != nil {
		tb.Fatalf("unload %s: %v: %s", name, err, out)
	}
	if err := errors.Join(os.MkdirAll("/etc/modprobe.d", 0o755),
		os.WriteFile(file, []byte("install "+name+" /bin/false\n"), 0o644)); err != nil {
		tb.Fatalf("keep %s from being loaded: %v", name, err)
	}
	tb.Cleanup(func() {
		if err := os.Remove(file); err != nil {
			tb.Errorf("let %s be loaded again: %v", name, err)
		}
	})
}
