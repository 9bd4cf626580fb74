package main

import (
	"github.com/spf13/cobra"

	"vmnet/internal/cli/version"
)

func (a *app) versionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version of vmnet",
		Args:  noArgs(),
		RunE: a.verb(func(*cobra.Command, []string) error {
			return a.result(version.Get(), "%s", versionText())
		}),
	}
	outputFlag(cmd)
	return cmd
}

func versionText() string { return version.Text("vmnet") }
