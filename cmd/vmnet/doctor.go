package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"vmnet/internal/cli/console"
	"vmnet/internal/doctor"
	"vmnet/internal/kernel/netns"
)

func (a *app) doctorCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check whether this machine is ready for guests' NICs",
		Long: `Check whether this machine is ready for guests' NICs: the helper qemu-netup, its
privilege and its rules, the kernel's devices, QEMU, other programs that manage taps, the
bridges, the networks of vmnet network with other firewalls that drop their traffic, and the rates
of NICs. Nothing is changed. Each finding is one line: ok, warn or fail, the object, and the finding
with its cure. The exit status is 1 if there is a fail.

Root sees all findings, other users those that they may see, such as whether they may use the
helper, and have networks of their own.`,
		Example: "  vmnet doctor\n  vmnet doctor -o json",
		Args:    noArgs(),
	}
	format := outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, _ []string) error {
		ns, err := netns.Open(a.netns)
		if err != nil {
			return err
		}
		defer ns.Close()
		m, err := machine()
		if err != nil {
			return err
		}
		m.NS, m.NetnsName = ns, a.netns
		return a.printChecks(m.Look(cmd.Context()), *format == "json")
	})
	return cmd
}

// machine returns the machine that this process runs on.
func machine() (doctor.Machine, error) {
	self, err := os.Executable()
	return doctor.Machine{Self: filepath.Dir(self), Path: filepath.SplitList(os.Getenv("PATH"))}, err
}

func (a *app) printChecks(checks []doctor.Check, json bool) error {
	print := a.printCheckLines
	if json {
		print = func(checks []doctor.Check) error { return a.printJSON(checks) }
	}
	if err := print(checks); err != nil {
		return err
	}
	if doctor.Failed(checks) {
		return exitStatus(exitFailure)
	}
	return nil
}

func (a *app) printCheckLines(checks []doctor.Check) error {
	width := 0
	for _, c := range checks {
		width = max(width, len(c.Name))
	}
	for _, c := range checks {
		cure := ""
		if c.Cure != "" {
			cure = " (" + c.Cure + ")"
		}
		status := a.painted(map[doctor.Status]colour{doctor.OK: green, doctor.Warn: yellow, doctor.Fail: red}[c.Status],
			fmt.Sprintf("%-4s", c.Status))
		if err := a.print("%s  %s\n",
			status, console.Clean(fmt.Sprintf("%-*s  %s%s", width, c.Name, c.Text, cure))); err != nil {
			return err
		}
	}
	return nil
}
