package main

import (
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

func (a *app) manCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "man DIR",
		Short:  "Write the man pages into a folder",
		Hidden: true, // for the Makefile
		Args:   oneArg("a folder"),
		RunE: a.verb(func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			root := cmd.Root()
			root.DisableAutoGenTag = true // no date, so that builds can be repeated
			return doc.GenManTree(root, &doc.GenManHeader{Section: "1", Source: "vmnet", Manual: "User commands"}, args[0])
		}),
	}
}
