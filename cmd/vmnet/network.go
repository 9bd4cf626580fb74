package main

import (
	"context"
	"os"

	"github.com/spf13/cobra"

	"vmnet/internal/cli/console"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/network"
	"vmnet/internal/network/config"
	"vmnet/internal/network/dhcp"
	"vmnet/internal/network/server"
	"vmnet/step"
)

// networkFlags are those of all verbs about networks.
type networkFlags struct {
	config, state string
	user          userChoice
	json          bool
}

func (a *app) networkCommand() *cobra.Command {
	var o networkFlags
	cmd := &cobra.Command{
		Use:   "network",
		Short: "Make networks that give guests addresses, names and a way out",
		Long: `Make networks for guests: a bridge, rules by which its guests reach the world and are
protected from it, and a server that gives them addresses (DHCP, router advertisements) and names
(DNS). A network is one file, ` + config.DefaultDir + `/NAME.yaml, and its bridge has its name.
vmnet-network(8) describes the file. Guests get NICs on it with vmnet attach --network NAME.

A user who is not root has networks too, without any privilege: on a switch in userspace that has
the network's name, with the namespaces, the rules and the server behind a port of it, and pasta as
the way out. vmnet attach --switch NAME gives guests NICs on it.

Needs the programs nft and dnsmasq (apt install nftables dnsmasq-base), and for users pasta (apt
install passt).`,
		Example: `  vmnet network create lab --nat --dhcp
  vmnet attach --vm P2 --network lab
  vmnet network leases lab
  vmnet network check || vmnet network apply --all
  vmnet network delete lab
  vmnet network create lan --uplink eth1`,
	}
	group(cmd)
	o.add(cmd)
	cmd.AddCommand(
		a.networkCreateCommand(&o), a.networkApplyCommand(&o), a.networkDeleteCommand(&o), a.networkListCommand(&o),
		a.networkShowCommand(&o), a.networkCheckCommand(&o), a.networkLeasesCommand(&o), a.networkServeCommand(&o),
		a.networkConfirmCommand(&o), a.networkGuardCommand(&o),
		a.partCommand(server.AdvertiseVerb, "Send router advertisements"),
		a.partCommand(server.RelayVerb, "Ask name servers on the host's loopback interface"),
	)
	return cmd
}

// add adds the flags to a command and to those below it.
func (o *networkFlags) add(cmd *cobra.Command) {
	f := cmd.PersistentFlags()
	f.StringVar(&o.config, "config-dir", "",
		"`DIRECTORY` of the networks' files (default "+config.DefaultDir+", with --user ~/.config/vmnet/networks.d)")
	f.StringVar(&o.state, "state-dir", "", "`DIRECTORY` of the servers' lease files (default "+
		dhcp.DefaultState+", with --user ~/.local/state/vmnet/networks)")
	f.Var(&o.user, "user",
		"networks of this user, without privilege, in namespaces of their own (default for users other than root)")
	f.Lookup("user").NoOptDefVal = "true"
}

// withNetworks calls f with the networks of --netns.
func (a *app) withNetworks(ctx context.Context, o *networkFlags, f func(*network.Manager) error) error {
	if err := a.networkPlaces(o); err != nil {
		return err
	}
	ns, err := netns.Open(a.netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	m := &network.Manager{NS: ns, Dir: config.Dir(o.config), State: o.state}
	if o.user.yes() {
		m.Elsewhere, err = userNetworks(o)
	} else {
		m.Service, err = a.networkService(ctx, o, ns)
	}
	if err != nil {
		return err
	}
	guard, err := a.networkArgv(o, "guard")
	if err != nil {
		return err
	}
	m.Managers = network.ManagersOf(ns)
	m.Guard = network.Guards{Command: guard, Systemd: network.SystemdRuns(ns)}.Start
	if err := m.Open(); err != nil {
		return err
	}
	defer m.Close()
	return f(m)
}

// networkService returns what runs servers: systemd, if it runs this machine and finds the files.
func (a *app) networkService(ctx context.Context, o *networkFlags, ns *netns.NS) (network.Service, error) {
	usual := o.config == config.DefaultDir && o.state == dhcp.DefaultState
	if usual && network.HasSystemd(ctx, ns) {
		return network.Systemd{}, nil
	}
	command, err := a.networkArgv(o, "serve")
	return network.Detached{Command: command}, err
}

// networkArgv is the command line of a verb in another process, without the network's name.
func (a *app) networkArgv(o *networkFlags, verb string) ([]string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	command := []string{self, "network", verb, "--config-dir", o.config, "--state-dir", o.state}
	if a.netns != "" {
		command = append(command, "--netns", a.netns)
	}
	return append(command, "--"), nil
}

// applyToNetworks sets m.Run to what the flags ask for. describe is of the network that a dry run
// describes.
func (s *stepFlags) applyToNetworks(a *app, m *network.Manager, json bool, describe func() (*networkPlan, error)) {
	switch {
	case s.dryRun:
		m.DryRun = true
		m.Run = func(_ context.Context, steps []step.Step) error {
			s.planned = true
			plan, err := describe()
			if err != nil {
				return err
			}
			if s.plans != nil && json {
				plan.Steps = planSteps(steps)
				*s.plans = append(*s.plans, plan)
				return nil
			}
			return a.printNetworkPlan(plan, steps, json)
		}
	case s.verbose:
		log := a.logger(logFormat(json))
		m.Run = func(ctx context.Context, steps []step.Step) error { return runLogged(ctx, log, steps) }
	}
}

// networkNames completes the names of networks.
func (a *app) networkNames(o *networkFlags) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, noFiles
		}
		if a.networkPlaces(o) != nil {
			return nil, noFiles
		}
		names, _ := config.Dir(o.config).Names()
		return names, noFiles
	}
}

// networkPlan is what --dry-run prints.
type networkPlan struct {
	Network string     `json:"network"`
	Steps   []planStep `json:"steps"`
	Ruleset string     `json:"ruleset"`
	Server  []string   `json:"server"`
}

// planOf describes a network for --dry-run.
func planOf(m *network.Manager, n *config.Network) (*networkPlan, error) {
	rules, programs, err := m.Programs(n)
	return &networkPlan{Network: n.Name, Ruleset: rules, Server: programs}, err
}

func (a *app) printNetworkPlan(p *networkPlan, steps []step.Step, json bool) error {
	p.Steps = planSteps(steps)
	if json {
		return a.printJSON(p)
	}
	if err := a.printSteps(steps, false); err != nil {
		return err
	}
	if p.Ruleset != "" {
		if err := a.print("\n%s", p.Ruleset); err != nil {
			return err
		}
	}
	for _, line := range p.Server {
		if err := a.print("\n%s\n", console.Clean(line)); err != nil {
			return err
		}
	}
	return nil
}
