package mangen

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vmnet/internal/cli/nicflags"
)

// section is the manual section of vmnet's pages: commands for administrators.
const section = "8"

// related has the pages that a command's SEE ALSO lists besides its parent and subcommands.
var related = map[string][]string{
	"vmnet":        {"qemu-netup(8)", "bridge.conf(5)", "policy.yaml(5)"},
	"vmnet attach": {"qemu-netup(8)", "policy.yaml(5)"},
	"vmnet bridge": {"bridge(8)", "ip-link(8)"},
	"vmnet doctor": {"qemu-netup(8)", "bridge.conf(5)", "policy.yaml(5)"},
}

// Command returns the page of one command, in man(7) macros.
func Command(cmd *cobra.Command) []byte {
	cmd.InitDefaultHelpFlag()
	var b bytes.Buffer
	name := pageName(cmd)
	fmt.Fprintf(&b, ".TH %q %q %q %q %q\n", strings.ToUpper(name), section, date(), source, manual(section))
	fmt.Fprintf(&b, ".SH NAME\n%s \\- %s\n", name, escape(cmd.Short))
	fmt.Fprintf(&b, ".SH SYNOPSIS\n.B %s\n", escape(cmd.UseLine()))
	b.WriteString(".SH DESCRIPTION\n")
	text(&b, or(cmd.Long, cmd.Short+"."))
	commands(&b, cmd)
	options(&b, "OPTIONS", cmd.NonInheritedFlags())
	options(&b, "OPTIONS OF ALL COMMANDS", cmd.InheritedFlags())
	if cmd.Example != "" {
		b.WriteString(".SH EXAMPLES\n")
		verbatim(&b, cmd.Example)
	}
	b.WriteString(".SH SEE ALSO\n")
	fmt.Fprintf(&b, "%s\n", strings.Join(seeAlso(cmd), ",\n"))
	return b.Bytes()
}

func pageName(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func commands(b *bytes.Buffer, cmd *cobra.Command) {
	if !cmd.HasAvailableSubCommands() {
		return
	}
	b.WriteString(".SH COMMANDS\n")
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			fmt.Fprintf(b, ".TP\n.BR %s (%s)\n%s.\n", escape(pageName(sub)), section, escape(sub.Short))
		}
	}
}

func options(b *bytes.Buffer, title string, flags *pflag.FlagSet) {
	if !flags.HasAvailableFlags() {
		return
	}
	fmt.Fprintf(b, ".SH %s\n", title)
	for _, s := range nicflags.Sections(flags) {
		if s.Title != "" {
			fmt.Fprintf(b, ".SS %s\n", escape(s.Title))
		}
		list(b, s.Flags)
	}
}

func list(b *bytes.Buffer, flags *pflag.FlagSet) {
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Deprecated != "" {
			return
		}
		b.WriteString(".TP\n")
		if f.Shorthand != "" {
			fmt.Fprintf(b, "\\fB\\-%s\\fP, ", f.Shorthand)
		}
		value, usage := pflag.UnquoteUsage(f)
		fmt.Fprintf(b, "\\fB%s\\fP", escape("--"+f.Name))
		if value != "" {
			fmt.Fprintf(b, " \\fI%s\\fP", escape(value))
		}
		fmt.Fprintf(b, "\n%s", line(usage))
		if !slices.Contains([]string{"", "false", "0", "[]"}, f.DefValue) {
			fmt.Fprintf(b, " (default %s)", escape(f.DefValue))
		}
		b.WriteString("\n")
	})
}

func seeAlso(cmd *cobra.Command) []string {
	var pages []string
	if cmd.HasParent() {
		pages = append(pages, pageName(cmd.Parent())+"("+section+")")
	}
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			pages = append(pages, pageName(sub)+"("+section+")")
		}
	}
	pages = append(pages, related[cmd.CommandPath()]...)
	for i, p := range pages {
		name, sect, _ := strings.Cut(p, "(")
		pages[i] = "\\fB" + escape(name) + "\\fP(" + sect
	}
	return pages
}

// text writes paragraphs, which empty lines separate. Indented ones stay as they are.
func text(b *bytes.Buffer, s string) {
	for p := range strings.SplitSeq(strings.TrimSpace(s), "\n\n") {
		p = strings.Trim(p, "\n")
		if strings.HasPrefix(p, " ") || strings.HasPrefix(p, "\t") {
			verbatim(b, p)
			continue
		}
		b.WriteString(".PP\n")
		for l := range strings.SplitSeq(p, "\n") {
			fmt.Fprintf(b, "%s\n", line(l))
		}
	}
}

func verbatim(b *bytes.Buffer, s string) {
	b.WriteString(".PP\n.nf\n.RS\n")
	for l := range strings.SplitSeq(s, "\n") {
		fmt.Fprintf(b, "%s\n", line(strings.TrimLeft(l, " \t")))
	}
	b.WriteString(".RE\n.fi\n")
}

// line escapes text, and keeps a leading dot from being read as a macro.
func line(s string) string {
	if strings.HasPrefix(s, ".") {
		return `\&` + escape(s)
	}
	return escape(s)
}

// escape escapes backslashes, and ASCII characters that roff would print as others.
func escape(s string) string {
	return strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", `\(ga`, "^", `\(ha`, "~", `\(ti`).Replace(s)
}
