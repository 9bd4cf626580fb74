package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"vmnet/internal/libvirthook/hook"
	"vmnet/libvirt/domainxml"
)

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
