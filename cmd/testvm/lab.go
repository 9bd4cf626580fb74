package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"vmnet/testvm/lab"
)

func labCommand() *cobra.Command {
	var c lab.Config
	var print bool
	cmd := &cobra.Command{
		Use:   "lab [flags] [-- COMMAND [ARGUMENT...]]",
		Short: "Boot a lab host, and run a command or a shell in it as root",
		Long: `Boot a lab host: a full kernel whose files are this machine's. What is written
stays in its memory. The exit status is the command's; its stdin is empty.
What this machine has below /dev, /proc, /run and /sys is not seen in it.`,
		Example: `  testvm lab                                          # a shell
  testvm lab --module mac80211_hwsim -- ip link show wlan0
  testvm lab -- sh -c 'cd src && ./some.test -test.v'`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if print {
				c.Logf = func(format string, args ...any) { fmt.Fprintf(cmd.ErrOrStderr(), format+"\n", args...) }
			}
			if c.Terminal = len(args) == 0; c.Terminal {
				return labShell(cmd.Context(), c)
			}
			h, err := lab.Start(cmd.Context(), c)
			if err != nil {
				return err
			}
			defer h.Stop()
			code, err := h.Run(cmd.Context(),
				lab.Command{Argv: args, Stdout: cmd.OutOrStdout(), Stderr: cmd.ErrOrStderr()})
			return exitStatus(code, err)
		},
	}
	f := cmd.Flags()
	f.IntVar(&c.CPUs, "cpus", 2, "virtual processors")
	f.IntVar(&c.MemoryMiB, "memory", 1536, "memory in MiB, which also holds written files")
	f.StringArrayVar(&c.Modules, "module", nil, "kernel module to load at boot (repeatable)")
	f.BoolVar(&print, "print-command", false, "also print QEMU's command line and the boot time")
	return cmd
}

// labShell runs a shell in the lab host until it ends.
func labShell(ctx context.Context, c lab.Config) error {
	defer keepTerminal()()
	h, err := lab.Start(ctx, c)
	if err != nil {
		return err
	}
	defer h.Stop()
	return h.Wait(ctx)
}

// exitStatus returns the error for the exit of a command in a guest.
func exitStatus(code int, err error) error {
	switch {
	case err != nil:
		return err
	case code < 0:
		return errors.New("a signal ended the command")
	case code > 0:
		return exitCode(code)
	}
	return nil
}
