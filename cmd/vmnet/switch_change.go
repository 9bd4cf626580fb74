package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/kernel/netns"
)

func (a *app) switchAddPortCommand() *cobra.Command {
	var ports []wantedPort
	cmd := &cobra.Command{
		Use:   "add-port NAME",
		Short: "Add ports to a running switch",
		Long: `Add ports to a running switch. This command opens their devices, with the caller's
privileges, and passes them to the switch. To add a port for a guest, use vmnet attach --switch.

` + portHelp,
		Example:           "  vmnet switch add-port sw0 --tap tap2,vlan=10\n  vmnet switch add-port sw0 --packet eth1 --netns blue",
		Args:              oneArg("the name of a switch"),
		ValidArgsFunction: runningSwitches,
	}
	devicePorts(cmd, a, &ports)
	outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, args []string) error {
		if len(ports) == 0 {
			return usagef("no port given: want --tap or --packet")
		}
		return withSwitch(cmd.Context(), args[0], func(ctx context.Context, c *control.Client) error {
			return a.addPorts(ctx, c, ports)
		})
	})
	return cmd
}

// addPorts adds all ports or none.
func (a *app) addPorts(ctx context.Context, c *control.Client, wanted []wantedPort) error {
	ns, err := netns.Open(a.netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	opened, err := openPorts(ctx, ns, wanted)
	if err != nil {
		return err
	}
	defer closePorts(opened) //nolint:errcheck // the switch has its own copies
	for i, p := range opened {
		if err := c.AddPort(ctx, p.Port, p.files...); err != nil {
			for _, added := range opened[:i] {
				err = errors.Join(err, c.RemovePort(ctx, added.Name))
			}
			return err
		}
	}
	if a.json {
		return a.printJSON(describePorts(opened))
	}
	for _, p := range opened {
		if err := a.line("port %s added: %s %s, %s", p.Name, p.Kind, p.Device, p.how); err != nil {
			return err
		}
	}
	info, err := c.Info(ctx)
	if err != nil {
		return err
	}
	ports, err := c.Ports(ctx)
	if err != nil {
		return err
	}
	a.tellAlone(ports, info.VLANFiltering)
	return nil
}

// pluggedPort is an opened port, as JSON has it.
type pluggedPort struct {
	Name   string `json:"name"`
	Kind   string `json:"kind"`
	Device string `json:"device"`
	How    string `json:"how"` // in words: "made", "opened"
}

func describePorts(opened []openPort) []pluggedPort {
	ports := []pluggedPort{}
	for _, p := range opened {
		ports = append(ports, pluggedPort{p.Name, p.Kind, p.Device, p.how})
	}
	return ports
}

// switchChanged is the result of a verb that changes a switch.
type switchChanged struct {
	Switch  string `json:"switch"`
	Port    string `json:"port,omitempty"`
	MAC     string `json:"mac,omitempty"`
	VLAN    int    `json:"vlan,omitempty"`
	Changed bool   `json:"changed"`
}

func (a *app) switchRemovePortCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "remove-port NAME PORT",
		Short:   "Remove a port from a switch",
		Long:    "Remove a port from a switch. A tap that was made for the port is removed with it. To remove the port of\na guest, use vmnet detach, which removes the NIC as well; otherwise the NIC stays, disconnected.",
		Example: "  vmnet switch remove-port sw0 tap2",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return fmt.Errorf("%s takes the names of a switch and of a port, got %s",
					cmd.CommandPath(), count(len(args), "argument"))
			}
			return nil
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, text string) ([]cobra.Completion,
			cobra.ShellCompDirective,
		) {
			if len(args) == 1 {
				return switchPorts(cmd, args, text)
			}
			return runningSwitches(cmd, args, text)
		},
	}
	outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, args []string) error {
		return withSwitch(cmd.Context(), args[0], func(ctx context.Context, c *control.Client) error {
			if err := c.RemovePort(ctx, args[1]); err != nil {
				return err
			}
			return a.result(switchChanged{Switch: args[0], Port: args[1], Changed: true}, "port %s removed", args[1])
		})
	})
	return cmd
}

func (a *app) switchStopCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "stop NAME",
		Short:             "Stop a switch",
		Long:              "Stop a switch, and wait until its ports are gone. Guests on it keep their NICs, but are disconnected.",
		Example:           "  vmnet switch stop sw0",
		Args:              oneArg("the name of a switch"),
		ValidArgsFunction: runningSwitches,
	}
	outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, args []string) error {
		return withSwitch(cmd.Context(), args[0], func(ctx context.Context, c *control.Client) error {
			if err := c.Stop(ctx); err != nil {
				return err
			}
			return a.result(switchChanged{Switch: args[0], Changed: true}, "switch %s stopped", args[0])
		})
	})
	return cmd
}
