package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"vmnet/bridge"
	"vmnet/internal/rtnl"
)

func (a *app) bridgeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:                        "bridge",
		Short:                      "Make and show the bridges that NICs are put on",
		Example:                    "  vmnet bridge create br0 --address 10.0.0.1/24\n  vmnet bridge show br0",
		SuggestionsMinimumDistance: 2,
	}
	group(cmd)
	cmd.AddCommand(a.bridgeCreateCommand(), a.bridgeDeleteCommand(), a.bridgeListCommand(), a.bridgeShowCommand())
	return cmd
}

func (a *app) bridgeDeleteCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:               "delete NAME",
		Short:             "Delete a bridge that has no ports",
		Example:           "  vmnet bridge delete br0",
		Args:              oneArg("the name of a bridge"),
		ValidArgsFunction: a.bridgeNames,
	}
	cmd.Flags().BoolVar(&force, "force", false, "delete it with ports on it too, which then have no network")
	cmd.RunE = a.verb(func(_ *cobra.Command, args []string) error {
		return a.withNetlink(func(c *rtnl.Conn) error {
			if err := bridge.Delete(c, args[0], force); err != nil {
				return err
			}
			return a.print("bridge %s deleted\n", args[0])
		})
	})
	return cmd
}

func (a *app) bridgeListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the bridges",
		Example: "  vmnet bridge list",
		Args:    cobra.NoArgs,
	}
	format := outputFlag(cmd)
	cmd.RunE = a.verb(func(*cobra.Command, []string) error {
		return a.withNetlink(func(c *rtnl.Conn) error {
			all, err := bridge.List(c)
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
	rows := [][]string{{"BRIDGE", "LINK", "MTU", "MAC", "STP", "PORTS", "ADDRESSES"}}
	for _, b := range all {
		rows = append(rows, []string{
			b.Name, upDown(b.Up), strconv.Itoa(b.MTU), b.MAC, onOff(b.STP), strconv.Itoa(len(b.Ports)), strings.Join(b.Addresses, " "),
		})
	}
	return a.table(rows)
}

func (a *app) bridgeShowCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "show NAME",
		Short:             "Show a bridge, its ports, and the addresses learned behind them",
		Example:           "  vmnet bridge show br0\n  vmnet bridge show br0 -o json",
		Args:              oneArg("the name of a bridge"),
		ValidArgsFunction: a.bridgeNames,
	}
	format := outputFlag(cmd)
	cmd.RunE = a.verb(func(_ *cobra.Command, args []string) error {
		return a.withNetlink(func(c *rtnl.Conn) error {
			info, err := bridge.Show(c, args[0])
			if err != nil {
				return err
			}
			if *format == "json" {
				return a.printJSON(info)
			}
			return a.printBridge(info)
		})
	})
	return cmd
}

func (a *app) printBridge(b bridge.Info) error {
	err := a.block(b.Name, []field{
		{"link", upDown(b.Up)},
		{"MAC", b.MAC},
		{"MTU", fmt.Sprintf("%d bytes", b.MTU)},
		{"STP", onOff(b.STP)},
		{"ageing", fmt.Sprintf("%g s", b.Ageing)},
		{"addresses", orNone(strings.Join(b.Addresses, " "))},
		{"ports", strconv.Itoa(len(b.Ports))},
	})
	if err != nil || len(b.Ports) == 0 {
		return err
	}
	rows := [][]string{{"PORT", "STATE", "MTU", "LEARNED", "ALIAS"}}
	for _, p := range b.Ports {
		state := p.State
		if p.ForwardIn > 0 {
			state += fmt.Sprintf(", forwards in %.0f s", p.ForwardIn)
		}
		var macs []string
		for _, l := range p.Learned {
			macs = append(macs, l.MAC)
		}
		rows = append(rows, []string{p.Interface, state, strconv.Itoa(p.MTU), strings.Join(macs, " "), p.Alias})
	}
	return a.table(rows)
}

func upDown(up bool) string {
	if up {
		return "up"
	}
	return "down"
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}
