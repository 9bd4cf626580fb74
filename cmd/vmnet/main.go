//go:build !mangen

// Program vmnet attaches NICs to running QEMU guests, shows them, and detaches them.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"vmnet/internal/cli/console"
	"vmnet/internal/cli/fdroom"
	"vmnet/internal/network/usernet"
)

func main() {
	if usernet.IsAgent() {
		os.Exit(usernet.Agent())
	}
	// The reader of stdout may go away at any time, which must not kill this process in the middle
	// of an attach.
	signal.Ignore(syscall.SIGPIPE)
	if err := fdroom.Check(); err != nil {
		console.Say(os.Stderr, "vmnet", err.Error())
		os.Exit(exitFailure)
	}
	os.Exit(run(untilSignal(context.Background()), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
