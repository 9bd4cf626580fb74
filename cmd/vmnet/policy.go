package main

import (
	"github.com/spf13/cobra"

	"vmnet/internal/access/bridgeconf"
	"vmnet/internal/access/policy"
)

func (a *app) policyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Check which users may have which NICs from qemu-netup",
		Long: `Check the files that say which users may have which NICs without being root: ` + policy.DefaultPath + `
and ` + bridgeconf.DefaultPath + `. Both must allow a NIC on a bridge.`,
	}
	group(cmd)
	cmd.AddCommand(a.policyCheckCommand(), a.policyTestCommand())
	return cmd
}

func (a *app) policyCheckCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check [FILE]",
		Short: "Check a policy for errors",
		Long: `Check a policy for errors, by default ` + policy.DefaultPath + `. An error is reported with its line
and column. Something that is valid but probably unintended, such as an unknown user, is a note.`,
		Example: `  vmnet policy check
  vmnet policy check ./policy.yaml -o json`,
		Args: atMostOne("a file"),
	}
	format := outputFlag(cmd)
	cmd.RunE = a.verb(func(_ *cobra.Command, args []string) error {
		path := policy.DefaultPath
		if len(args) > 0 {
			path = args[0]
		}
		return a.policyCheck(path, *format == "json")
	})
	return cmd
}

// policyChecked is the result for a file without errors.
type policyChecked struct {
	File     string   `json:"file"`
	Rules    int      `json:"rules"`
	Profiles []string `json:"profiles"`
	Warnings []string `json:"warnings"`
}

func (a *app) policyCheck(path string, json bool) error {
	p, err := policy.LoadDraft(path)
	if err != nil {
		return err
	}
	c := policyChecked{File: path, Rules: p.Rules(), Profiles: []string{}, Warnings: []string{}} // no null in JSON
	c.Profiles, c.Warnings = append(c.Profiles, p.Profiles()...), append(c.Warnings, p.Warnings()...)
	if json {
		return a.printJSON(c)
	}
	a.notes(c.Warnings)
	return a.line("%s: %s, %s, ok", c.File, count(c.Rules, "rule"), count(len(c.Profiles), "profile"))
}
