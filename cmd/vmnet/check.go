package main

import (
	"github.com/spf13/cobra"

	"vmnet/tapmgr"
)

func (a *app) checkCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Compare what every NIC should be with what it is",
		Long: `Compare what every NIC should be with what it is, in the kernel and in the guest.
Each difference is one line, followed by a line with its cure: vmnet reconcile or the same vmnet
attach again, which do the same, or else a detach or an action of the administrator. If there is a
difference, the exit status is 1.`,
		Example: "  vmnet check || vmnet reconcile",
		Args:    noArgs(),
	}
	format := outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, _ []string) error {
		return a.withManager(func(m *tapmgr.Manager) error {
			checked, err := m.Check(cmd.Context())
			if err != nil {
				return err
			}
			a.notes(checked.Notices)
			if *format == "json" {
				err = a.printJSON(checked)
			} else {
				err = a.printChecked(checked)
			}
			if err != nil {
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
