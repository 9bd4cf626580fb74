package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"vmnet/internal/doctor"
	"vmnet/internal/libvirthook/hook"
	"vmnet/internal/libvirthook/hookfile"
	"vmnet/libvirt/domainxml"
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

// maxDomain bounds a file with a domain's XML, in bytes. libvirt's own limit for strings is 4 MiB.
const maxDomain = 4 << 20

func (a *app) hookExplainCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "explain FILE",
		Short: "Show what the hook would do for a domain",
		Long: `Show what the hook would do for a domain at each operation of libvirt. FILE has the
domain's XML, as virsh dumpxml prints it; - is standard input. An error in a declaration is reported
as the hook would report it to libvirt, and the exit status is then 1. Nothing is done, and the
machine is not inspected: whether a bridge exists shows only when the guest starts.`,
		Example: `  virsh dumpxml web | vmnet hook explain -
  vmnet hook explain web.xml -o json`,
		Args: oneArg("a file with a domain's XML, or -"),
	}
	format := outputFlag(cmd)
	cmd.RunE = a.verb(func(cmd *cobra.Command, args []string) error {
		text, err := readDomain(args[0], cmd.InOrStdin())
		if err != nil {
			return err
		}
		def, err := domainxml.Parse(text)
		if err != nil {
			return fmt.Errorf("%s: %w (want XML as virsh dumpxml prints it)", args[0], err)
		}
		e, err := hook.Explain(def)
		if err != nil {
			return fmt.Errorf("%s: %w", args[0], err)
		}
		if *format == "json" {
			return a.printJSON(e)
		}
		return a.printExplanation(e)
	})
	return cmd
}

func readDomain(path string, stdin io.Reader) (string, error) {
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return "", err
		}
		defer f.Close()
		stdin = f
	}
	text, err := io.ReadAll(io.LimitReader(stdin, maxDomain+1))
	if err == nil && len(text) > maxDomain {
		err = fmt.Errorf("%s: more than %d bytes", path, maxDomain)
	}
	return string(text), err
}

func (a *app) printExplanation(e hook.Explanation) error {
	if len(e.NICs) == 0 {
		return a.line("%s: no NIC is declared, nothing to do", e.Guest)
	}
	var fields []field
	for _, n := range e.NICs {
		fields = append(fields, field{cmp.Or(n.ID, n.MAC), nicText(n)})
	}
	if err := a.block(e.Guest+": "+count(len(e.NICs), "declared NIC"), fields); err != nil {
		return err
	}
	for _, op := range e.Operations {
		if err := a.printOperation(op); err != nil {
			return err
		}
	}
	return nil
}

func nicText(n hook.Declared) string {
	words := []string{"tap that libvirt makes"}
	switch {
	case n.Made && n.Interface == "":
		words = []string{n.Type + " on " + n.Source + " without an interface"}
	case n.Made:
		words = []string{n.Type + " " + n.Interface + " on " + n.Source}
	case n.Source != "":
		words = []string{strings.TrimSpace("tap "+n.Interface) + " that libvirt makes, on " + n.Source}
	}
	for _, w := range []string{n.Mode, n.Port, n.MAC} {
		if w != "" {
			words = append(words, w)
		}
	}
	return strings.Join(words, ", ")
}

func (a *app) printOperation(op hook.Operation) error {
	if len(op.Does) == 0 {
		return a.line("%s: nothing", op.Op)
	}
	if err := a.line("%s: on failure, %s", op.Op, op.Failure); err != nil {
		return err
	}
	for _, text := range op.Does {
		if err := a.line("  %s", text); err != nil {
			return err
		}
	}
	return nil
}
