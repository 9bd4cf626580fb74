package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"vmnet/bridge"
	"vmnet/internal/cli/console"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/internal/network/config"
	"vmnet/internal/network/roster"
	"vmnet/internal/vmm/qemu"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

// noFiles is the result of a completion without file names. Completion never fails: it omits what
// cannot be read.
const noFiles = cobra.ShellCompDirectiveNoFileComp

// completes reports whether a shell asks for completions.
func completes(args []string) bool {
	return len(args) > 0 && strings.HasPrefix(args[0], cobra.ShellCompRequestCmd)
}

// plainUsages removes the backquotes from the usages of all flags. They mark the names of values
// for help texts, and cobra would pass them to the shell.
func plainUsages(cmd *cobra.Command) {
	plain := func(f *pflag.Flag) { _, f.Usage = pflag.UnquoteUsage(f) }
	cmd.Flags().VisitAll(plain)
	cmd.PersistentFlags().VisitAll(plain)
	for _, sub := range cmd.Commands() {
		plainUsages(sub)
	}
}

// guestNames lists the names of the running guests, of those that the verbs take: any user may give
// a QEMU a name that a terminal acts on.
func guestNames() []string {
	all, err := qemu.List()
	if err != nil {
		return nil
	}
	var names []string
	for _, p := range all {
		if nic.ValidVM(p.Name) == nil {
			names = append(names, p.Name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func runningGuests(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return guestNames(), noFiles
}

func qemuPIDs(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	all, err := qemu.List()
	if err != nil {
		return nil, noFiles
	}
	var pids []cobra.Completion
	for _, p := range all {
		pids = append(pids, cobra.CompletionWithDesc(strconv.Itoa(p.PID), console.Clean(p.Name)))
	}
	return pids, noFiles
}

func netnsNames(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	entries, _ := os.ReadDir(netns.RunDir)
	var names []cobra.Completion
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, cobra.ShellCompDirectiveDefault
}

// nics lists the NICs of the guest vm, or of all guests if vm is empty.
func (a *app) nics(ctx context.Context, vm string) []nic.NIC {
	var nics []nic.NIC
	_ = a.withManager(func(m *tapmgr.Manager) (err error) {
		nics, err = m.List(ctx, vm)
		return err
	})
	return nics
}

// attachedGuests completes the names of guests that have NICs.
func (a *app) attachedGuests(cmd *cobra.Command, args []string,
	_ string,
) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, noFiles
	}
	has := map[string]int{}
	for _, n := range a.nics(cmd.Context(), "") {
		if n.VM != "" { // otherwise a host access
			has[n.VM]++
		}
	}
	var names []cobra.Completion
	for _, vm := range slices.Sorted(maps.Keys(has)) {
		names = append(names, cobra.CompletionWithDesc(vm, count(has[vm], "NIC")))
	}
	return names, noFiles
}

// nicIDs completes the ids of the NICs that the guest of --vm has.
func (a *app) nicIDs(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	vm, _ := cmd.Flags().GetString("vm")
	var ids []cobra.Completion
	seen := map[string]bool{} // without --vm, guests share ids
	for _, n := range a.nics(cmd.Context(), vm) {
		if n.VM == "" || seen[n.ID] {
			continue
		}
		seen[n.ID] = true
		ids = append(ids, cobra.CompletionWithDesc(n.ID, fmt.Sprintf("%s on %s", n.MAC, n.Source)))
	}
	return ids, noFiles
}

func (a *app) bridgeNames(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, noFiles
	}
	var names []cobra.Completion
	_ = a.withBridges(func(h *bridge.Host) error {
		all, err := h.List()
		for _, b := range all {
			names = append(names, cobra.CompletionWithDesc(b.Name, count(len(b.Ports), "port")))
		}
		return err
	})
	return names, noFiles
}

// networksToJoin completes the networks of which a NIC can be.
func (a *app) networksToJoin(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	var names []cobra.Completion
	_ = a.withNetlink(func(c *rtnl.Conn) (err error) {
		names, err = roster.Names(c, config.DefaultDir)
		return err
	})
	return names, noFiles
}

// interfaceNames completes the devices that can be the parent device of a NIC.
func (a *app) interfaceNames(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	var names []cobra.Completion
	_ = a.withNetlink(func(c *rtnl.Conn) error {
		links, err := c.Links("", 0)
		for _, l := range links {
			if l.Name != "lo" && l.Kind != "bridge" && l.Kind != "tun" {
				names = append(names, l.Name)
			}
		}
		return err
	})
	return names, noFiles
}
