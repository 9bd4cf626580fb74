package testvm

import (
	"context"
	"os/exec"
	"testing"

	"vmnet/internal/nstest"
)

// Require skips the test if guests cannot boot here, and names the cure; see nstest.Require. The
// features are "qemu" and "guest kernel".
func Require(tb testing.TB) {
	tb.Helper()
	_, err := exec.LookPath(Config{}.withDefaults().QEMU)
	nstest.Require(tb, "qemu", err == nil, setupCure)
	_, err = FindKernel()
	nstest.Require(tb, "guest kernel", err == nil, setupCure)
}

// StartT is Start for a test: it calls Require, fails the test on an error, logs to it, and stops
// the machine in its cleanup. If the test has failed by then, it logs the console.
func StartT(tb testing.TB, c Config) *VM {
	tb.Helper()
	Require(tb)
	if c.Logf == nil {
		c.Logf = tb.Logf
	}
	// Not tb.Context, which ends before the cleanups: those may need the machine.
	vm, err := Start(context.Background(), c)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		vm.Stop()
		if tb.Failed() {
			tb.Logf("guest %s%s", vm.config.Name, section("the console's last lines", vm.Console()))
		}
	})
	return vm
}
