// Program testvm boots a tiny virtual machine and runs commands inside it. The virtual machine runs
// the same program as /init.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"vmnet/internal/cli/fdroom"
	"vmnet/internal/cli/version"
	"vmnet/testvm/guest"
)

func main() {
	if os.Getpid() == 1 {
		guest.Main()
	}
	if os.Args[0] == guest.ServeName {
		guest.Serve()
	}
	if err := fdroom.Check(); err != nil {
		fmt.Fprintln(os.Stderr, "testvm:", err)
		os.Exit(1)
	}
	ending := []os.Signal{unix.SIGTERM}
	for _, s := range []os.Signal{unix.SIGINT, unix.SIGHUP} {
		if !signal.Ignored(s) { // nohup(1) ignores SIGHUP
			ending = append(ending, s)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), ending...)
	defer stop()
	err := root().ExecuteContext(ctx)
	code := exitCode(1)
	switch {
	case err == nil:
		return
	case !errors.As(err, &code):
		fmt.Fprintln(os.Stderr, "testvm:", err)
	}
	os.Exit(int(code))
}

// exitCode is the exit status of a command in the guest, which has reported the error itself.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit status %d", int(c)) }

func root() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "testvm",
		Short: "Boot a tiny virtual machine or a lab host, and run commands inside it",
		Example: `  testvm run --name P2                     # one terminal; Ctrl-C ends it
  testvm addr --name P2 eth0 10.0.0.2/24   # another one
  testvm ping --name P2 10.0.0.1`,
		Version:       version.Text("testvm"),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	cmd.SetVersionTemplate("{{.Version}}\n")
	cmd.CompletionOptions.DisableDefaultCmd = true
	cmd.AddCommand(runCommand(), domainCommand(), labCommand(), waitCommand(), execCommand(), linksCommand(),
		addrCommand(), dhcpCommand(), pingCommand(), powerOffCommand())
	return cmd
}
