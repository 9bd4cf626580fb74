package main

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vmnet/tapmgr"
)

// value is a flag whose text is checked while the command line is read.
type value struct {
	kind, text string
	set        func(string) error
}

func (v *value) Type() string   { return v.kind }
func (v *value) String() string { return v.text }

func (v *value) Set(s string) error {
	if err := v.set(s); err != nil {
		return err
	}
	v.text = s
	return nil
}

// choice is a flag that takes one of a few words; *p is the default.
func choice(cmd *cobra.Command, fs *pflag.FlagSet, p *string, name, short, usage string, words ...string) {
	fs.VarP(&value{strings.Join(words, "|"), *p, func(s string) error {
		if !slices.Contains(words, s) {
			return fmt.Errorf("want %s", strings.Join(words, " or "))
		}
		*p = s
		return nil
	}}, name, short, usage)
	complete(cmd, name, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
}

// outputFlag adds -o; the result becomes true for JSON.
func outputFlag(cmd *cobra.Command) *string {
	format := "text"
	choice(cmd, cmd.Flags(), &format, "output", "o", "text for people, json for programs", "text", "json")
	return &format
}

func macFlag(fs *pflag.FlagSet, p *net.HardwareAddr, usage string) {
	fs.Var(&value{"MAC", "", func(s string) (err error) {
		*p, err = net.ParseMAC(s)
		return err
	}}, "mac", usage)
}

func queuesFlag(cmd *cobra.Command, p *int) {
	cmd.Flags().Var(&value{"N|auto", "1", func(s string) error {
		if s == "auto" {
			*p = tapmgr.QueuesAuto
			return nil
		}
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > tapmgr.MaxQueues {
			return fmt.Errorf("want 1 to %d, or auto", tapmgr.MaxQueues)
		}
		*p = n
		return nil
	}}, "queues", fmt.Sprintf("queue pairs, 1 to %d; auto is the number of vCPUs, at most %d", tapmgr.MaxQueues, tapmgr.MaxAutoQueues))
	complete(cmd, "queues", cobra.FixedCompletions([]string{"auto", "1", "2", "4", "8"}, cobra.ShellCompDirectiveNoFileComp))
}

func optionsFlag(fs *pflag.FlagSet, p *map[string]string) {
	*p = map[string]string{}
	fs.Var(&value{"KEY=VALUE", "", func(s string) error {
		k, v, ok := strings.Cut(s, "=")
		if !ok || k == "" {
			return fmt.Errorf("want KEY=VALUE")
		}
		if _, twice := (*p)[k]; twice {
			return fmt.Errorf("%s is given twice", k)
		}
		(*p)[k] = v
		return nil
	}}, "device-opt", "a further property of QEMU's device, such as rx_queue_size=1024 (repeatable)")
}

func addressFlag(fs *pflag.FlagSet, p *[]netip.Prefix) {
	fs.Var(&value{"CIDR", "", func(s string) error {
		a, err := netip.ParsePrefix(s)
		if err != nil {
			return fmt.Errorf("want an address with its prefix length, such as 10.0.0.1/24 or fd00::1/64")
		}
		*p = append(*p, a)
		return nil
	}}, "address", "IP address of the host on the bridge, such as 10.0.0.1/24 (repeatable)")
}

// durationFlag is a time of at least least.
func durationFlag(fs *pflag.FlagSet, p *time.Duration, name string, def, least time.Duration, usage string) {
	*p = def
	fs.Var(&value{"duration", def.String(), func(s string) error {
		d, err := time.ParseDuration(s)
		if err != nil || d < least {
			return fmt.Errorf("want a time of at least %v with its unit, such as %v", least, def)
		}
		*p = d
		return nil
	}}, name, usage)
}

// targetFlags name the guest of a verb that changes it.
func targetFlags(cmd *cobra.Command, t *tapmgr.Target) {
	f := cmd.Flags()
	f.StringVar(&t.VM, "vm", "", "the guest's `NAME`, as in QEMU's -name guest=NAME")
	f.StringVar(&t.QMP, "qmp", "", "`PATH` of the socket of the guest's QMP monitor (default from QEMU's command line)")
	f.Var(&value{"PID", "", func(s string) (err error) {
		if t.PID, err = strconv.Atoi(s); err != nil || t.PID < 1 {
			return fmt.Errorf("want a process id")
		}
		return nil
	}}, "pid", "QEMU's process `ID` (default the process of that name)")
	complete(cmd, "pid", qemuPIDs)
	require(cmd, "vm")
}

// require makes flags mandatory.
func require(cmd *cobra.Command, names ...string) {
	for _, n := range names {
		if err := cmd.MarkFlagRequired(n); err != nil {
			panic(err) // no such flag: a typing error of ours
		}
	}
}

// complete tells how a flag's value is completed.
func complete(cmd *cobra.Command, name string, f cobra.CompletionFunc) {
	if err := cmd.RegisterFlagCompletionFunc(name, f); err != nil {
		panic(err) // no such flag: a typing error of ours
	}
}
