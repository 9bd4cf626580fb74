package main

import (
	"github.com/spf13/cobra"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/why"
	"vmnet/tapmgr"
)

func (a *app) whyBusyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "why-busy DEVICE|ADDRESS",
		Short: "Say who holds a device or an address",
		Long: `Say who holds an address, or a device such as eth0, a tap or a bridge: the bridge, bond
or Open vSwitch that it is a port of, the macvlans and ipvlans whose parent device it is, also
in other network namespaces, the processes that have a tap open, a userspace switch, guests,
and the host's own addresses. Each line says what it is in the way of, and what ends it: the
kernel leads the frames of a device to one such holder only, so that a port of a bridge cannot
be the parent device of a macvtap.

Root sees the processes of all users. Nothing is changed.`,
		Example:           "  vmnet why-busy eth0\n  vmnet why-busy 10.0.0.5\n  vmnet why-busy tap0 -o json",
		Args:              oneArg("the name of a device, or an address"),
		ValidArgsFunction: a.lowerNames,
	}
	format := outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, args []string) error {
		ns, err := netns.Open(a.netns)
		if err != nil {
			return err
		}
		defer ns.Close()
		var facts *why.BusyFacts
		err = a.withManager(func(m *tapmgr.Manager) (err error) {
			facts, err = why.ReadBusy(cmd.Context(), m, ns, args[0])
			return err
		})
		if err != nil {
			return err
		}
		if *format == "json" {
			return a.printJSON(facts.Explain())
		}
		return a.print("%s", facts.Explain().Text(min(terminalWidth(a.out), widestLines)))
	})
	return cmd
}
