package main

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/spf13/cobra"

	"vmnet/bridge"
	"vmnet/internal/cli/nicflags"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/stablemac"
)

func (a *app) bridgeCreateCommand() *cobra.Command {
	var cfg bridge.Config
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Make a bridge and bring it up",
		Long: `Make a bridge and bring it up. The same command again is success and changes nothing; addresses
that are missing are added. A bridge that differs in anything else is left as it is, and told.`,
		Example: `  vmnet bridge create br0 --address 10.0.0.1/24 --address fd00::1/64
  vmnet bridge create br1 --mtu 9000 --vlan-filtering`,
		Args:              oneArg("a name for the bridge"),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := cmd.Flags()
	addressFlag(f, &cfg.Addresses)
	nicflags.MTU(f, &cfg.MTU, "BYTES, 68 to 65535 (default that of the smallest port)")
	nicflags.AddMAC(f, &cfg.MAC, "the bridge's own address (default one made of its name and this machine's id)")
	f.BoolVar(&cfg.STP, "stp", false, "run the spanning tree protocol; ports then take 30 s until they forward")
	f.BoolVar(&cfg.VLANFiltering, "vlan-filtering", false, "keep VLANs apart, as each port's settings say; ports without are in VLAN 1, as is the host")
	durationFlag(f, &cfg.Ageing, "ageing", 300*time.Second, time.Second, "how long an address is remembered that is not heard of")
	outputFlag(cmd)
	cmd.RunE = a.verb(func(_ *cobra.Command, args []string) error {
		cfg.Name = args[0]
		if err := cfg.Validate(); err != nil {
			return usagef("%w", err)
		}
		return a.withNetlink(func(c *rtnl.Conn) error {
			done, err := bridge.Ensure(c, cfg)
			if err != nil {
				return err
			}
			if err := stablemac.Check("/"); err != nil && cfg.MAC == nil && done.Created {
				a.note(fmt.Sprintf("bridge %s: %v; or name one with --mac", cfg.Name, err))
			}
			return a.printEnsured(cfg.Name, done)
		})
	})
	return cmd
}

// bridgeChanged is what create or delete did.
type bridgeChanged struct {
	Bridge  string         `json:"bridge"`
	Changed bool           `json:"changed"`
	Added   []netip.Prefix `json:"added,omitempty"` // addresses of a bridge that was there
}

func (a *app) printEnsured(name string, done bridge.Ensured) error {
	switch {
	case a.json:
		return a.printJSON(bridgeChanged{name, done.Changed(), done.Added})
	case done.Created:
		return a.line("bridge %s created", name)
	case len(done.Added) > 0:
		return a.line("bridge %s: added %s", name, prefixes(done.Added))
	case done.WasDown:
		return a.line("bridge %s: set up", name)
	}
	return a.line("bridge %s: unchanged", name)
}
