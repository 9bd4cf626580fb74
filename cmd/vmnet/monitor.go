package main

import (
	"context"
	"encoding/json"
	"strings"

	"github.com/spf13/cobra"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/monitor"
	"vmnet/internal/vmm/qemu"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

func (a *app) monitorCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "monitor",
		Short: "Show what changes, as it happens",
		Long: `Show what changes around guests' NICs as it happens, a line for each event, until Ctrl-C:
links that appear, go up and down, get and lose their carrier, are renamed and removed; ports that
join and leave bridges, and their states; NICs of guests, their states and where they are; guests
that start and end, which is noticed within two seconds. With -o json, each event is an object on a
line.`,
		Example: `  vmnet monitor
  vmnet monitor -o json | jq 'select(.kind == "nic")'`,
		Args: noArgs(),
	}
	format := outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, _ []string) error {
		return a.withManager(func(m *tapmgr.Manager) error {
			m.Progress = nil // a note at each look would hide the events
			return a.monitor(cmd.Context(), m, *format == "json")
		})
	})
	return cmd
}

func (a *app) monitor(ctx context.Context, m *tapmgr.Manager, asJSON bool) error {
	ns, err := netns.Open(a.netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	nl, err := rtnl.Open(ns)
	if err != nil {
		return err
	}
	defer nl.Close()
	cfg := monitor.Config{
		NS: ns, NL: nl, Guests: runningVMMs,
		NICs: func(ctx context.Context) ([]nic.NIC, error) {
			m.Switches = a.runningSwitches()
			return m.ListAll(ctx, "")
		},
		Report: func(e monitor.Event) error {
			if asJSON {
				b, err := json.Marshal(e)
				if err != nil {
					return err
				}
				return a.line("%s", b)
			}
			text := e.Time.Format("15:04:05.000") + "  " + pad(e.Kind, 5) + "  " + e.Name + " " + e.Change
			return a.line("%s", strings.TrimSpace(text+" "+e.Text))
		},
	}
	return monitor.Run(ctx, cfg, func() { a.say("watching") })
}

func pad(s string, width int) string { return s + strings.Repeat(" ", max(0, width-len(s))) }

// runningVMMs lists the guests' processes.
func runningVMMs() (guests []monitor.Guest, err error) {
	all, err := qemu.List()
	for _, p := range all {
		guests = append(guests, monitor.Guest{PID: p.PID, Name: p.Name})
	}
	return guests, err
}
