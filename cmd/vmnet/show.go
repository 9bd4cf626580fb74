package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"vmnet/bridge/brport"
	"vmnet/internal/vmm/qemu"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

func (a *app) showCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:        "show VM",
		SuggestFor: []string{"info", "inspect"},
		Short:      "Explain the NICs of a guest",
		Long: `Explain each NIC of a guest: the processes and fds that hold it, its bridge and port,
the addresses learned behind it, its IP addresses with where each is known from (see vmnet list), its
counters, and what the guest reports about it.

With -o yaml, print the file of vmnet-guests(5) that declares the guest's NICs as they are.`,
		Example: `  vmnet show P2
  vmnet show P2 -o json
  vmnet show P2 -o yaml > /etc/vmnet/guests.d/P2.yaml`,
		Args:              oneArg("the name of a guest"),
		ValidArgsFunction: a.attachedGuests,
	}
	format := "text"
	choice(cmd, cmd.Flags(), &format, "output", "o",
		"text for people, json for programs, yaml for a file of declared NICs", "text", "json", "yaml")
	cmd.RunE = a.verb(func(cmd *cobra.Command, args []string) error {
		if format == "yaml" {
			return a.showDeclared(cmd.Context(), args[0])
		}
		return a.show(cmd.Context(), args[0], format == "json")
	})
	return cmd
}

