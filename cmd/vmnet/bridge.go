package main

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vmnet/bridge"
	"vmnet/bridge/brport"
	"vmnet/internal/cli/nicflags"
	"vmnet/internal/evpn"
	"vmnet/internal/nsport"
	"vmnet/internal/stablemac"
	"vmnet/tapmgr/nic"
)

func (a *app) bridgeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "bridge",
		Short:   "Create and show the bridges that NICs are put on",
		Example: "  vmnet bridge create br0 --address 10.0.0.1/24\n  vmnet bridge show br0",
	}
	group(cmd)
	cmd.AddCommand(a.bridgeCreateCommand(), a.bridgeDeleteCommand(), a.bridgeListCommand(), a.bridgeShowCommand())
	return cmd
}

func (a *app) bridgeCreateCommand() *cobra.Command {
	var cfg bridge.Config
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Create a bridge and bring it up",
		Long: `Create a bridge and bring it up. The same command again succeeds and changes nothing,
except that it adds missing addresses and changes the remote hosts and the map. A bridge that
differs in anything else is left as it is; the error says how it differs.

With --vxlan, guests on the bridge share a segment with guests on bridges of other hosts with the
same VNI. Either list all other hosts by --remote, or have FRR add them: docs/evpn.md has its
configuration. The MTU is 1500 bytes, or 50 (IPv6: 70) less than that of the network between the
hosts where that is smaller; all hosts need the same.

With --vxlan-map, the bridge filters VLANs, and one VXLAN device carries a segment for each of them:
10:10010,20-29:20020-20029 has VLAN 10 in VNI 10010, VLAN 20 in 20020, 21 in 20021, and so on. What
is in no listed VLAN stays on the host. The VLANs may be other ones on each host; the VNIs are what
they share. The same command with another map changes the map. It needs Linux 5.18, and with FRR,
FRR 9.`,
		Example: `  vmnet bridge create br0 --address 10.0.0.1/24 --address fd00::1/64
  vmnet bridge create br1 --mtu 9000 --vlan-filtering
  vmnet bridge create br100 --vxlan 100 --local 192.0.2.1 --remote 192.0.2.2
  vmnet bridge create br200 --vxlan 200 --local 192.0.2.1
  vmnet bridge create br1 --vxlan-map 10:10010,20:10020 --local 192.0.2.1 --remote 192.0.2.2`,
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
	segment := vxlanFlags(cmd)
	outputFlag(cmd)
	cmd.RunE = a.verb(func(_ *cobra.Command, args []string) (err error) {
		cfg.Name = args[0]
		if cfg.VXLAN, err = segment(); err != nil {
			return err
		}
		if cfg.VXLAN != nil && cfg.VXLAN.Map != nil && !cmd.Flags().Changed("vlan-filtering") {
			cfg.VLANFiltering = true
		}
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
	VXLAN   []string       `json:"vxlan,omitempty"` // changes of an existing VXLAN device, as commands
}

func (a *app) printEnsured(name string, done bridge.Ensured) error {
	switch {
	case a.json:
		return a.printJSON(bridgeChanged{name, done.Changed(), done.Added, done.VXLAN})
	case done.Created:
		return a.line("bridge %s created", name)
	case len(done.VXLAN) > 0:
		return a.line("bridge %s: %s", name, strings.Join(done.VXLAN, "; "))
	case len(done.Added) > 0:
		return a.line("bridge %s: added %s", name, prefixes(done.Added))
	case done.WasDown:
		return a.line("bridge %s: brought up", name)
	}
	return a.line("bridge %s: unchanged", name)
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
			b.Name, nic.UpDown(b.Up), strconv.Itoa(b.MTU), b.MAC, onOff(b.STP), onOff(b.VLANFiltering),
			strconv.Itoa(len(b.Ports)), strings.Join(b.Addresses, " "),
		})
	}
	return a.table(rows, nil)
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
	cmd.RunE = a.verb(func(cmd *cobra.Command, args []string) error {
		return a.withBridges(func(h *bridge.Host) error {
			info, err := h.Show(args[0])
			if err != nil {
				return err
			}
			frr, err := a.frrOf(cmd.Context(), info)
			if err != nil {
				a.note(fmt.Sprintf("bridge %s: %v", info.Name, err))
			}
			shown := shownBridge{Info: info, Peers: a.peersOf(cmd.Context(), info.Ports)}
			if *format == "json" {
				shown.tell(frr)
				return a.printJSON(shown)
			}
			return a.printBridge(shown, frr)
		})
	})
	return cmd
}

// shownBridge is the result of show.
type shownBridge struct {
	bridge.Info
	Peers map[string]nsport.Link `json:"peers,omitempty"` // of the ports that are veth devices

	// What FRR says of its segment, or of each one of a map by its VNI.
	EVPN     *evpn.Status  `json:"evpn,omitempty"`
	Segments evpn.Segments `json:"evpn_segments,omitempty"`
}

func (b *shownBridge) tell(frr evpn.Segments) {
	if b.VXLAN == nil || len(frr) == 0 {
		return
	}
	if b.VXLAN.Map != nil {
		b.Segments = frr
		return
	}
	one := frr[b.VXLAN.VNI]
	b.EVPN = &one
}

func (a *app) printBridge(b shownBridge, frr evpn.Segments) error {
	err := a.block(b.Name, append([]field{
		{"link", nic.UpDown(b.Up)},
		{"MAC", b.MAC},
		{"MTU", fmt.Sprintf("%d bytes", b.MTU)},
		{"STP", onOff(b.STP)},
		{"VLANs", vlanFiltering(b.Info)},
		{"ageing", fmt.Sprintf("%g s", b.Ageing)},
		{"addresses", orNone(strings.Join(b.Addresses, " "))},
		{"ports", strconv.Itoa(len(b.Ports))},
	}, vxlanFields(b.VXLAN, frr)...))
	if err != nil || len(b.Ports) == 0 {
		return err
	}
	rows := [][]string{{"PORT", "STATE", "MTU", "SETTINGS", "LEARNED", "PEER", "ALIAS"}}
	for _, p := range b.Ports {
		state := p.State
		if p.ForwardIn > 0 {
			state += fmt.Sprintf(", forwards in %.0f s", p.ForwardIn)
		}
		var macs []string
		for _, l := range p.Learned {
			macs = append(macs, learnedIn(l))
		}
		rows = append(rows, []string{
			p.Interface, state, strconv.Itoa(p.MTU), p.Config.String(), strings.Join(macs, ", "),
			peerText(b.Peers[p.Interface]), p.Alias,
		})
	}
	if len(b.Peers) == 0 {
		rows = without(rows, "PEER")
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

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}
