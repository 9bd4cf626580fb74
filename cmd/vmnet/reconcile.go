package main

import (
	"cmp"
	"fmt"

	"github.com/spf13/cobra"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

func (a *app) reconcileCommand() *cobra.Command {
	var dry bool
	cmd := &cobra.Command{
		Use:   "reconcile",
		Short: "Put right what crashes and others have left",
		Long: `Remove the NICs that have no guest any more, and the taps that a program which had
them from qemu-netup has made persistent and left; take back attaches and end detaches
that were cut short. What vmnet check finds of the others is mended: ports without a
bridge are put back on theirs, and links, addresses, MTUs and port settings made what
they should be. What only somebody else can mend, NICs that a vmnet works on, and those
that are on another bridge are left alone, and listed with what mends them.`,
		Example: `  vmnet reconcile --dry-run
  vmnet reconcile`,
		Args: noArgs(),
	}
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only tell what would be done")
	format := outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, _ []string) error {
		return a.withManager(func(m *tapmgr.Manager) error {
			actions, err := m.Reconcile(cmd.Context(), dry)
			if err != nil && len(actions) == 0 {
				return err
			}
			show := func() error { return a.printActions(actions, dry) }
			if *format == "json" {
				show = func() error { return a.printJSON(actions) }
			}
			return cmp.Or(show(), err, failures(actions)) // what was done is printed also where it was interrupted
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

// failures is an error where an action failed.
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
