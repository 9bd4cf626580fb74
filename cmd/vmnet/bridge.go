package main

import (
	"github.com/spf13/cobra"
)

func (a *app) bridgeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "bridge",
		Short:   "Create and show the bridges that NICs are put on",
		Example: "  vmnet bridge create br0 --address 10.0.0.1/24\n  vmnet bridge show br0",
	}
	group(cmd)
	cmd.AddCommand(a.bridgeCreateCommand(), a.bridgeDeleteCommand(), a.bridgeListCommand(), a.bridgeShowCommand())
	return cmd
}
