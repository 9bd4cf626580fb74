package main

import (
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"vmnet/bridge/brport"
	"vmnet/internal/cli/nicflags"
	"vmnet/tapmgr/nic"
)

// portFlags adds the flags for the settings of the NIC's bridge port.
func portFlags(cmd *cobra.Command, p *brport.Settings) { nicflags.AddPort(cmd.Flags(), p) }

// choice adds a flag that takes one of words, and completes it; *p is the default.
func choice(cmd *cobra.Command, fs *pflag.FlagSet, p *string, name, short, usage string, words ...string) {
	nicflags.Choice(fs, p, name, short, usage, words...)
	complete(cmd, name, cobra.FixedCompletions(words, noFiles))
}

// outputFlag adds -o. The result points to "text" or "json".
func outputFlag(cmd *cobra.Command) *string {
	format := "text"
	choice(cmd, cmd.Flags(), &format, "output", "o", "text for people, json for programs", "text", "json")
	return &format
}

func addressFlag(fs *pflag.FlagSet, p *[]netip.Prefix) {
	fs.Var(nicflags.Value("CIDR", "", func(s string) error {
		a, err := netip.ParsePrefix(s)
		if err != nil {
			return fmt.Errorf("want an address with its prefix length, such as 10.0.0.1/24 or fd00::1/64")
		}
		*p = append(*p, a)
		return nil
	}), "address", "IP address of the host on the bridge, such as 10.0.0.1/24 (repeatable)")
}

// durationFlag adds a flag for a time of at least least; def is the default.
func durationFlag(fs *pflag.FlagSet, p *time.Duration, name string, def, least time.Duration, usage string) {
	*p = def
	fs.Var(nicflags.Value("duration", def.String(), func(s string) error {
		d, err := time.ParseDuration(s)
		if err != nil || d < least {
			return fmt.Errorf("want a time of at least %v with a unit, such as %v", least, max(def, least, time.Second))
		}
		*p = d
		return nil
	}), name, usage)
}

// targetFlags name the guest of a verb that changes it.
func targetFlags(cmd *cobra.Command, t *nic.Target) {
	f := cmd.Flags()
	f.StringVar(&t.VM, "vm", "", "the guest's `NAME`, as in QEMU's -name guest=NAME")
	f.StringVar(&t.QMP, "qmp", "", "`PATH` of the guest's QMP monitor socket (default: the one that QEMU listens on)")
	f.Var(nicflags.Value("PID", "", func(s string) (err error) {
		if t.PID, err = strconv.Atoi(s); err != nil || t.PID < 1 {
			return fmt.Errorf("want a process id")
		}
		return nil
	}), "pid", "QEMU's process `ID` (default the process of that name)")
	complete(cmd, "pid", qemuPIDs)
	require(cmd, "vm")
}

// complete registers how a flag's value is completed.
func complete(cmd *cobra.Command, name string, f cobra.CompletionFunc) {
	if err := cmd.RegisterFlagCompletionFunc(name, f); err != nil {
		panic(err) // no such flag: a bug
	}
}
