package testvm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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

// OwnedBy returns c with a QEMU that runs as an ordinary user without any capability, by
// setpriv(1). The kernel is a copy that the user may read.
func (c Config) OwnedBy(tb testing.TB, uid int) Config {
	tb.Helper()
	Require(tb)
	dir := tb.TempDir()
	for path := dir; len(path) > len(os.TempDir()); path = filepath.Dir(path) {
		if err := os.Chmod(path, 0o755); err != nil {
			tb.Fatal(err)
		}
	}
	kernel, err := FindKernel()
	if err != nil {
		tb.Fatal(err)
	}
	parts := Parts{Kernel: kernel.Image}
	if err := parts.CopyKernel(dir); err != nil {
		tb.Fatal(err)
	}
	kernel.Image = parts.Kernel
	program := c.withDefaults().QEMU
	// The script runs in place of QEMU, and gives the machine's directory to the user.
	starter := filepath.Join(dir, "start")
	script := fmt.Sprintf(`#!/bin/bash
set -e
for arg; do
	case $arg in */initramfs) chown -R %[1]d:%[1]d "${arg%%/*}" ;; esac
done
cd /
exec setpriv %[2]s -- %[3]s "$@"
`, uid, strings.Join(nstest.Unprivileged(uid), " "), program)
	if err := os.WriteFile(starter, []byte(script), 0o755); err != nil {
		tb.Fatal(err)
	}
	c.Kernel, c.QEMU, c.Emulator = kernel, starter, program
	return c
}
