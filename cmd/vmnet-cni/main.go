// A short-lived program does not need the CPU limit of its cgroup; see cmd/vmnet-hook.
//
//go:debug containermaxprocs=0

// Program vmnet-cni is a plugin of the Container Network Interface: it gives pods interfaces on
// guests' networks. Package internal/cni does the work. vmnet-cni(8) describes its configuration.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"vmnet/internal/cli/fdroom"
	"vmnet/internal/cli/version"
	"vmnet/internal/cni"
)

func main() { os.Exit(run(os.Args[1:])) }

// run is the whole program; the result is its exit status. A failure is an object on standard
// output, as the runtime expects it.
func run(args []string) int {
	if len(args) > 0 {
		if len(args) == 1 && args[0] == "--version" {
			fmt.Println(version.Text("vmnet-cni"))
			return 0
		}
		fmt.Fprintln(os.Stderr,
			"vmnet-cni: container runtimes call it, by variables and without arguments; see vmnet-cni(8)")
		return 2
	}
	// A signal undoes what is under way.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	failed := refused()
	if failed == nil {
		failed = skel.PluginMainFuncsWithError(cni.Commands(ctx), cni.Versions, version.Text("vmnet-cni"))
	}
	if failed == nil {
		return 0
	}
	if err := failed.Print(); err != nil {
		fmt.Fprintf(os.Stderr, "vmnet-cni: %v\n", failed)
	}
	return 1
}

// refused returns why the program cannot run at all.
func refused() *types.Error {
	if err := fdroom.Check(); err != nil {
		return types.NewError(types.ErrTryAgainLater, err.Error(), "")
	}
	return nil
}