func (a *app) show(ctx context.Context, vm string, json bool) error {
	if err := nic.ValidVM(vm); err != nil {
		return usagef("%w", err)
	}
	return a.withManager(func(m *tapmgr.Manager) error {
		details, err := m.Show(ctx, vm)
		if err != nil {
			return fmt.Errorf("show %s: %w", vm, err)
		}
		if len(details) == 0 {
			return noNICs(vm)
		}
		for _, d := range details {
			for _, n := range d.Notices {
				a.note(fmt.Sprintf("%s/%s: %s", d.VM, d.ID, n))
			}
		}
		if json {
			return a.printJSON(details)
		}
		for i, d := range details {
			if i > 0 {
				if err := a.print("\n"); err != nil {
					return err
				}
			}
			if err := a.block(d.VM+"/"+d.ID, detailFields(d)); err != nil {
				return err
			}
			if d.GuestConfig != nil {
				if err := a.line("  %s", strings.ReplaceAll(d.GuestConfig.String(), "\n", "\n  ")); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

func noNICs(vm string) error {
	names := guestNames()
	if slices.Contains(names, vm) {
		return fmt.Errorf(
			"show %s: the guest has no NIC of vmnet here (vmnet attach --vm %s --bridge BRIDGE gives it one; --netns names another netns)",
			vm, vm)
	}
	running := "none"
	if len(names) > 0 {
		running = strings.Join(names, ", ")
	}
	return fmt.Errorf("show %s: %w, nor a NIC of one (running: %s; vmnet list shows all NICs)",
		vm, qemu.ErrNotFound, running)
}

func detailFields(d tapmgr.Detail) []field {
	if d.State == nic.Gone {
		return goneFields(d)
	}
	fields := []field{
		interfaceField(d),
		{"altnames", strings.Join(d.AltNames, ", ")},
		{"state", stateText(d)},
		placeField(d),
		{"Open vSwitch", ovsText(d)},
		{"network", d.Network},
		{"IP", addressesText(d)},
		{"port security", d.SecurityText()},
		{"allow in", strings.ReplaceAll(d.AllowIn.String(), ";", "; ")},
		{"rates", strings.ReplaceAll(d.Rates.String(), ";", ", ")},
		{"via", viaText(d.NIC)},
		{"model", d.Model},
		{"MAC", fmt.Sprintf("%s, of the guest", d.MAC) + hostText("; %s on the host's side", d.HostMAC)},
		{"MTU", fmt.Sprintf("%d bytes, of the guest; %d of the %s", d.MTU, d.HostMTU, d.Type)},
		{"queues", fmt.Sprint(d.Queues)},
		{"held by", holdersText(d.Holders)},
		{"vhost", vhostText(d)},
		{"learned", learnedText(d)},
	}
	fields = append(fields, counterFields(d)...)
	fields = append(fields, field{"guest's view", guestText(d.Guest)})
	return slices.DeleteFunc(fields, func(f field) bool { return f.value == "" })
}

// goneFields are what is known of a NIC whose device was deleted while its guest runs.
func goneFields(d tapmgr.Detail) []field {
	place := field{"bridge", d.Source}
	if d.Switch {
		place = field{"switch", switchText(d)}
	} else if d.Type == nic.TypeRouted {
		place = field{"uplink", d.Source}
	} else if d.Type != nic.TypeTap && d.Type != nic.TypeOVS {
		place = field{"lower", d.Source + ", mode " + d.Mode}
	}
	fields := []field{
		{"interface", fmt.Sprintf("%s (%s), deleted", d.Interface, d.Type)},
		{"state", stateText(d)},
		place,
		{"via", viaText(d.NIC)},
		{"model", d.Model},
		{"MAC", d.MAC + ", of the guest"},
		{"queues", fmt.Sprint(d.Queues)},
		{"held by", holdersText(d.Holders)},
		{"guest's view", guestText(d.Guest)},
	}
	return slices.DeleteFunc(fields, func(f field) bool { return f.value == "" })
}

// interfaceField is the device, or the port that stands for it.
func interfaceField(d tapmgr.Detail) field {
	if d.IsSocket() {
		return field{"port", d.Interface + " (socket)"}
	}
	return field{"interface", fmt.Sprintf("%s (%s, index %d)", d.Interface, d.Type, d.Index)}
}

// hostText returns the empty string if there is no device.
func hostText(format, mac string) string {
	if mac == "" {
		return ""
	}
	return fmt.Sprintf(format, mac)
}

// switchText returns the switch and the settings of the port.
func switchText(d tapmgr.Detail) string {
	text := d.Source
	if settings := nicSettings(d.NIC); settings != "" {
		text += ", port with " + settings
	}
	if d.Socket != "" && d.Socket != d.Source {
		text += " (" + d.Socket + ")"
	}
	return text
}

// placeField returns the bridge, switch or parent device of the NIC.
func placeField(d tapmgr.Detail) field {
	if d.Switch {
		return field{"switch", switchText(d)}
	}
	if d.Type == nic.TypeTap || d.Type == nic.TypeOVS {
		return field{"bridge", bridgeText(d)}
	}
	if d.Type == nic.TypeRouted {
		return field{"uplink", d.Source}
	}
	text := fmt.Sprintf("%s, mode %s, rx filter %s", d.Lower, d.Mode, d.RxFilter)
	if d.RxFilter == nic.RxMirror && !d.Mirrored {
		text += " (all multicast until vmnet watch has queried the guest)"
	}
	if d.Netns != "" {
		text += fmt.Sprintf(", in a netns of its own (nsenter --net=%s)", d.Netns)
	}
	return field{"lower", text}
}

// addressesText returns the addresses with where each is known from.
func addressesText(d tapmgr.Detail) string {
	var all []string
	for _, a := range d.Addresses {
		all = append(all, a.String())
	}
	return strings.Join(all, ", ")
}

// counterFields returns the counters from the guest's side.
func counterFields(d tapmgr.Detail) []field {
	t := d.Traffic()
	by := "dropped by port security"
	if !d.AllowIn.IsZero() {
		by = "dropped by vmnet" // of both directions
	}
	if d.Switch {
		by = "dropped by the switch"
	}
	return []field{
		{"from guest", counterText(t.FromGuest)}, {"to guest", counterText(t.ToGuest)}, {by, dropsText(d.Drops)},
	}
}

// dropsText returns the empty string if nothing was dropped.
func dropsText(drops map[string]uint64) string {
	var texts []string
	for _, why := range slices.Sorted(maps.Keys(drops)) {
		texts = append(texts, fmt.Sprintf("%d %s", drops[why], why))
	}
	return strings.Join(texts, ", ")
}

func stateText(d tapmgr.Detail) string {
	if d.ForwardIn > 0 {
		return fmt.Sprintf("%s, forwards in %.0f s", d.State, d.ForwardIn)
	}
	return string(d.State)
}

func bridgeText(d tapmgr.Detail) string {
	if d.Bridge != d.Source {
		return fmt.Sprintf("%s, but should be %s", orNone(d.Bridge), orNone(d.Source))
	}
	if d.Port != "" {
		return d.Bridge + ", port with " + d.Port
	}
	return d.Bridge
}

// ovsText returns what Open vSwitch says of its port; empty for other NICs.
func ovsText(d tapmgr.Detail) string {
	if d.OVS == nil {
		return ""
	}
	text := fmt.Sprintf("iface-id %s, ofport %d, datapath %s", d.IfaceID, d.OVS.OFPort, d.OVS.Datapath)
	if d.OVS.Error != "" {
		text += fmt.Sprintf(", error %q", d.OVS.Error)
	}
	if d.OVS.IsOVNs {
		text += ", OVN's flows installed: " + map[bool]string{true: "yes", false: "no"}[d.OVS.Installed]
	}
	return text
}

func holdersText(holders []nic.Holder) string {
	var texts []string
	for _, h := range holders {
		who := "process"
		if p, err := qemu.ByPID(h.PID); err == nil && p.PID != 0 {
			who = "QEMU, pid"
		}
		texts = append(texts, fmt.Sprintf("%s %d, fds %s", who, h.PID, joinInts(h.FDs)))
	}
	if len(texts) == 0 {
		return "no process that this user can see"
	}
	return strings.Join(texts, "; ")
}

func vhostText(d tapmgr.Detail) string {
	if len(d.VhostFDs) == 0 {
		return d.Vhost
	}
	return fmt.Sprintf("%s, QEMU's vhost-net fds: %s", d.Vhost, joinInts(d.VhostFDs))
}

func learnedText(d tapmgr.Detail) string {
	var macs []string
	for _, l := range d.Learned {
		text := l.MAC
		if l.VLAN != 0 {
			text += fmt.Sprintf(" (VLAN %d)", l.VLAN)
		}
		macs = append(macs, text)
	}
	if d.Type != nic.TypeTap && !d.Switch {
		return "" // no bridge, so nothing learns
	}
	return orNone(strings.Join(macs, ", "))
}

func counterText(d nic.Direction) string {
	return fmt.Sprintf("%d packets, %d bytes, %d errors, %d dropped", d.Packets, d.Bytes, d.Errors, d.Dropped)
}

func guestText(g *tapmgr.GuestView) string {
	switch {
	case g == nil:
		return "unknown, it was not queried"
	case !g.Plugged:
		return fmt.Sprintf("it has no device %s", g.Device)
	}
	texts := []string{"device " + g.Device}
	if g.MAC != "" {
		texts = append(texts, "MAC "+g.MAC)
	}
	if g.Promiscuous {
		texts = append(texts, "promiscuous")
	}
	if len(g.Multicast) > 0 {
		texts = append(texts, "multicast "+strings.Join(g.Multicast, " "))
	}
	if len(g.VLANs) > 0 {
		texts = append(texts, "VLANs "+vlanText(g.VLANs))
	}
	return strings.Join(texts, ", ")
}

// vlanText writes 1-3 for 1, 2 and 3, because a guest that does not filter accepts all 4096.
func vlanText(ids []int) string {
	var ranges []brport.VLANRange
	for _, id := range ids {
		ranges = append(ranges, brport.VLANRange{First: id, Last: id})
	}
	return brport.FormatVLANs(ranges)
}

func joinInts(ns []int) string { return strings.Trim(fmt.Sprint(ns), "[]") }
