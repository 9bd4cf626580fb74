package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"vmnet/bridge"
	"vmnet/bridge/brport"
)

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
		return a.withBridges(func(h *bridge.Host) error {
			info, err := h.Show(args[0])
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
		{"VLANs", vlanFiltering(b)},
		{"ageing", fmt.Sprintf("%g s", b.Ageing)},
		{"addresses", orNone(strings.Join(b.Addresses, " "))},
		{"ports", strconv.Itoa(len(b.Ports))},
	})
	if err != nil || len(b.Ports) == 0 {
		return err
	}
	rows := [][]string{{"PORT", "STATE", "MTU", "SETTINGS", "LEARNED", "ALIAS"}}
	for _, p := range b.Ports {
		state := p.State
		if p.ForwardIn > 0 {
			state += fmt.Sprintf(", forwards in %.0f s", p.ForwardIn)
		}
		var macs []string
		for _, l := range p.Learned {
			macs = append(macs, learnedIn(l))
		}
		rows = append(rows,
			[]string{p.Interface, state, strconv.Itoa(p.MTU), p.Config.String(), strings.Join(macs, ", "), p.Alias})
	}
	return a.table(rows, nil)
}

func vlanFiltering(b bridge.Info) string {
	switch {
	case !b.VLANFiltering:
		return "not separated"
	case b.DefaultVLAN == 0:
		return "separated; new ports are in none"
	}
	return fmt.Sprintf("separated; new ports are in %d", b.DefaultVLAN)
}

// learnedIn returns a learned address with the VLAN in which it was learned.
func learnedIn(l brport.Learned) string {
	if l.VLAN == 0 {
		return l.MAC
	}
	return fmt.Sprintf("%s (VLAN %d)", l.MAC, l.VLAN)
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
