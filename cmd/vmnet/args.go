package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// What a command line is refused for before its verb begins: in words that say what to type.

// oneArg is cobra.ExactArgs(1) with words that tell what is missing.
func oneArg(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return fmt.Errorf("%s takes %s, got %s", cmd.CommandPath(), what, count(len(args), "argument"))
		}
		return nil
	}
}

// noArgs is cobra.NoArgs with words of its own. Each argument may stand for a flag, of which there
// is an example.
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

// atMostOne is cobra.MaximumNArgs(1) with words that tell what may be there.
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
			panic(err) // no such flag: a typing error of ours
		}
	}
}

// requireOne makes one flag of several mandatory.
func requireOne(cmd *cobra.Command, names ...string) {
	cmd.MarkFlagsOneRequired(names...)
	cmd.Annotations = map[string]string{oneOf: strings.Join(names, " ")}
}

// oneOf is the annotation of a command that names the flags of requireOne.
const oneOf = "one of"

// strict has a command and those below it tell which flags they need, before cobra does in words of
// its own. What takes no arguments is not completed with files.
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

// missingFlags is an error that names the flags that a command needs and was not given, as they are
// typed.
func missingFlags(cmd *cobra.Command) error {
	var missing []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if _, required := f.Annotations[cobra.BashCompOneRequiredFlag]; required && !f.Changed {
			missing = append(missing, typed(f))
		}
	})
	if names := strings.Fields(cmd.Annotations[oneOf]); len(names) > 0 && !slices.ContainsFunc(names, cmd.Flags().Changed) {
		var choice []string
		for _, n := range names {
			choice = append(choice, typed(cmd.Flags().Lookup(n)))
		}
		missing = append(missing, "one of "+strings.Join(choice, ", "))
	}
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("%s needs %s", cmd.CommandPath(), strings.Join(missing, ", and "))
}

// typed is a flag as it is typed.
func typed(f *pflag.Flag) string {
	value, _ := pflag.UnquoteUsage(f)
	return strings.TrimSpace("--" + f.Name + " " + value)
}

// errNoCommand is a command line that ends where a command should follow.
var errNoCommand = errors.New("no command is named")

// group makes a command that only has others under it refuse anything else, and without anything
// show what there is; cobra would call both success.
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

// nearest are the commands that are spelt most like what was typed.
func nearest(cmd *cobra.Command, typed string) (names []string) {
	for distance := 1; distance <= 2 && len(names) == 0; distance++ {
		cmd.SuggestionsMinimumDistance = distance
		names = cmd.SuggestionsFor(typed)
	}
	return names
}

// flagError is about a flag that a command does not have: of one that only has others under it, the
// command that was meant comes first.
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
