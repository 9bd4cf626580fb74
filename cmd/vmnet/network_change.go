package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"vmnet/internal/network"
	"vmnet/internal/network/config"
)

// networkChanged is the result of apply and delete.
type networkChanged struct {
	Network string `json:"network"`
	Changed bool   `json:"changed"`
}

func (a *app) networkApplyCommand(o *networkFlags) *cobra.Command {
	var steps stepFlags
	var all, integrate bool
	var confirm time.Duration
	cmd := &cobra.Command{
		Use:   "apply [NAME]",
		Short: "Make a network as its file says",
		Long: `Make a network as its file says, and change nothing where it is so. A bridge or table
that is not a network's is never touched.

With --integrate, Docker, firewalld and ufw, where they run, get rules by which they let the
network's traffic pass. That is stored in the network's file, and delete, or --integrate=false,
takes the rules back.`,
		Example: `  vmnet network apply lab
  vmnet network apply --all
  vmnet network apply lab --dry-run`,
		Args:              atMostOne("the name of a network"),
		ValidArgsFunction: a.networkNames(o),
	}
	cmd.Flags().BoolVar(&all, "all", false, "all networks that have a file")
	cmd.Flags().BoolVar(&integrate, "integrate", false,
		"from now on, have Docker, firewalld and ufw let the network's traffic pass")
	cmd.Flags().DurationVar(&confirm, "confirm", 0,
		"take a move of addresses back after `DURATION` without vmnet network confirm")
	steps.add(cmd)
	format := outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, args []string) error {
		o.json = *format == "json"
		if confirm < 0 {
			return usagef("--confirm %v: want a time, or 0", confirm)
		}
		if all == (len(args) > 0) {
			return usagef("vmnet network apply takes the name of a network, or --all")
		}
		return a.withNetworks(cmd.Context(), o, func(m *network.Manager) error {
			names := args
			if all {
				var err error
				if names, err = m.Dir.Names(); err != nil {
					return err
				}
			}
			m.Confirm = confirm
			apply := m.Apply
			if cmd.Flags().Changed("integrate") {
				apply = func(ctx context.Context, name string) (*config.Network, bool, error) {
					return m.Integrate(ctx, name, integrate)
				}
			}
			return a.networkApply(cmd.Context(), m, o, names, all, &steps, apply)
		})
	})
	return cmd
}

// networkApply applies all of the networks, whichever fail.
func (a *app) networkApply(ctx context.Context, m *network.Manager, o *networkFlags, names []string, all bool,
	steps *stepFlags, apply func(context.Context, string) (*config.Network, bool, error),
) error {
	var errs []error
	done := []networkChanged{}
	plans := []*networkPlan{}
	if all {
		steps.plans = &plans
	}
	for _, name := range names {
		steps.applyToNetworks(a, m, o.json, func() (*networkPlan, error) {
			n, err := m.Dir.Read(name)
			if err != nil {
				return nil, err
			}
			return planOf(m, n)
		})
		n, changed, err := apply(ctx, name)
		if err == nil && !steps.planned {
			err = a.tellObstacles(ctx, m, n)
			a.notes(m.MoveNotices(n))
		}
		if err != nil {
			if len(names) > 1 {
				err = fmt.Errorf("apply network %s: %w", name, err)
			}
			errs = append(errs, err)
			continue
		}
		done = append(done, networkChanged{name, changed})
	}
	switch {
	case steps.dryRun && all && o.json:
		errs = append(errs, a.printJSON(plans))
	case !steps.planned:
		errs = append(errs, a.printApplied(o, done))
	}
	return errors.Join(errs...)
}

func (a *app) printApplied(o *networkFlags, done []networkChanged) error {
	if o.json {
		return a.printJSON(done)
	}
	for _, d := range done {
		text := "unchanged"
		if d.Changed {
			text = "applied"
		}
		if err := a.line("network %s: %s", d.Network, text); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) networkDeleteCommand(o *networkFlags) *cobra.Command {
	var steps stepFlags
	var force bool
	cmd := &cobra.Command{
		Use:   "delete NAME",
		Short: "Delete a network with its file, and set back what it has changed",
		Long: `Delete a network: its server, rules, bridge, leases and file. Where no other network
needs it, the host's forwarding is set back to what it was. It also removes what an interrupted
command has left.`,
		Example:           "  vmnet network delete lab",
		Args:              oneArg("the name of a network"),
		ValidArgsFunction: a.networkNames(o),
	}
	cmd.Flags().BoolVar(&force, "force", false, "also delete a network with guests, which are then disconnected")
	steps.add(cmd)
	format := outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, args []string) error {
		o.json = *format == "json"
		if err := config.CheckName(args[0]); err != nil {
			return usagef("%w", err)
		}
		return a.withNetworks(cmd.Context(), o, func(m *network.Manager) error {
			steps.applyToNetworks(a, m, o.json, func() (*networkPlan, error) {
				return &networkPlan{Network: args[0], Server: []string{}}, nil
			})
			if err := m.Delete(cmd.Context(), args[0], force); err != nil || steps.planned {
				return err
			}
			return a.result(networkChanged{args[0], true}, "network %s deleted", args[0])
		})
	})
	return cmd
}
