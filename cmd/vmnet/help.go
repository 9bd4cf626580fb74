package main

import (
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"vmnet/internal/cli/nicflags"
)

const (
	usualWidth  = 80  // if the output is not a terminal
	widestLines = 100 // the longest lines that read well
)

// helpTemplate and usageTemplate are cobra's, with flags in groups and lines that fit the terminal.
const (
	helpTemplate = `{{with or .Long .Short}}{{fill .}}

{{end}}{{.UsageString}}`

	usageTemplate = `Usage:
  {{if .HasAvailableSubCommands}}{{.CommandPath}} COMMAND{{else}}{{.UseLine}}{{end}}{{if .HasExample}}

Examples:
{{.Example}}{{end}}{{if .HasAvailableSubCommands}}{{$cmds := .Commands}}{{range $group := .Groups}}

{{.Title}}{{range $cmds}}{{if and (eq .GroupID $group.ID) .IsAvailableCommand}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}{{end}}{{if not .AllChildCommandsHaveGroup}}

Commands:{{range $cmds}}{{if and (eq .GroupID "") .IsAvailableCommand}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}{{end}}{{end}}{{range flagGroups .LocalFlags}}

{{or .Title "Options"}}:
{{flagUsages .Flags}}{{end}}{{if .HasAvailableInheritedFlags}}

Options of all commands:
{{flagUsages .InheritedFlags}}{{end}}{{if .HasAvailableSubCommands}}

{{.CommandPath}} COMMAND --help explains a command, and man vmnet all of them.{{end}}
`
)

// explain sets the help and usage templates of all commands, for the width of w.
func explain(root *cobra.Command, w io.Writer) {
	width := min(terminalWidth(w), widestLines)
	cobra.AddTemplateFuncs(map[string]any{
		"fill":       func(text string) string { return fill(text, width) },
		"flagGroups": nicflags.Sections,
		"flagUsages": func(fs *pflag.FlagSet) string { return strings.TrimRight(fs.FlagUsagesWrapped(width), " \n") },
	})
	root.SetHelpTemplate(helpTemplate)
	root.SetUsageTemplate(usageTemplate)
}

// terminalWidth returns the number of columns of a terminal, or usualWidth for other streams.
func terminalWidth(w io.Writer) int {
	if f, ok := w.(*os.File); ok {
		if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 0 {
			return width
		}
	}
	return usualWidth
}

// fill wraps paragraphs, which empty lines separate. Indented ones stay as they are.
func fill(text string, width int) string {
	var all []string
	for p := range strings.SplitSeq(strings.TrimSpace(text), "\n\n") {
		if !strings.HasPrefix(p, " ") {
			p = fillParagraph(p, width)
		}
		all = append(all, p)
	}
	return strings.Join(all, "\n\n")
}

func fillParagraph(text string, width int) string {
	var b strings.Builder
	column := 0
	for word := range strings.FieldsSeq(text) {
		switch {
		case column == 0:
		case column+1+len(word) > width:
			b.WriteByte('\n')
			column = 0
		default:
			b.WriteByte(' ')
			column++
		}
		b.WriteString(word)
		column += len(word)
	}
	return b.String()
}

// Groups of commands.
const (
	groupNICs    = "nics"
	groupPlaces  = "places"
	groupMachine = "machine"
)

// addGroups puts each of root's commands into a group.
func addGroups(root *cobra.Command) {
	for _, g := range []struct {
		id, title string
		commands  []string
	}{
		{groupNICs, "NICs of guests:", []string{
			"attach", "detach", "set", "apply", "tap", "prepare", "commit", "abort", "list", "show",
			"map", "why", "why-busy", "top", "monitor", "capture", "metrics", "check", "reconcile", "watch", "mac",
		}},
		{groupPlaces, "Where NICs are attached:", []string{"network", "forward", "netns", "bridge", "switch", "lower"}},
		{groupMachine, "This machine:", []string{"hook", "policy", "doctor", "version", "help", "completion"}},
	} {
		root.AddGroup(&cobra.Group{ID: g.id, Title: g.title})
		for _, name := range g.commands {
			cmd, _, err := root.Find([]string{name})
			if err == nil && cmd != root {
				cmd.GroupID = g.id
			}
		}
	}
	root.SetHelpCommandGroupID(groupMachine)
	root.SetCompletionCommandGroupID(groupMachine)
}

// groupNICFlags puts the flags of attach under titles.
func groupNICFlags(fs *pflag.FlagSet) {
	fs.SortFlags = false
	nicflags.Group(fs, "Guest", "vm", "pid", "qmp")
	nicflags.Group(fs, "Where (one of them)", "bridge", "network", "macvtap", "ipvtap", "switch", "routed")
	nicflags.Group(fs, "NIC", "nic", "mac", "ip", "mtu", "queues", "vhost", "model", "device-opt")
	nicflags.Group(fs, "Port of a bridge or switch", "vlan", "trunk", "native", "isolated", "hairpin",
		"no-learning", "no-flood", "forward")
	nicflags.Group(fs, "Open vSwitch (--bridge)", "iface-id", "ovsdb")
	nicflags.Group(fs, "Port security", "port-security", "allow-ethertype", "allow-in")
	nicflags.Group(fs, "Rates", "rate-up", "rate-down", "burst", "shape")
	nicflags.Group(fs, "Parent device (--macvtap, --ipvtap)", "mode", "source-mac", "nopromisc",
		"ip", "flag", "rx-filter")
	nicflags.Group(fs, "Userspace switch (--switch)", "lock-mac", "storm", "max-addresses")
	nicflags.Group(fs, "libvirt, and how QEMU gets the NIC", "via", "persistent")
	nicflags.Group(fs, "General", "wait", "timeout", "dry-run", "verbose", "output", "help")
}
