package main

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/spf13/cobra"

	"vmnet/bridge"
	"vmnet/internal/cli/nicflags"
	"vmnet/internal/stablemac"
)

func (a *app) bridgeCreateCommand() *cobra.Command {
	var cfg bridge.Config
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Create a bridge and bring it up",
		Long: `Create a bridge and bring it up. The same command again succeeds and changes nothing,
except that it adds missing addresses. A bridge that differs in anything else is left as it is; the
error says how it differs.`,
		Example: `  vmnet bridge create br0 --address 10.0.0.1/24 --address fd00::1/64
  vmnet bridge create br1 --mtu 9000 --vlan-filtering`,
		Args:              oneArg("a name for the bridge"),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := cmd.Flags()
	addressFlag(f, &cfg.Addresses)
	nicflags.MTU(f, &cfg.MTU, "BYTES, 68 to 65535 (default that of the smallest port)")
	nicflags.AddMAC(f, &cfg.MAC, "the bridge's own address (default one derived from its name and the machine id)")
	f.BoolVar(&cfg.STP, "stp", false, "run the spanning tree protocol; ports then need 30 s until they forward")
	f.BoolVar(&cfg.VLANFiltering, "vlan-filtering",
		false, "separate VLANs by the settings of each port; ports without any are in VLAN 1, and so is the host")
	durationFlag(f, &cfg.Ageing, "ageing", 300*time.Second, time.Second,
		"how long the bridge remembers an address that sends nothing")
	outputFlag(cmd)
	cmd.RunE = a.verb(func(_ *cobra.Command, args []string) error {
		cfg.Name = args[0]
		if err := cfg.Validate(); err != nil {
			return usagef("%w", err)
		}
		return a.withBridges(func(h *bridge.Host) error {
			done, err := h.Ensure(cfg)
			if err != nil {
				return err
			}
			if err := stablemac.Check("/"); err != nil && cfg.MAC == nil && done.Created {
				a.note(fmt.Sprintf("bridge %s: %v; or give one with --mac", cfg.Name, err))
			}
			return a.printEnsured(cfg.Name, done)
		})
	})
	return cmd
}

// bridgeChanged is the result of create and delete.
type bridgeChanged struct {
	Bridge  string         `json:"bridge"`
	Changed bool           `json:"changed"`
	Added   []netip.Prefix `json:"added,omitempty"` // addresses added to an existing bridge
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
		return a.line("bridge %s: brought up", name)
	}
	return a.line("bridge %s: unchanged", name)
}
