package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vmnet/bridge"
	"vmnet/internal/network"
	"vmnet/internal/network/dhcp"
)

func (a *app) networkListCommand(o *networkFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the networks",
		Long: `List the networks: those that have a file, and those of which only a bridge is left.
Their states are up (as the file says), differs (vmnet network check says how), absent (not made
since the last boot), broken (the file has an error, or the name is taken) and left (the file has
gone).`,
		Example: "  vmnet network list",
		Args:    noArgs(),
	}
	format := outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, _ []string) error {
		return a.withNetworks(cmd.Context(), o, func(m *network.Manager) error {
			all, err := m.List(cmd.Context())
			if err != nil {
				return err
			}
			if *format == "json" {
				return a.printJSON(all)
			}
			return a.printNetworks(all)
		})
	})
	return cmd
}

func (a *app) printNetworks(all []network.Info) error {
	rows := [][]string{{"NETWORK", "STATE", "SUBNET", "IPV6", "NAT", "DHCP", "PORTS"}}
	for _, n := range all {
		rows = append(rows, []string{
			n.Network, n.State, n.Subnet, n.IPv6, onOff(n.NAT), onOff(n.DHCP), strconv.Itoa(len(n.Ports)),
		})
		if n.Error != "" {
			a.note(n.Error)
		}
	}
	return a.table(rows, nil)
}

func (a *app) networkShowCommand(o *networkFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "show NAME",
		Short:             "Show a network, its guests, rules and server",
		Example:           "  vmnet network show lab\n  vmnet network show lab -o json",
		Args:              oneArg("the name of a network"),
		ValidArgsFunction: a.networkNames(o),
	}
	format := outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, args []string) error {
		return a.withNetworks(cmd.Context(), o, func(m *network.Manager) error {
			n, err := m.Show(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if *format == "json" {
				return a.printJSON(n)
			}
			segment, err := a.segmentFields(cmd.Context(), n)
			if err != nil {
				return err
			}
			return a.printNetwork(n, segment)
		})
	})
	return cmd
}

// segmentFields describes the VXLAN segment of a network, if it has one that is made.
func (a *app) segmentFields(ctx context.Context, n network.Shown) (fields []field, err error) {
	if n.VXLAN == nil || n.State == network.StateAbsent || n.State == network.StateBroken {
		return nil, nil
	}
	return fields, a.withBridges(func(h *bridge.Host) error {
		info, err := h.Show(n.Network)
		if err != nil {
			return err
		}
		frr, err := a.frrOf(ctx, info)
		if err != nil {
			a.note(fmt.Sprintf("network %s: %v", n.Network, err))
		}
		fields = vxlanFields(info.VXLAN, frr)
		return nil
	})
}

func (a *app) printNetwork(n network.Shown, segment []field) error {
	mtu := "not set"
	if n.MTU != 0 {
		mtu = fmt.Sprintf("%d bytes", n.MTU)
	}
	fields := []field{
		{"state", n.State},
		{"subnet", orNone(n.Subnet)},
		{"uplink", orNone(n.Uplink)},
		{"move address", orNone(n.Move)},
		{"IPv6", orNone(n.IPv6)},
		{"NAT", onOff(n.NAT)},
		{"isolated", onOff(n.Isolated)},
		{"MTU", mtu},
		{"integrate", onOff(n.Integrate)},
		{"DHCP", onOff(n.DHCP)},
		{"domain", n.Domain},
		{"ports", orNone(strings.Join(n.Ports, " "))},
	}
	fields = append(fields, segment...)
	for _, g := range n.Guests {
		text := g.VM + "/" + g.NIC + ", " + g.MAC
		for _, a := range g.IP {
			text += ", " + a.String()
		}
		if g.Name != "" {
			text += ", called " + g.Name
		}
		fields = append(fields, field{"guest", text})
	}
	for _, h := range n.Hosts {
		fields = append(fields, field{"host", fmt.Sprintf("%s, %s, %s", h.Name, h.MAC, h.IP)})
	}
	for _, f := range n.Forwards {
		fields = append(fields, field{"forward", forwardText(f)})
	}
	for _, o := range n.Obstacles {
		fields = append(fields, field{"firewall", o.String()})
	}
	if n.Way != "" {
		fields = append(fields, field{"way out", n.Way})
	}
	for _, p := range n.Processes {
		fields = append(fields, field{"process", fmt.Sprintf("%s, %d", p.Name, p.PID)})
	}
	if err := a.block(n.Network, fields); err != nil {
		return err
	}
	if len(n.Leases) > 0 {
		if err := a.printLeases(n.Leases); err != nil {
			return err
		}
	}
	return a.printNetworkPlan(&networkPlan{Ruleset: n.Ruleset, Server: n.Server}, nil, false)
}

func (a *app) networkLeasesCommand(o *networkFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "leases NAME",
		Short:             "List the addresses that guests have from a network's server",
		Example:           "  vmnet network leases lab",
		Args:              oneArg("the name of a network"),
		ValidArgsFunction: a.networkNames(o),
	}
	format := outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, args []string) error {
		return a.withNetworks(cmd.Context(), o, func(m *network.Manager) error {
			n, err := m.Dir.Read(args[0])
			if err != nil {
				return err
			}
			leases, err := m.Leases(cmd.Context(), n)
			if err != nil {
				return err
			}
			if *format == "json" {
				return a.printJSON(leases)
			}
			return a.printLeases(leases)
		})
	})
	return cmd
}

func (a *app) printLeases(leases []dhcp.Lease) error {
	rows := [][]string{{"IP", "MAC", "NAME", "GUEST", "EXPIRES"}}
	for _, l := range leases {
		expires := "never"
		if !l.Expires.IsZero() {
			expires = l.Expires.Format(time.RFC3339)
		}
		rows = append(rows, []string{l.IP.String(), l.MAC, l.Name, l.Guest, expires})
	}
	return a.table(rows, nil)
}

func (a *app) networkCheckCommand(o *networkFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check [NAME]",
		Short: "Compare networks with their files",
		Long: `Compare networks with their files: bridge, addresses, rules, forwarding and server. A
chain of another firewall that drops what guests send is a difference too. Each is one line, followed
by a line with its cure. If there is a difference, the exit status is 1.`,
		Example:           "  vmnet network check || vmnet network apply --all",
		Args:              atMostOne("the name of a network"),
		ValidArgsFunction: a.networkNames(o),
	}
	format := outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, args []string) error {
		return a.withNetworks(cmd.Context(), o, func(m *network.Manager) error {
			checked, err := m.Check(cmd.Context(), args...)
			if err != nil {
				return err
			}
			a.notes(checked.Notices)
			if *format == "json" {
				err = a.printJSON(checked)
			} else {
				err = a.printNetworksChecked(checked)
			}
			if err == nil && len(checked.Differences) > 0 {
				err = exitStatus(exitFailure)
			}
			return err
		})
	})
	return cmd
}

func (a *app) printNetworksChecked(c network.Checked) error {
	for _, d := range c.Differences {
		err := a.line("%s: %s: want %s, found %s", orNone(d.Network), d.What, orNone(d.Want), orNone(d.Found))
		if err == nil {
			err = a.line("    mend: %s", d.Mend)
		}
		if err != nil {
			return err
		}
	}
	if len(c.Differences) == 0 {
		return a.line("%s compared, no difference", count(c.Networks, "network"))
	}
	return nil
}
