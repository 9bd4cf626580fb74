package main

import (
	"context"
	"fmt"
	"net/netip"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"vmnet/bridge/vxlan"
	"vmnet/internal/cli/nicflags"
	"vmnet/internal/network"
	"vmnet/internal/network/config"
	"vmnet/internal/network/managers"
	"vmnet/internal/sdnotify"
)

// defaultConfirm is how long a move may be confirmed.
const defaultConfirm = time.Minute

// uplinkFlags are those of network create about an uplink.
type uplinkFlags struct {
	config.Uplink
	segment func() (*vxlan.Config, error)
	move    bool
	confirm time.Duration
}

func (o *uplinkFlags) add(a *app, cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.Device, "uplink", "", "`INTERFACE` of the host, or INTERFACE.VLAN, whose LAN the guests are on")
	f.BoolVar(&o.move, "move-address", false, "move what the host has on the uplink to the bridge")
	f.DurationVar(&o.confirm, "confirm", defaultConfirm,
		"take a move back after `DURATION` without vmnet network confirm; 0 never does")
	f.Var(nicflags.Value("FIRST-LAST", "", func(s string) (err error) {
		o.Range, err = config.ParseRange(s)
		return err
	}), "dhcp-range", "addresses of the LAN that the DHCP server has and gives to guests")
	f.Var(nicflags.Value("IP", "", func(s string) (err error) {
		if o.Router, err = netip.ParseAddr(s); err != nil || !o.Router.Is4() {
			return fmt.Errorf("want an IPv4 address")
		}
		return nil
	}), "router", "the LAN's router, which the DHCP server announces")
	o.segment = vxlanFlags(cmd)
	complete(cmd, "uplink", a.interfaceNames)
	complete(cmd, "confirm", cobra.FixedCompletions([]string{"30s", "60s", "5m", "0"}, noFiles))
}

// take sets what the flags say of a network.
func (o *uplinkFlags) take(cmd *cobra.Command, n *config.Network) error {
	switch {
	case cmd.Flags().Changed("confirm") && !o.move:
		return usagef("--confirm goes with --move-address")
	case o.confirm < 0:
		return usagef("--confirm %v: want a time, or 0", o.confirm)
	case o.move:
		o.Move = config.Confirmed
	}
	if !o.move {
		o.confirm = 0
	}
	segment, err := o.segment()
	switch {
	case err != nil:
		return err
	case segment != nil && o.Device != "":
		return usagef("--uplink %s and --vxlan: want one of them", o.Device)
	case segment != nil:
		if err := segment.Validate(); err != nil {
			return usagef("%w", err)
		}
		o.Device, o.VXLAN = segment.Interface(n.Name), segment
	}
	if o.Uplink != (config.Uplink{}) {
		n.Uplink = &o.Uplink
	}
	return nil
}

// confirmWithin returns how long the move of a network just created may be confirmed.
func confirmWithin(m *network.Manager, n *config.Network) time.Duration {
	if n.Uplink == nil || n.Uplink.Move != config.Unconfirmed {
		return 0
	}
	return m.Confirm
}

func (a *app) printCreatedOnUplink(m *network.Manager, n *config.Network) error {
	on := n.Uplink.Device
	if n.Uplink.VXLAN != nil {
		on += fmt.Sprintf(", MTU %d bytes", n.MTU)
	}
	if err := a.line("network %s created: bridge %s, uplink %s", n.Name, n.Name, on); err != nil {
		return err
	}
	if within := confirmWithin(m, n); within > 0 {
		return a.line("  what the host has on %s is on %s now, and is taken back in %v "+
			"without vmnet network confirm %[2]s", n.Uplink.Device, n.Name, within)
	}
	return nil
}

func (a *app) networkConfirmCommand(o *networkFlags) *cobra.Command {
	var steps stepFlags
	var write bool
	cmd := &cobra.Command{
		Use:   "confirm NAME",
		Short: "Confirm that the host is in reach after its addresses have moved",
		Long: `Confirm that the host is in reach after its addresses have moved to the bridge of a
network (vmnet network create --move-address). Without it, all is taken back.

It prints what the manager of the interface (netplan, systemd-networkd, NetworkManager, ifupdown)
needs so that the host has its addresses on the bridge after the next boot. With --write, that is
written where it is safe.`,
		Example:           "  vmnet network confirm lan\n  vmnet network confirm lan --write",
		Args:              oneArg("the name of a network"),
		ValidArgsFunction: a.networkNames(o),
	}
	cmd.Flags().BoolVar(&write, "write", false, "write the files of the interface's manager for the next boot")
	steps.add(cmd)
	format := outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, args []string) error {
		o.json = *format == "json"
		return a.withNetworks(cmd.Context(), o, func(m *network.Manager) error {
			steps.applyToNetworks(a, m, o.json, func() (*networkPlan, error) {
				return &networkPlan{Network: args[0], Server: []string{}}, nil
			})
			changed, err := m.ConfirmMove(cmd.Context(), args[0])
			if err != nil || steps.planned {
				return err
			}
			return a.printConfirmed(m, args[0], changed, write, o.json)
		})
	})
	return cmd
}

// networkConfirmed is the result of confirm.
type networkConfirmed struct {
	networkChanged
	NextBoot managers.Boot   `json:"next_boot"`
	Files    []managers.File `json:"files"`   // for the next boot
	Written  bool            `json:"written"` // they are
}

func (a *app) printConfirmed(m *network.Manager, name string, changed, write, json bool) error {
	n, err := m.Dir.Read(name)
	if err != nil {
		return err
	}
	boot, err := m.NextBoot(n, write)
	if err != nil {
		return err
	}
	if json {
		boot.Text = append([]string{}, boot.Text...)
		files := append([]managers.File{}, boot.Files...)
		return a.printJSON(networkConfirmed{networkChanged{name, changed}, boot, files, write && len(files) > 0})
	}
	text := "confirmed"
	if !changed {
		text = "was confirmed before"
	}
	if err := a.line("network %s: %s", name, text); err != nil {
		return err
	}
	return a.printNextBoot(boot, write)
}

// printNextBoot prints what the manager of an interface needs, or where it was written.
func (a *app) printNextBoot(boot managers.Boot, written bool) error {
	for _, f := range boot.Files {
		if written {
			if err := a.line("  for the next boot: %s", f.Path); err != nil {
				return err
			}
			continue
		}
		if err := a.line("  for the next boot, %s (--write writes it):", f.Path); err != nil {
			return err
		}
		for line := range strings.Lines(f.Content) {
			if err := a.line("    %s", strings.TrimSuffix(line, "\n")); err != nil {
				return err
			}
		}
	}
	for _, text := range boot.Text {
		if err := a.line("  for the next boot: %s", text); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) networkGuardCommand(o *networkFlags) *cobra.Command {
	cmd := &cobra.Command{
		Use:    "guard NAME",
		Short:  "Take a move back unless it is confirmed in time: what create runs in the background",
		Args:   oneArg("the name of a network"),
		Hidden: true,
	}
	outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, args []string) error {
		// A guard ends when somebody confirms, or deletes the network.
		signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM)
		ctx := context.WithoutCancel(cmd.Context())
		return a.withNetworks(ctx, o, func(m *network.Manager) error {
			var notified error
			taken, err := m.AwaitConfirm(ctx, args[0], func() { notified = sdnotify.Notify("READY=1") })
			if err == nil {
				err = notified
			}
			if err != nil {
				return err
			}
			return a.result(networkChanged{args[0], taken}, "network %s: taken back: %v", args[0], taken)
		})
	})
	return cmd
}
