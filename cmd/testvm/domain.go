package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"vmnet/testvm"
)

func domainCommand() *cobra.Command {
	var d testvm.Domain
	var dir string
	cmd := &cobra.Command{
		Use:   "domain --dir DIRECTORY",
		Short: "Print the XML of a guest for libvirt",
		Example: `  testvm domain --name web --dir /var/tmp >web.xml
  virsh define web.xml && virsh start web
  testvm ping --name web 10.0.0.1`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			agent, err := socket(d.Agent, d.Name, "agent")
			if err != nil {
				return err
			}
			if dir, err = filepath.Abs(dir); err != nil {
				return err
			}
			dir = filepath.Join(dir, d.Name)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			parts, err := testvm.MakeParts(cmd.Context(), testvm.Config{Name: d.Name}, dir)
			if err != nil {
				return err
			}
			if err := parts.CopyKernel(dir); err != nil {
				return err
			}
			d.Agent, d.Console = agent, filepath.Join(dir, "console")
			_, err = fmt.Fprint(cmd.OutOrStdout(), d.XML(parts))
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&d.Name, "name", "testvm", "the guest's name")
	f.StringVar(&d.Machine, "machine", "q35", "pc, or q35 with spare ports")
	f.IntVar(&d.CPUs, "cpus", 1, "virtual processors")
	f.StringVar(&dir, "dir", "",
		"`DIRECTORY` for the boot files and the console log; libvirt's user must be able to read it")
	f.StringVar(&d.Agent, "agent", "", "path of the agent's socket (default NAME.agent in your directory for sockets)")
	_ = cmd.MarkFlagRequired("dir")
	return cmd
}
