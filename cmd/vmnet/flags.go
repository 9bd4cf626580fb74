package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vmnet/internal/cli/nicflags"
	"vmnet/tapmgr/nic"
)

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
	fs.Var(nicflags.Values("CIDR", func(s string) error {
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

// completeIf is complete for a flag that the command may lack.
func completeIf(cmd *cobra.Command, name string, f cobra.CompletionFunc) {
	if cmd.Flags().Lookup(name) != nil {
		complete(cmd, name, f)
	}
}

// Checks of the command line before its verb begins. Their errors say what to type.

// oneArg is cobra.ExactArgs(1) with an error that says what is missing.
func oneArg(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return fmt.Errorf("%s takes %s, got %s", cmd.CommandPath(), what, count(len(args), "argument"))
		}
		return nil
	}
}

// noArgs is cobra.NoArgs with an error that gives an example in which the arguments are the values
// of flags.
func noArgs(flags ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		err := fmt.Errorf("%s takes no arguments, got %q", cmd.CommandPath(), args)
		if len(flags) == 0 {
			return err
		}
		example, rest := cmd.CommandPath(), args
		for _, name := range flags {
			f := cmd.Flags().Lookup(name)
			switch {
			case f.Changed:
				example += fmt.Sprintf(" --%s %s", name, f.Value)
			case len(rest) > 0:
				example += fmt.Sprintf(" --%s %s", name, rest[0])
				rest = rest[1:]
			default:
				example += " " + typed(f)
			}
		}
		return fmt.Errorf("%w (%s)", err, example)
	}
}

// atMostOne is cobra.MaximumNArgs(1) with an error that says what the argument is.
func atMostOne(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > 1 {
			return fmt.Errorf("%s takes %s, or nothing, got %d arguments", cmd.CommandPath(), what, len(args))
		}
		return nil
	}
}

// require makes flags mandatory.
func require(cmd *cobra.Command, names ...string) {
	for _, n := range names {
		if err := cmd.MarkFlagRequired(n); err != nil {
			panic(err) // no such flag: a bug
		}
	}
}

// requireOne makes one flag of several mandatory.
func requireOne(cmd *cobra.Command, names ...string) {
	cmd.MarkFlagsOneRequired(names...)
	cmd.Annotations = map[string]string{oneOf: strings.Join(names, " ")}
}

// oneOf is the annotation of a command with the names of requireOne's flags.
const oneOf = "one of"

// strict makes a command and its subcommands report the flags that they need, before cobra does
// with its own text. Commands without arguments are not completed with files.
func strict(cmd *cobra.Command) {
	if args := cmd.Args; args != nil && !cmd.HasSubCommands() {
		if cmd.ValidArgsFunction == nil && args(cmd, []string{""}) != nil {
			cmd.ValidArgsFunction = cobra.NoFileCompletions
		}
		cmd.Args = func(cmd *cobra.Command, given []string) error {
			if err := args(cmd, given); err != nil {
				return err
			}
			return missingFlags(cmd)
		}
	}
	for _, sub := range cmd.Commands() {
		strict(sub)
	}
}

// missingFlags returns an error that lists the required flags that were not given, in the form in
// which they are typed.
func missingFlags(cmd *cobra.Command) error {
	var missing []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if _, required := f.Annotations[cobra.BashCompOneRequiredFlag]; required && !f.Changed {
			missing = append(missing, typed(f))
		}
	})
	if names := strings.Fields(cmd.Annotations[oneOf]); len(names) > 0 &&
		!slices.ContainsFunc(names, cmd.Flags().Changed) {
		var choice []string
		for _, n := range names {
			if f := cmd.Flags().Lookup(n); !f.Hidden {
				choice = append(choice, typed(f))
			}
		}
		missing = append(missing, "one of "+strings.Join(choice, ", "))
	}
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("%s needs %s", cmd.CommandPath(), strings.Join(missing, ", and "))
}

// typed returns a flag and its value's name as the user types them.
func typed(f *pflag.Flag) string {
	value, _ := pflag.UnquoteUsage(f)
	return strings.TrimSpace("--" + f.Name + " " + value)
}

// errNoCommand is the error for a command line that ends where a command should follow.
var errNoCommand = errors.New("no command given")

// group makes a command that only has subcommands show them if it gets no argument, and refuse any
// other argument. cobra would treat both as success.
func group(cmd *cobra.Command) {
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return errNoCommand
		}
		hint := ""
		if names := nearest(cmd, args[0]); len(names) > 0 {
			hint = fmt.Sprintf(" (did you mean %s?)", strings.Join(names, " or "))
		}
		return fmt.Errorf("%s has no command %q%s", cmd.CommandPath(), args[0], hint)
	}
	cmd.RunE = func(*cobra.Command, []string) error { return nil } // never reached, see Args
}

// nearest returns the commands whose spelling is closest to what was typed.
func nearest(cmd *cobra.Command, typed string) (names []string) {
	for distance := 1; distance <= 2 && len(names) == 0; distance++ {
		cmd.SuggestionsMinimumDistance = distance
		names = cmd.SuggestionsFor(typed)
	}
	return names
}

// flagError returns the error for a flag that a command does not have. If the command only has
// subcommands, the error about the subcommand comes first.
func (a *app) flagError(cmd *cobra.Command, err error) error {
	if !cmd.HasSubCommands() {
		return err
	}
	_, rest, findErr := cmd.Root().Find(a.args)
	if findErr != nil {
		return err
	}
	cmd.FParseErrWhitelist.UnknownFlags = true
	if cmd.ParseFlags(rest) != nil || cmd.Flags().NArg() == 0 {
		return err
	}
	return cmd.ValidateArgs(cmd.Flags().Args())
}
