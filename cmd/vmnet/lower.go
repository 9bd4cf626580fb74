package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"vmnet/internal/nsport"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

// lowerVerb is the command line of lower.
type lowerVerb struct {
	lower      string
	hostAccess string // "on", "off", or empty to show
	addrs      []netip.Prefix
	json       bool
	steps      stepFlags
}

func (a *app) lowerCommand() *cobra.Command {
	var o lowerVerb
	cmd := &cobra.Command{
		Use:   "lower PARENT",
		Short: "Show a parent device of guests, and its host access",
		Long: `Show the NICs on a parent device, those of macvtap and ipvtap guests, and the macvlans
and ipvlans of containers beside them, or turn host access on or off.

What guests on the same parent device reach ("back": only if an external switch sends frames back on
the port that they arrived on, as one for VEPA does):

    TYPE, MODE OR FLAG   GUESTS  OUTSIDE  PARENT'S ADDRESS  HOST ACCESS
    macvtap bridge       yes     yes      back              yes
    macvtap vepa         back    yes      back              back
    macvtap private      no      yes      no                no
    ipvtap bridge        yes     yes      back              -
    ipvtap private       no      yes      back              -
    ipvtap vepa          back    yes      back              -

A switch that sends frames back defeats macvtap's private mode once MACs are known. An ipvtap's flag
means the same in modes l2 and l3. In l3 no ARP passes: turn ARP off in the guest (ip link set eth0
arp off), and give the host and machines outside routes or neighbour entries for it. All ipvtaps on
a parent device have the same mode and flag.

With host access on, the host has a macvlan beside the guests, called PARENT-host. Host and guests
in mode bridge reach each other by its addresses. It stays until you turn it off or the machine
shuts down: no other verb removes it. The same command again changes nothing, except that it adds
missing addresses.

Give it addresses of a network in which the parent device has no address. In the parent device's own
network the host would send through the parent device, where guests do not receive it, until each
guest's address is routed: ip route add GUEST dev PARENT-host.`,
		Example: `  vmnet lower eth0
  vmnet lower eth0 --host-access on --address 10.9.0.1/24
  vmnet lower eth0 --host-access off`,
		Args:              oneArg("the name of a parent device, such as eth0"),
		ValidArgsFunction: a.lowerNames,
	}
	f := cmd.Flags()
	choice(cmd, f, &o.hostAccess, "host-access", "",
		"on lets host and guests reach each other, off ends that (default: show the current state)", "on", "off")
	addressFlag(f, &o.addrs)
	f.Lookup("address").Usage = "with --host-access on: IP address of the host among the guests, " +
		"such as 10.9.0.1/24 (repeatable)"
	o.steps.add(cmd)
	format := outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, args []string) error {
		o.lower, o.json = args[0], *format == "json"
		return a.lower(cmd.Context(), &o)
	})
	return cmd
}

// lowerNames completes the one argument.
func (a *app) lowerNames(cmd *cobra.Command, args []string,
	text string,
) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, noFiles
	}
	return a.interfaceNames(cmd, args, text)
}

func (a *app) lower(ctx context.Context, o *lowerVerb) error {
	switch {
	case o.hostAccess != "on" && len(o.addrs) > 0:
		return usagef("--address goes with --host-access on")
	case o.hostAccess == "" && (o.steps.dryRun || o.steps.verbose):
		return usagef("--dry-run and --verbose go with --host-access: showing takes no steps")
	}
	return a.withManager(func(m *tapmgr.Manager) error {
		if o.hostAccess == "" {
			return a.showLower(ctx, m, o)
		}
		o.steps.apply(a, m, o.json)
		h, changed, err := m.SetHostAccess(ctx, o.lower, o.hostAccess == "on", o.addrs)
		if err != nil || o.steps.planned {
			return err
		}
		return a.printHostAccess(h, changed, o)
	})
}

func (a *app) printHostAccess(h nic.HostAccess, changed bool, o *lowerVerb) error {
	on := o.hostAccess == "on"
	if o.json {
		there := &h
		if !on {
			there = nil
		}
		return a.printJSON(struct {
			Lower      string          `json:"lower"`
			HostAccess *nic.HostAccess `json:"host_access"`
			Changed    bool            `json:"changed"`
		}{h.Parent, there, changed})
	}
	switch {
	case !on && !changed:
		return a.line("%s: unchanged: host access is off, nothing to do", h.Parent)
	case !on:
		return a.line("%s: host access off, %s removed", h.Parent, h.Interface)
	}
	a.notes(h.Notices)
	unchanged, added := "unchanged: ", ""
	if changed {
		unchanged = ""
	}
	if len(h.Added) > 0 {
		added = ", added " + prefixes(h.Added)
	}
	return a.line("%s: %shost access on, %s with %s%s", h.Parent, unchanged, h.Interface, addressText(h.Addresses),
		added)
}

func prefixes(all []netip.Prefix) string {
	var texts []string
	for _, p := range all {
		texts = append(texts, p.String())
	}
	return strings.Join(texts, " ")
}

func addressText(all []netip.Prefix) string {
	if len(all) == 0 {
		return "no address"
	}
	return prefixes(all)
}

func (a *app) showLower(ctx context.Context, m *tapmgr.Manager, o *lowerVerb) error {
	info, err := m.ShowParent(ctx, o.lower)
	if err != nil {
		return err
	}
	others, err := a.besideNICs(ctx, info)
	if err != nil {
		return err
	}
	if o.json {
		return a.printJSON(shownParent{info, others})
	}
	fields := []field{{"host access", "off"}}
	if h := info.HostAccess; h != nil {
		a.notes(h.Notices)
		fields = []field{
			{"host access", "on"},
			{"interface", fmt.Sprintf("%s, %s", h.Interface, h.State)},
			{"MAC", h.MAC},
			{"MTU", fmt.Sprintf("%d bytes", h.MTU)},
			{"addresses", orNone(prefixes(h.Addresses))},
		}
	}
	fields = append(fields, field{"NICs", fmt.Sprint(len(info.NICs))})
	for _, l := range others {
		fields = append(fields, field{"beside them", fmt.Sprintf("%s %s %s%s", l.Type, l.Mode, l.Interface,
			inNetns(l.Netns))})
	}
	if err := a.block(info.Name, fields); err != nil || len(info.NICs) == 0 {
		return err
	}
	return a.printList(sightings(info.NICs), false)
}

// shownParent is the result of showing a parent device.
type shownParent struct {
	nic.Parent
	Beside []nsport.Link `json:"beside"` // what is on the parent device besides the NICs
}

// besideNICs lists what shares a parent device with guests' NICs, such as containers' macvlans.
func (a *app) besideNICs(ctx context.Context, info nic.Parent) ([]nsport.Link, error) {
	beside := []nsport.Link{}
	err := a.withNamespaces(func(m *nsport.Manager) error {
		list, notices, err := m.Links(ctx)
		a.notes(notices)
		for _, l := range list {
			host := info.HostAccess != nil && l.Netns.Own && l.Interface == info.HostAccess.Interface
			if l.Peer == "" && l.Source == info.Name && l.NIC == "" && !host {
				beside = append(beside, l)
			}
		}
		return err
	})
	return beside, err
}
