package main

import (
	"os/user"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"vmnet/tapmgr"
)

func (a *app) listCommand() *cobra.Command {
	var vm string
	cmd := &cobra.Command{
		Use:        "list [VM]",
		SuggestFor: []string{"ls"},
		Short:      "List the NICs of all guests",
		Long: `List the NICs of all guests, and after them the host's own access to the guests of a
lower (vmnet lower), as type macvlan, of no guest. It asks the kernel only, so it waits for
nobody; but libvirt, for a second at most, where that has made NICs of its own. Those are marked
as foreign, and never touched. The NICs on userspace switches are asked of those, half a second
at most; one that does not answer is told of.`,
		Example: `  vmnet list
  vmnet list P2 -o json`,
		Args:              atMostOne("the name of a guest"),
		ValidArgsFunction: a.attachedGuests,
	}
	cmd.Flags().StringVar(&vm, "vm", "", "only those of the guest of that `NAME` (default all)")
	format := outputFlag(cmd)
	complete(cmd, "vm", a.attachedGuests)
	cmd.RunE = a.verb(func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			if vm != "" && vm != args[0] {
				return usagef("--vm %s, and %s: list takes one guest, or all", vm, args[0])
			}
			vm = args[0]
		}
		return a.withManager(func(m *tapmgr.Manager) error {
			nics, err := m.ListAll(cmd.Context(), vm)
			if err != nil {
				return err
			}
			if *format == "json" {
				return a.printJSON(nics)
			}
			return a.printList(nics)
		})
	})
	return cmd
}

// sourceText is where a NIC leads to, and how.
func sourceText(n tapmgr.NIC) string {
	how := n.Mode + nicSettings(n)
	if n.Switch {
		how = strings.TrimSuffix("switch;"+how, ";")
	}
	if how != "" {
		return n.Source + "(" + how + ")"
	}
	return n.Source
}

// nicSettings is how the port is set, where that is not as by default.
func nicSettings(n tapmgr.NIC) string { return strings.Trim(n.Port+";"+n.Limits, ";") }

func (a *app) printList(nics []tapmgr.NIC) error {
	rows := [][]string{{"VM", "NIC", "INTERFACE", "TYPE", "SOURCE", "MODEL", "MAC", "QUEUES", "VHOST", "STATE"}}
	owned := slices.ContainsFunc(nics, func(n tapmgr.NIC) bool { return n.UID != 0 })
	if owned {
		rows[0] = append(rows[0], "OWNER")
	}
	libvirt := slices.ContainsFunc(nics, func(n tapmgr.NIC) bool { return n.Via != "" || n.Foreign })
	if libvirt {
		rows[0] = append(rows[0], "VIA")
	}
	for _, n := range nics {
		row := []string{n.VM, n.ID, n.Interface, n.Type, sourceText(n), n.Model, n.MAC, queuesText(n), n.Vhost, string(n.State)}
		if owned {
			row = append(row, ownerText(n.UID))
		}
		if libvirt {
			row = append(row, viaText(n))
		}
		rows = append(rows, row)
	}
	return a.table(rows)
}

// viaText is how a guest of libvirt's has got a NIC; foreign is libvirt's own doing.
func viaText(n tapmgr.NIC) string {
	if n.Foreign {
		return "foreign"
	}
	return string(n.Via)
}

// ownerText names the user for whom qemu-netup made a NIC; it is empty for none.
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

// queuesText is empty for a host access, which has none that anybody opens.
func queuesText(n tapmgr.NIC) string {
	if n.Queues == 0 {
		return ""
	}
	return strconv.Itoa(n.Queues)
}
