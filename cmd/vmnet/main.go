//go:build !mangen

// Program vmnet gives running QEMU guests their NICs, shows them, and takes
// them away.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"vmnet/internal/cli/console"
	"vmnet/internal/cli/fdroom"
)

func main() {
	// Whoever reads our output may go at any time: that must not end us half way
	// through an attach.
	signal.Ignore(syscall.SIGPIPE)
	if err := fdroom.Check(); err != nil {
		console.Say(os.Stderr, "vmnet", err.Error())
		os.Exit(exitFailure)
	}
	os.Exit(run(untilSignal(context.Background()), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
