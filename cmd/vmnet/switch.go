package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"vmnet/bridge/vswitch/control"
	"vmnet/internal/kernel/netns"
)

func (a *app) switchCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "switch",
		Short: "Run a switch in userspace; show and change running ones",
		Long: `Run a learning switch in userspace, for hosts whose kernel may not bridge; show and
change running switches. A switch needs no privilege of its own: the command that adds a port opens
the port's files and passes them to the switch. See vmnet-switch(8).`,
		Example: `  vmnet switch run sw0 --tap tap0 --tap tap1,queues=2 --packet eth1
  vmnet switch show sw0`,
	}
	group(cmd)
	cmd.AddCommand(
		a.switchRunCommand(), a.switchListCommand(), a.switchShowCommand(), a.switchFDBCommand(),
		a.switchAddPortCommand(), a.switchRemovePortCommand(), a.switchStatsCommand(), a.switchCaptureCommand(),
		a.switchUpgradeCommand(), a.switchStopCommand(),
	)
	return cmd
}

// switchPatience bounds how long a switch may take to answer. It normally takes milliseconds.
const switchPatience = 10 * time.Second

// withSwitch calls f with a client that is connected to the running switch name.
func withSwitch(ctx context.Context, name string, f func(context.Context, *control.Client) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, switchPatience,
		fmt.Errorf("timed out after %v (is it stopped, or the machine busy?)", switchPatience))
	defer cancel()
	c, err := control.Dial(ctx, name)
	if errors.Is(err, control.ErrNotRunning) {
		return fmt.Errorf("%w (vmnet switch list shows running switches, vmnet switch run %s starts it)", err, name)
	}
	if err != nil {
		return err
	}
	defer c.Close()
	return f(ctx, c)
}

// A seenSwitch is a switch that list has found.
type seenSwitch struct {
	Socket string        `json:"socket"`
	State  string        `json:"state"` // "running", "ended" (its socket was left), or why its state is unknown
	Info   *control.Info `json:"info,omitempty"`
}

const (
	glance      = time.Second // how long list waits for all switches together
	askedAtOnce = 256         // how many switches list queries at a time
)

// seeSwitches queries all switches that this user can reach.
func seeSwitches(ctx context.Context) ([]seenSwitch, error) {
	paths, err := control.Running()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, glance, fmt.Errorf("not within %v", glance))
	defer cancel()
	seen := make([]seenSwitch, len(paths))
	places := make(chan struct{}, askedAtOnce)
	var asked sync.WaitGroup
	for i, path := range paths {
		places <- struct{}{}
		asked.Go(func() {
			seen[i] = seeSwitch(ctx, path)
			<-places
		})
	}
	asked.Wait()
	return seen, nil
}

func seeSwitch(ctx context.Context, path string) seenSwitch {
	s := seenSwitch{Socket: path, State: "running"}
	c, err := control.Dial(ctx, path)
	if err == nil {
		defer c.Close()
		var info control.Info
		if info, err = c.Info(ctx); err == nil {
			// Another user's switch may report anything about itself.
			info.Name = filepath.Base(filepath.Dir(path))
			info.PID, info.UID = c.Peer()
			s.Info = &info
		}
	}
	switch {
	case errors.Is(err, control.ErrNotRunning):
		s.State = "ended"
	case err != nil:
		s.State = err.Error()
	}
	return s
}

// switchNames completes the name of a running switch, or the path of its socket.
func switchNames(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	seen, err := seeSwitches(cmd.Context())
	if err != nil {
		return nil, noFiles
	}
	var names []cobra.Completion
	for _, s := range seen {
		if s.Info != nil {
			names = append(names, cobra.CompletionWithDesc(control.NameOf(s.Socket), count(s.Info.Ports, "port")))
		}
	}
	return names, cobra.ShellCompDirectiveDefault
}

// runningSwitches completes a running switch as the first argument.
func runningSwitches(cmd *cobra.Command, args []string, text string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, noFiles
	}
	return switchNames(cmd, args, text)
}

// switchPorts completes the name of a port of the switch named by the first argument.
func switchPorts(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return nil, noFiles
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), glance)
	defer cancel()
	c, err := control.Dial(ctx, args[0])
	if err != nil {
		return nil, noFiles
	}
	defer c.Close()
	ports, _ := c.Ports(ctx)
	var names []cobra.Completion
	for _, p := range ports {
		names = append(names, cobra.CompletionWithDesc(p.Name, p.Kind))
	}
	return names, noFiles
}

func (a *app) switchAddPortCommand() *cobra.Command {
	var ports []wantedPort
	cmd := &cobra.Command{
		Use:   "add-port NAME",
		Short: "Add ports to a running switch",
		Long: `Add ports to a running switch. This command opens their devices, with the caller's
privileges, and passes them to the switch. To add a port for a guest, use vmnet attach --switch.

` + portHelp,
		Example: "  vmnet switch add-port sw0 --tap tap2,vlan=10\n" +
			"  vmnet switch add-port sw0 --packet eth1 --netns blue",
		Args:              oneArg("the name of a switch"),
		ValidArgsFunction: runningSwitches,
	}
	devicePorts(cmd, a, &ports)
	outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, args []string) error {
		if len(ports) == 0 {
			return usagef("no port given: want --tap, --packet, --vxlan, --tun, --vhost-user or --stream")
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
	info, err := c.Info(ctx)
	if err != nil {
		return err
	}
	opened, err := openPorts(ctx, ns, wanted, info.FastPath == control.FastPathAuto)
	if err != nil {
		return err
	}
	for i, p := range opened {
		if err := c.AddPort(ctx, p.Port, p.files...); err != nil {
			for _, added := range opened[:i] {
				err = errors.Join(err, c.RemovePort(ctx, added.Name))
			}
			return errors.Join(err, discardPorts(opened))
		}
	}
	if err := closePorts(opened); err != nil { // the switch has its own copies
		return err
	}
	if a.json {
		return a.printJSON(describePorts(opened))
	}
	for _, p := range opened {
		if err := a.line("port %s added: %s %s, %s", p.Name, p.Kind, p.Where(), p.how); err != nil {
			return err
		}
	}
	if info, err = c.Info(ctx); err != nil {
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
		ports = append(ports, pluggedPort{p.Name, p.Kind, p.Where(), p.how})
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
		Use:   "remove-port NAME PORT",
		Short: "Remove a port from a switch",
		Long: "Remove a port from a switch. A tap that was made for the port is removed with it. " +
			"To remove the port of\n" +
			"a guest, use vmnet detach, which removes the NIC as well; otherwise the NIC stays, disconnected.",
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
		Use:   "stop NAME",
		Short: "Stop a switch",
		Long: "Stop a switch, and wait until its ports are gone. " +
			"Guests on it keep their NICs, but are disconnected.",
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
