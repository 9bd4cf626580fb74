package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"vmnet/testvm"
)

func runCommand() *cobra.Command {
	var c testvm.Config
	var netdevs []string
	var print bool
	cmd := &cobra.Command{
		Use:   "run [flags] [-- QEMU-ARGUMENT...]",
		Short: "Boot a guest, and run it until Ctrl-C or until it powers off",
		Example: `  testvm run --name P2
  testvm run --name P2 --machine q35 --spare-ports 4   # has slots to plug NICs into
  testvm run --shell --netdev user,restrict=on`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c.ExtraArgs = args
			for _, n := range netdevs {
				c.NICs = append(c.NICs, testvm.NIC{Netdev: n})
			}
			if print {
				c.Logf = func(format string, args ...any) { fmt.Fprintf(cmd.ErrOrStderr(), format+"\n", args...) }
			}
			err := run(cmd.Context(), cmd.OutOrStdout(), c)
			if cmd.Context().Err() != nil {
				return nil // Ctrl-C is a normal end
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.Name, "name", "testvm", "the guest's name")
	f.StringVar(&c.Machine, "machine", "pc", "pc or q35")
	f.IntVar(&c.SparePorts, "spare-ports", 0, "empty PCIe ports to plug devices into (q35)")
	f.IntVar(&c.MemoryMiB, "memory", 128, "memory in MiB")
	f.IntVar(&c.CPUs, "cpus", 1, "virtual processors")
	f.StringVar(&c.QMP, "qmp", "",
		"path of the monitor's socket, or none (default NAME.qmp in your directory for sockets)")
	f.StringVar(&c.Agent, "agent", "", "path of the agent's socket (default NAME.agent in your directory for sockets)")
	f.StringVar(&c.Accel, "accel", "auto", "kvm, tcg, or auto: kvm if it works")
	f.StringVar(&c.QEMU, "qemu", "", "`PROGRAM` that is QEMU or executes it (default qemu-system-x86_64)")
	f.StringArrayVar(&netdevs, "netdev",
		nil, "boot with a NIC on this QEMU netdev, without id: user,restrict=on (repeatable)")
	f.BoolVar(&c.Terminal, "shell", false, "a shell in the guest on this terminal; the guest ends with it")
	f.BoolVar(&print, "print-command", false, "also print QEMU's command line")
	return cmd
}

// run boots the guest and waits for its end. While it waits, the agent's socket is free for the
// other commands.
func run(ctx context.Context, out io.Writer, c testvm.Config) (err error) {
	if c.QMP, err = socket(c.QMP, c.Name, "qmp"); err != nil {
		return err
	}
	if c.Agent, err = socket(c.Agent, c.Name, "agent"); err != nil {
		return err
	}
	for _, path := range []string{c.QMP, c.Agent} {
		if err := free(path); err != nil {
			return err
		}
	}
	if c.Terminal {
		defer keepTerminal()()
	}
	c.Cold = true // its console shows how it boots, and its command line says no more than it must
	vm, err := testvm.Start(ctx, c)
	if err != nil {
		return err
	}
	defer vm.Stop()
	// A client that waits for the agent gets its answer after this line is printed.
	fmt.Fprintf(out, "%s runs with pid %d\nmonitor  %s\nagent    %s\n", c.Name, vm.Pid(), c.QMP, c.Agent)
	if err := vm.Guest.Close(); err != nil {
		return err
	}
	if err := vm.Wait(context.WithoutCancel(ctx)); err != nil && ctx.Err() == nil {
		return fmt.Errorf("guest %s: QEMU ended: %w", c.Name, err)
	}
	return nil
}

// keepTerminal returns a function that restores the current state of stdin: QEMU makes it raw and
// non-blocking, and cannot clean up when it is killed.
func keepTerminal() func() {
	state, err := unix.IoctlGetTermios(unix.Stdin, unix.TCGETS)
	return func() {
		_ = unix.SetNonblock(unix.Stdin, false)
		if err == nil {
			_ = unix.IoctlSetTermios(unix.Stdin, unix.TCSETS, state)
		}
	}
}
