package main

import (
	"fmt"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"vmnet/internal/addresses"
	"vmnet/internal/cli/console"
	"vmnet/internal/cli/output"
	"vmnet/internal/metrics"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

// agentPatience is how long a list waits for guest agents.
const agentPatience = 300 * time.Millisecond

func (a *app) listCommand() *cobra.Command {
	var vm string
	cmd := &cobra.Command{
		Use:        "list [VM]",
		SuggestFor: []string{"ls"},
		Short:      "List the NICs of all guests",
		Long: `List the NICs of all guests, and after them the host accesses (vmnet lower), as type
macvlan without a guest. list reads from the kernel, so it waits for no guest. If libvirt has made
NICs of its own, list asks libvirt about them, for a second at most for each guest; those NICs are
marked as foreign, and never touched. It asks all userspace switches together for their NICs, for a
second at most, and prints a note about one that does not answer.

IP has the addresses of each NIC, as far as they are known here, without IPv6 link-local ones. With
-o wide, json or yaml all are listed, each with where it is known from: lease, from the server of a
network of vmnet or libvirt; neighbour, from the neighbour tables of the host and of named network
namespaces that are connected to the guest's bridge; agent, from a guest agent that listens on a
socket of its QEMU, for 0.3 seconds at most; port security, routed or configured, from the NIC's
--ip. A guest may claim any address to a neighbour or by its agent.

With -o prometheus, the NICs' metrics are printed as vmnet metrics prints them.

FROM and TO, with -o wide, are the bytes that have come from the guest and gone to it since its host
interface was made.

OWNER is the user for whom qemu-netup made a NIC. For a NIC on a switch it may be the user whose
processes are the only evidence of it: such a NIC is listed, but nothing is decided by it. A macvtap
is hidden if no process is seen to hold it: its files are somewhere that /proc does not show.`,
		Example: `  vmnet list
  vmnet list P2 -o json
  vmnet list -o yaml
  vmnet list -o wide`,
		Args:              atMostOne("the name of a guest"),
		ValidArgsFunction: a.attachedGuests,
	}
	cmd.Flags().StringVar(&vm, "vm", "", "only the NICs of the guest `NAME` (default all)")
	format := "text"
	choice(cmd, cmd.Flags(), &format, "output", "o",
		"text for people, as much as fits; wide for all columns; name for names only; json, yaml or prometheus for programs",
		"text", "wide", "name", "json", "yaml", "prometheus")
	complete(cmd, "vm", a.attachedGuests)
	cmd.RunE = a.verb(func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			if vm != "" && vm != args[0] {
				return usagef("--vm %s and %s: list takes one guest, or all", vm, args[0])
			}
			vm = args[0]
		}
		return a.withManager(func(m *tapmgr.Manager) error {
			look := tapmgr.Look{Addresses: format != "name", Agents: agentPatience, Drops: format == "prometheus"}
			nics, err := m.Survey(cmd.Context(), vm, look)
			if err != nil {
				return err
			}
			switch format {
			case "json":
				return a.printJSON(nics)
			case "yaml":
				return outputError(output.WriteYAML(a.out, nics))
			case "prometheus":
				return outputError(metrics.Write(a.out, nicMetrics(nics)))
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

// optionalColumns are left out of a list if they would be empty.
var optionalColumns = []string{"IP", "FROM", "TO", "OWNER", "VIA"}

// listRows returns all columns of a list except the optional ones that would be empty; FROM and TO
// only if wide.
func listRows(nics []tapmgr.Sighting, wide bool, source func(nic.NIC) string) [][]string {
	rows := [][]string{{
		"VM", "NIC", "INTERFACE", "TYPE", "SOURCE", "MODEL", "MAC", "IP", "QUEUES",
		"VHOST", "FROM", "TO", "STATE", "OWNER", "VIA",
	}}
	for _, n := range nics {
		var from, to string
		if wide && n.Traffic != nil {
			from, to = console.Bytes(n.Traffic.FromGuest.Bytes), console.Bytes(n.Traffic.ToGuest.Bytes)
		}
		rows = append(rows, []string{
			n.VM, n.ID, n.Interface, n.Type, source(n.NIC), n.Model, n.MAC, ipText(n, wide), queuesText(n.NIC),
			n.Vhost, from, to, string(n.State), ownerText(n.UID), viaText(n.NIC),
		})
	}
	for _, name := range optionalColumns {
		i := slices.Index(rows[0], name)
		if !slices.ContainsFunc(rows[1:], func(row []string) bool { return row[i] != "" }) {
			rows = without(rows, name)
		}
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
func (a *app) printNames(nics []tapmgr.Sighting) error {
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

// ipText returns the addresses of a NIC: if wide all with their sources, otherwise the first two
// that are not link-local, and how many there are besides.
func ipText(n tapmgr.Sighting, wide bool) string {
	if wide {
		var all []string
		for _, a := range n.Addresses {
			all = append(all, a.IP.String()+"("+strings.Join(a.From, ",")+")")
		}
		return strings.Join(all, ";")
	}
	usual := n.Usual()
	const most = 2
	text := nic.FormatIPs(usual[:min(most, len(usual))])
	if more := len(usual) - most; more > 0 {
		text += fmt.Sprintf(",+%d", more)
	}
	return text
}

// queuesText returns the empty string for a host access, whose queues no process can open.
func queuesText(n nic.NIC) string {
	if n.Queues == 0 {
		return ""
	}
	return strconv.Itoa(n.Queues)
}

// sightings returns NICs of which only the configured addresses are known.
func sightings(nics []nic.NIC) (all []tapmgr.Sighting) {
	for _, n := range nics {
		s := tapmgr.Sighting{NIC: n}
		for _, ip := range n.IP {
			s.Addresses = append(s.Addresses, nic.Address{IP: ip, From: []string{addresses.Configured}})
		}
		all = append(all, s)
	}
	return all
}

// printList prints the columns that fit the terminal, or all of them.
func (a *app) printList(nics []tapmgr.Sighting, wide bool) error {
	rows := listRows(nics, wide, sourceText)
	if screen := terminalWidth(a.out); !wide && tableWidth(rows) > screen {
		first := []string{"MODEL", "VHOST", "QUEUES"}
		if rows = fitted(rows, screen, first...); tableWidth(rows) > screen {
			rows = without(listRows(nics, wide, func(n nic.NIC) string { return n.Source }), first...)
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
