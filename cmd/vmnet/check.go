package main

import (
	"cmp"
	"fmt"

	"github.com/spf13/cobra"

	"vmnet/internal/nsport"
	"vmnet/internal/routed/obstacles"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

func (a *app) checkCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Compare what every NIC should be with what it is",
		Long: `Compare what every NIC should be with what it is, in the kernel and in the guest. Each
difference is one line, followed by a line with its cure: vmnet reconcile, in place of which
the same vmnet attach does as well; that attach alone, where it must replace the NIC; a
detach; or an action of the administrator. Running guests are also compared with their files
(vmnet-guests(5)): vmnet apply mends that. If there is a difference, the exit status is 1.`,
		Example: "  vmnet check || vmnet reconcile",
		Args:    noArgs(),
	}
	var declared string
	guestsDirFlag(cmd, &declared)
	format := outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, _ []string) error {
		return a.withManager(func(m *tapmgr.Manager) error {
			checked, err := m.Check(cmd.Context())
			if err != nil {
				return err
			}
			more, err := nsport.Check(cmd.Context(), a.netns)
			if err != nil {
				return err
			}
			checked.Differences = append(checked.Differences, more...)
			declaredErr := a.checkDeclared(cmd.Context(), m, declared, &checked)
			found, err := obstacles.In(cmd.Context(), a.netns, "")
			if err != nil {
				checked.Notices = append(checked.Notices, err.Error())
			}
			checked.Differences = append(checked.Differences, found.Differences...)
			a.notes(checked.Notices)
			if *format == "json" {
				err = a.printJSON(checked)
			} else {
				err = a.printChecked(checked)
			}
			if err := cmp.Or(err, declaredErr); err != nil {
				return err
			}
			if len(checked.Differences) > 0 {
				return exitStatus(exitFailure)
			}
			return nil
		})
	})
	return cmd
}

func (a *app) printChecked(c tapmgr.Checked) error {
	for _, d := range c.Differences {
		err := a.line("%s: %s: want %s, found %s", linkText(d.VM, d.NIC, d.Interface), d.What,
			orNone(d.Want), orNone(d.Found))
		if err == nil && d.Mend != "" {
			err = a.line("    mend: %s", d.Mend)
		}
		if err != nil {
			return err
		}
	}
	if len(c.Differences) == 0 {
		return a.line("%s compared, no difference", count(c.NICs, "NIC"))
	}
	return nil
}

// linkText names a NIC and its interface. For a tap of qemu-ifup only the interface is known.
func linkText(vm, nic, iface string) string {
	if vm == "" && nic == "" {
		return iface
	}
	return vm + "/" + nic + " " + iface
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func (a *app) reconcileCommand() *cobra.Command {
	var dry bool
	var rows foreignRows
	cmd := &cobra.Command{
		Use:   "reconcile",
		Short: "Restore NICs, and remove leftovers",
		Long: `Remove NICs whose guest has ended, and taps that a program got from qemu-netup, made
persistent and left behind. Undo interrupted attaches, and finish interrupted detaches. Fix what
vmnet check finds on the other NICs: put ports that have no bridge back on theirs, and restore
links, addresses, MTUs and port settings. Leave alone what only somebody else can fix, NICs that
another vmnet is working on, and NICs that are on another bridge, and list them with their cure. Do
the same for the interfaces of network namespaces (vmnet netns).

A port in Open vSwitch's database that another program has made, and whose device has gone, stays
until somebody deletes it. --foreign-rows names those ports, asks, and removes them, instead of the
rest. A port whose device comes back meanwhile is left alone.`,
		Example: `  vmnet reconcile --dry-run
  vmnet reconcile
  vmnet reconcile --foreign-rows`,
		Args: noArgs(),
	}
	f := cmd.Flags()
	f.BoolVar(&dry, "dry-run", false, "only print what would be done")
	f.BoolVar(&rows.wanted, "foreign-rows", false, "remove ports of Open vSwitch that others have left, and no NIC")
	f.BoolVar(&rows.yes, "yes", false, "with --foreign-rows: ask nobody")
	f.StringSliceVar(&rows.ovsdbs, "ovsdb", nil,
		"with --foreign-rows: `SOCKET` of Open vSwitch's database, if it is not this machine's usual one (repeatable)")
	format := outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, _ []string) error {
		if !rows.wanted && (rows.yes || len(rows.ovsdbs) > 0) {
			return usagef("--yes and --ovsdb are for --foreign-rows")
		}
		return a.withManager(func(m *tapmgr.Manager) error {
			if rows.wanted {
				rows.dry, rows.json = dry, *format == "json"
				return rows.run(cmd, a, m)
			}
			actions, err := m.Reconcile(cmd.Context(), dry)
			if err == nil {
				var more []nic.Action
				more, err = nsport.Reconcile(cmd.Context(), a.netns, dry)
				actions = append(actions, more...)
			}
			if err != nil && len(actions) == 0 {
				return err
			}
			show := func() error { return a.printActions(actions, dry) }
			if *format == "json" {
				show = func() error { return a.printJSON(actions) }
			}
			return cmp.Or(show(), err, failures(actions)) // print what was done even if it was interrupted
		})
	})
	return cmd
}

func (a *app) printActions(actions []nic.Action, dry bool) error {
	for _, act := range actions {
		text := act.Action
		switch {
		case act.Error != "":
			text = fmt.Sprintf("failed: %s: %s", text, act.Error)
		case dry && act.Changed:
			text = "would be " + text
		}
		if err := a.line("%s: %s", linkText(act.VM, act.NIC, act.Interface), text); err != nil {
			return err
		}
	}
	if len(actions) == 0 {
		return a.print("nothing to do\n")
	}
	return nil
}

// failures returns an error if an action failed.
func failures(actions []nic.Action) error {
	failed := 0
	for _, act := range actions {
		if act.Error != "" {
			failed++
		}
	}
	if failed > 0 {
		return fmt.Errorf("reconcile: %d of %s failed", failed, count(len(actions), "action"))
	}
	return nil
}
