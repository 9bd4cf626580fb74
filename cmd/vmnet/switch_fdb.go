package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/cli/nicflags"
)

func (a *app) switchFDBCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "fdb NAME",
		Short:             "Show and change the addresses that a switch knows",
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
	rows := [][]string{{"ADDRESS", "VLAN", "PORT", "REMOTE", "SEEN"}}
	if !slices.ContainsFunc(entries, func(e control.FDBEntry) bool { return e.Remote != "" }) {
		rows[0] = slices.Delete(rows[0], 3, 4)
	}
	for _, e := range entries {
		vlan, seen := "", fmt.Sprintf("%d s ago", e.Age)
		if e.VLAN != 0 {
			vlan = strconv.Itoa(e.VLAN)
		}
		if e.Static {
			seen = "static"
		}
		row := []string{e.MAC, vlan, e.Port, e.Remote, seen}
		if len(rows[0]) < len(row) {
			row = slices.Delete(row, 3, 4)
		}
		rows = append(rows, row)
	}
	return a.table(rows, nil)
}

// addressArgs requires the name of a switch and an address.
func addressArgs(cmd *cobra.Command, args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("%s takes the name of a switch and an address, got %s",
			cmd.CommandPath(), count(len(args), "argument"))
	}
	return nil
}

// addressNames completes a switch, and then an address that it knows.
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
		Short:             "Add a static entry: an address behind a port",
		Example:           "  vmnet switch fdb add sw0 52:54:00:01:02:03 --port tap0 --vlan 10",
		Args:              addressArgs,
		ValidArgsFunction: addressNames,
	}
	f := cmd.Flags()
	f.StringVar(&e.Port, "port", "", "the `PORT` that the address is behind")
	nicflags.Number(f, &e.VLAN, "vlan", "ID", "the VLAN of its frames (default the port's VLAN for untagged frames)")
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
		Short:             "Delete an address, static or learned",
		Example:           "  vmnet switch fdb del sw0 52:54:00:01:02:03",
		Args:              addressArgs,
		ValidArgsFunction: addressNames,
	}
	nicflags.Number(cmd.Flags(), &e.VLAN, "vlan", "ID",
		"the VLAN of its frames (default the only VLAN in which the switch knows it)")
	outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, args []string) error {
		e.MAC = args[1]
		return withSwitch(cmd.Context(), args[0], func(ctx context.Context, c *control.Client) error {
			if err := c.RemoveStatic(ctx, e); err != nil {
				return err
			}
			return a.result(switchChanged{args[0], "", e.MAC, e.VLAN, true}, "%s deleted", e.MAC)
		})
	})
	return cmd
}

func (a *app) switchFDBFlushCommand() *cobra.Command {
	var port string
	cmd := &cobra.Command{
		Use:               "flush NAME",
		Short:             "Delete the learned addresses of a switch",
		Example:           "  vmnet switch fdb flush sw0 --port tap0",
		Args:              oneArg("the name of a switch"),
		ValidArgsFunction: runningSwitches,
	}
	cmd.Flags().StringVar(&port, "port", "", "only addresses learned behind this `PORT` (default all)")
	complete(cmd, "port", switchPorts)
	outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, args []string) error {
		return withSwitch(cmd.Context(), args[0], func(ctx context.Context, c *control.Client) error {
			if err := c.Flush(ctx, port); err != nil {
				return err
			}
			what := "all learned addresses"
			if port != "" {
				what = "addresses learned behind " + port
			}
			return a.result(switchChanged{Switch: args[0], Port: port, Changed: true}, "%s deleted", what)
		})
	})
	return cmd
}
