package main

import (
	"os/user"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

func (a *app) listCommand() *cobra.Command {
	var vm string
	cmd := &cobra.Command{
		Use:        "list [VM]",
		SuggestFor: []string{"ls"},
		Short:      "List the NICs of all guests",
		Long: `List the NICs of all guests, and after them the host accesses (vmnet lower), as type
macvlan without a guest. list reads from the kernel, so it waits for no guest. It asks libvirt, for
a second at most, if libvirt has made NICs of its own; those are marked as foreign, and never
touched. It asks userspace switches for their NICs, for half a second at most, and prints a note
about one that does not answer.

OWNER is the user for whom qemu-netup made a NIC. For a NIC on a switch it may be the user whose
processes are the only evidence of it: such a NIC is listed, but nothing is decided by it. A macvtap
is hidden if no process is seen to hold it: its files are somewhere that /proc does not show.`,
		Example: `  vmnet list
  vmnet list P2 -o json
  vmnet list -o wide`,
		Args:              atMostOne("the name of a guest"),
		ValidArgsFunction: a.attachedGuests,
	}
	cmd.Flags().StringVar(&vm, "vm", "", "only the NICs of the guest `NAME` (default all)")
	format := "text"
	choice(cmd, cmd.Flags(), &format, "output", "o",
		"text for people, as much as fits; wide for all columns; name for names only; json for programs", "text",
		"wide", "name", "json")
	complete(cmd, "vm", a.attachedGuests)
	cmd.RunE = a.verb(func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			if vm != "" && vm != args[0] {
				return usagef("--vm %s and %s: list takes one guest, or all", vm, args[0])
			}
			vm = args[0]
		}
		return a.withManager(func(m *tapmgr.Manager) error {
			nics, err := m.ListAll(cmd.Context(), vm)
			if err != nil {
				return err
			}
			switch format {
			case "json":
				return a.printJSON(nics)
			case "name":
				return a.printNames(nics)
			}
			return a.printList(nics, format == "wide")
		})
	})
	return cmd
}

// sourceText returns a NIC's bridge, switch or parent device, with mode and settings.
func sourceText(n nic.NIC) string {
	how := strings.Trim(n.Mode+";"+nicSettings(n), ";")
	if n.Switch {
		how = strings.TrimSuffix("switch;"+how, ";")
	}
	if n.Network != "" {
		how = strings.TrimSuffix("network;"+how, ";")
	}
	if how != "" {
		return n.Source + "(" + how + ")"
	}
	return n.Source
}

// listRows returns all columns of a list except IP, OWNER and VIA if they would be empty.
func listRows(nics []nic.NIC, source func(nic.NIC) string) [][]string {
	rows := [][]string{{
		"VM", "NIC", "INTERFACE", "TYPE", "SOURCE", "MODEL", "MAC", "IP", "QUEUES",
		"VHOST", "STATE", "OWNER", "VIA",
	}}
	for _, n := range nics {
		rows = append(rows, []string{
			n.VM, n.ID, n.Interface, n.Type, source(n), n.Model, n.MAC, ipText(n), queuesText(n), n.Vhost,
			string(n.State), ownerText(n.UID), viaText(n),
		})
	}
	if !slices.ContainsFunc(nics, func(n nic.NIC) bool { return len(n.IP) > 0 }) {
		rows = without(rows, "IP")
	}
	if !slices.ContainsFunc(nics, func(n nic.NIC) bool { return n.UID != 0 }) {
		rows = without(rows, "OWNER")
	}
	if !slices.ContainsFunc(nics, func(n nic.NIC) bool { return n.Via != "" || n.Foreign }) {
		rows = without(rows, "VIA")
	}
	return rows
}

// stateColour returns green for a connected NIC, yellow for one that will or may be connected, and
// red for others.
func stateColour(s nic.State) colour {
	switch s {
	case forwarding, nic.Up:
		return green
	case nic.Attaching, nic.Starting, nic.Detaching, nic.Unknown, "listening", "learning":
		return yellow
	}
	return red
}

// printNames prints a line VM/NIC for each NIC.
func (a *app) printNames(nics []nic.NIC) error {
	for _, n := range nics {
		name := n.VM + "/" + n.ID
		if n.VM == "" {
			name = n.Interface // a host access
		}
		if err := a.line("%s", name); err != nil {
			return err
		}
	}
	return nil
}

// viaText returns how a libvirt guest got the NIC; foreign means that libvirt made it itself.
func viaText(n nic.NIC) string {
	if n.Foreign {
		return "foreign"
	}
	return string(n.Via)
}

// ownerText returns the name of the user for whom qemu-netup made a NIC, or the empty string for
// root.
func ownerText(uid int) string {
	if uid == 0 {
		return ""
	}
	text := strconv.Itoa(uid)
	if u, err := user.LookupId(text); err == nil {
		return u.Username
	}
	return text
}

// ipText returns the guest's own addresses, or the empty string for none.
func ipText(n nic.NIC) string {
	if len(n.IP) == 0 {
		return ""
	}
	return nic.FormatIPs(n.IP)
}

// queuesText returns the empty string for a host access, whose queues no process can open.
func queuesText(n nic.NIC) string {
	if n.Queues == 0 {
		return ""
	}
	return strconv.Itoa(n.Queues)
}

// printList prints the columns that fit the terminal, or all of them.
func (a *app) printList(nics []nic.NIC, wide bool) error {
	rows := listRows(nics, sourceText)
	if screen := terminalWidth(a.out); !wide && tableWidth(rows) > screen {
		first := []string{"MODEL", "VHOST", "QUEUES"}
		if rows = fitted(rows, screen, first...); tableWidth(rows) > screen {
			rows = without(listRows(nics, func(n nic.NIC) string { return n.Source }), first...)
			rows = fitted(rows, screen, "TYPE", "OWNER", "MAC", "VIA", "IP")
		}
	}
	return a.table(rows, func(column, cell string) string {
		if column != "STATE" {
			return cell
		}
		return a.painted(stateColour(nic.State(cell)), cell)
	})
}
