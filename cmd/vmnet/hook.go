package main

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"vmnet/internal/doctor"
	"vmnet/internal/libvirthook/hookfile"
)

func (a *app) hookCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "hook",
		Short: "Let libvirt call vmnet when guests start and end",
		Long: `Let libvirt call vmnet when guests start and end. The hook makes the devices of NICs
that are declared in a domain's metadata before the guest starts, gives the bridge ports of libvirt
taps their declared settings, and removes what is left when a guest ends. vmnet-hook(8) says how
NICs are declared.`,
	}
	group(cmd)
	cmd.AddCommand(a.hookInstallCommand(), a.hookRemoveCommand(), a.hookExplainCommand())
	return cmd
}

// hookFlags says where the hook is.
type hookFlags struct {
	root, dir string
	json      bool
}

func (o *hookFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.dir, "dir", hookfile.Dir, "libvirt's `DIRECTORY` of hooks for QEMU guests")
	f.StringVar(&o.root, "root", "", "the `DIRECTORY` to use as /, such as that of an image")
}

func (o *hookFlags) check() error {
	if !filepath.IsAbs(o.dir) {
		return usagef("--dir %q: want an absolute path", o.dir)
	}
	o.dir = filepath.Clean(o.dir)
	return nil
}

func (a *app) hookInstallCommand() *cobra.Command {
	var o hookFlags
	var program string
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Add the hook to libvirt's hooks",
		Long: `Add the hook to libvirt's hooks: a link to the program vmnet-hook, in ` + hookfile.Dir + `.
Other hooks are left alone, and a file of the same name that does not belong to vmnet is not
replaced. libvirt must be of version 6.5 or later. If it knows of no hook yet, it has to be reloaded;
a note says how.

Only root may be able to change the program, since libvirt executes it as root.`,
		Example: `  vmnet hook install
  vmnet hook install --root /mnt/image --program /usr/bin/vmnet-hook`,
		Args: noArgs(),
	}
	o.add(cmd)
	cmd.Flags().StringVar(&program, "program", "",
		"`PATH` of the program (default "+hookfile.Program+" beside vmnet, or in $PATH)")
	format := outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, _ []string) error {
		if err := o.check(); err != nil {
			return err
		}
		o.json = *format == "json"
		return a.hookInstall(cmd, o, program)
	})
	return cmd
}

func (a *app) hookInstall(cmd *cobra.Command, o hookFlags, program string) error {
	m, err := machine()
	if err != nil {
		return err
	}
	if program == "" {
		found := false
		if program, found = m.FindHook(); !found {
			return fmt.Errorf("%s is neither beside vmnet nor in $PATH (make install, or name it with --program)",
				hookfile.Program)
		}
	}
	if o.root == "" { // an image cannot be checked yet
		if err := m.HookUnknown(cmd.Context()); err != nil {
			return err
		}
		if err := m.HookSafe(program); err != nil {
			return fmt.Errorf("program %w", err)
		}
	}
	change, err := hookfile.Install(o.root, o.dir, program)
	if err != nil {
		return fmt.Errorf("install the hook: %w", err)
	}
	if profile := m.Confined(program); profile != "" && o.root == "" {
		a.note(fmt.Sprintf("AppArmor's profile %s does not let libvirt execute the hook (%s)",
			profile, doctor.AppArmorCure(program)))
	}
	if change.Reload && o.root == "" {
		a.note("libvirt knew of no hook and must be reloaded (systemctl reload libvirtd, or virtqemud)")
	}
	return a.printHook(change, o.json, "installed")
}

func (a *app) hookRemoveCommand() *cobra.Command {
	var o hookFlags
	cmd := &cobra.Command{
		Use:   "remove",
		Short: "Remove the hook from libvirt's hooks",
		Long: `Remove the hook from libvirt's hooks. From the next operation on, libvirt no longer
calls it. Guests whose NICs are on devices that vmnet makes then do not start, taps that libvirt
makes for vmnet are on no bridge, and no settings are made on the bridge ports of others.`,
		Example: "  vmnet hook remove",
		Args:    noArgs(),
	}
	o.add(cmd)
	format := outputFlag(cmd)
	cmd.RunE = a.verb(func(*cobra.Command, []string) error {
		if err := o.check(); err != nil {
			return err
		}
		change, err := hookfile.Remove(o.root, o.dir)
		if err != nil {
			return fmt.Errorf("remove the hook: %w", err)
		}
		return a.printHook(change, *format == "json", "removed")
	})
	return cmd
}

func (a *app) printHook(c hookfile.Change, json bool, done string) error {
	switch {
	case json:
		return a.printJSON(c)
	case c.Changed:
		return a.line("hook %s %s: %s", c.Path, done, c.Program)
	}
	return a.line("hook %s: nothing to do", c.Path)
}
