package main

import (
	"github.com/spf13/cobra"

	"vmnet/bridge"
)

func (a *app) bridgeDeleteCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:               "delete NAME",
		Short:             "Delete a bridge that has no ports",
		Example:           "  vmnet bridge delete br0",
		Args:              oneArg("the name of a bridge"),
		ValidArgsFunction: a.bridgeNames,
	}
	cmd.Flags().BoolVar(&force, "force", false, "also delete a bridge with ports, which are then disconnected")
	outputFlag(cmd)
	cmd.RunE = a.verb(func(_ *cobra.Command, args []string) error {
		return a.withBridges(func(h *bridge.Host) error {
			if err := h.Delete(args[0], force); err != nil {
				return err
			}
			return a.result(bridgeChanged{Bridge: args[0], Changed: true}, "bridge %s deleted", args[0])
		})
	})
	return cmd
}
