package main

import (
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"vmnet/bridge"
)

func (a *app) bridgeListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the bridges",
		Example: "  vmnet bridge list",
		Args:    noArgs(),
	}
	format := outputFlag(cmd)
	cmd.RunE = a.verb(func(*cobra.Command, []string) error {
		return a.withBridges(func(h *bridge.Host) error {
			all, err := h.List()
			if err != nil {
				return err
			}
			if *format == "json" {
				return a.printJSON(all)
			}
			return a.printBridges(all)
		})
	})
	return cmd
}

func (a *app) printBridges(all []bridge.Info) error {
	rows := [][]string{{"BRIDGE", "LINK", "MTU", "MAC", "STP", "VLANS", "PORTS", "ADDRESSES"}}
	for _, b := range all {
		rows = append(rows, []string{
			b.Name, upDown(b.Up), strconv.Itoa(b.MTU), b.MAC, onOff(b.STP), onOff(b.VLANFiltering),
			strconv.Itoa(len(b.Ports)), strings.Join(b.Addresses, " "),
		})
	}
	return a.table(rows, nil)
}
