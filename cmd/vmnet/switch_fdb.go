package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/cli/nicflags"
)

func (a *app) switchFDBCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "fdb NAME",
		Short:             "Show which addresses a switch knows, and change that",
		Example:           "  vmnet switch fdb sw0\n  vmnet switch fdb add sw0 52:54:00:01:02:03 --port tap0",
		Args:              oneArg("the name of a switch"),
		ValidArgsFunction: runningSwitches,
	}
	format := outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, args []string) error {
		return withSwitch(cmd.Context(), args[0], func(ctx context.Context, c *control.Client) error {
			entries, err := c.FDB(ctx)
			if err != nil {
				return err
			}
			if *format == "json" {
				return a.printJSON(append([]control.FDBEntry{}, entries...))
			}
			return a.printFDB(entries)
		})
	})
	cmd.AddCommand(a.switchFDBAddCommand(), a.switchFDBDelCommand(), a.switchFDBFlushCommand())
	return cmd
}

func (a *app) printFDB(entries []control.FDBEntry) error {
	rows := [][]string{{"ADDRESS", "VLAN", "PORT", "SEEN"}}
	for _, e := range entries {
		vlan, seen := "", fmt.Sprintf("%d s ago", e.Age)
		if e.VLAN != 0 {
			vlan = strconv.Itoa(e.VLAN)
		}
		if e.Static {
			seen = "static"
		}
		rows = append(rows, []string{e.MAC, vlan, e.Port, seen})
	}
	return a.table(rows, nil)
}

// addressArgs are the name of a switch and an address.
func addressArgs(cmd *cobra.Command, args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("%s takes the name of a switch and an address, got %s", cmd.CommandPath(), count(len(args), "argument"))
	}
	return nil
}

// addressNames completes them with the addresses that the switch knows.
func addressNames(cmd *cobra.Command, args []string, text string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) != 1 {
		return runningSwitches(cmd, args, text)
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), glance)
	defer cancel()
	c, err := control.Dial(ctx, args[0])
	if err != nil {
		return nil, noFiles
	}
	defer c.Close()
	entries, _ := c.FDB(ctx)
	var names []cobra.Completion
	for _, e := range entries {
		names = append(names, cobra.CompletionWithDesc(e.MAC, "behind "+e.Port))
	}
	return names, noFiles
}

func (a *app) switchFDBAddCommand() *cobra.Command {
	var e control.FDBEntry
	cmd := &cobra.Command{
		Use:               "add NAME MAC",
		Short:             "Tell a switch for good behind which port an address is",
		Example:           "  vmnet switch fdb add sw0 52:54:00:01:02:03 --port tap0 --vlan 10",
		Args:              addressArgs,
		ValidArgsFunction: addressNames,
	}
	f := cmd.Flags()
	f.StringVar(&e.Port, "port", "", "the `PORT` that the address is behind")
	nicflags.Number(f, &e.VLAN, "vlan", "ID", "the VLAN of its frames (default that of the port's untagged frames)")
	require(cmd, "port")
	complete(cmd, "port", switchPorts)
	outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, args []string) error {
		e.MAC = args[1]
		return withSwitch(cmd.Context(), args[0], func(ctx context.Context, c *control.Client) error {
			if err := c.AddStatic(ctx, e); err != nil {
				return err
			}
			return a.result(switchChanged{args[0], e.Port, e.MAC, e.VLAN, true}, "%s is behind %s", e.MAC, e.Port)
		})
	})
	return cmd
}

func (a *app) switchFDBDelCommand() *cobra.Command {
	var e control.FDBEntry
	cmd := &cobra.Command{
		Use:               "del NAME MAC",
		Short:             "Have a switch forget an address, a static or a learned one",
		Example:           "  vmnet switch fdb del sw0 52:54:00:01:02:03",
		Args:              addressArgs,
		ValidArgsFunction: addressNames,
	}
	nicflags.Number(cmd.Flags(), &e.VLAN, "vlan", "ID", "the VLAN of its frames (default the only one that it is known in)")
	outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, args []string) error {
		e.MAC = args[1]
		return withSwitch(cmd.Context(), args[0], func(ctx context.Context, c *control.Client) error {
			if err := c.RemoveStatic(ctx, e); err != nil {
				return err
			}
			return a.result(switchChanged{args[0], "", e.MAC, e.VLAN, true}, "%s is forgotten", e.MAC)
		})
	})
	return cmd
}

func (a *app) switchFDBFlushCommand() *cobra.Command {
	var port string
	cmd := &cobra.Command{
		Use:               "flush NAME",
		Short:             "Have a switch forget what it has learned",
		Example:           "  vmnet switch fdb flush sw0 --port tap0",
		Args:              oneArg("the name of a switch"),
		ValidArgsFunction: runningSwitches,
	}
	cmd.Flags().StringVar(&port, "port", "", "only what was learned behind this `PORT` (default all)")
	complete(cmd, "port", switchPorts)
	outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, args []string) error {
		return withSwitch(cmd.Context(), args[0], func(ctx context.Context, c *control.Client) error {
			if err := c.Flush(ctx, port); err != nil {
				return err
			}
			what := "all that was learned"
			if port != "" {
				what = "what was learned behind " + port
			}
			return a.result(switchChanged{Switch: args[0], Port: port, Changed: true}, "%s is forgotten", what)
		})
	})
	return cmd
}
