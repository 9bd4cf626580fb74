package main

import (
	"os"
	"slices"
	"syscall"
	"testing"

	"vmnet/internal/leaktest"
)

// TestMain is also a child that crashes: see TestChild.
func TestMain(m *testing.M) {
	if slices.Contains(os.Args, supervised) {
		crash(os.Args[1])
	}
	leaktest.Main(m)
}

// crash ends this process in one of the ways in which ours could.
func crash(how string) {
	switch how {
	case "panic":
		go func() { panic("a\nb") }() // that nobody can recover
		select {}
	case "killed":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case "fails":
		_, _ = os.Stderr.WriteString("vmnet-hook: told\n")
		os.Exit(1)
	}
	os.Exit(0)
}
