package main

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"vmnet/internal/cli/nicflags"
	"vmnet/tapmgr"
	"vmnet/tapmgr/nic"
)

// everyCommand calls f with root and all its subcommands.
func everyCommand(root *cobra.Command, f func(*cobra.Command)) {
	f(root)
	for _, sub := range root.Commands() {
		everyCommand(sub, f)
	}
}

// TestHelpFits: no line is wider than a terminal, except examples, tables and cobra's texts about
// shells.
func TestHelpFits(t *testing.T) {
	a := &app{out: &bytes.Buffer{}, err: &bytes.Buffer{}}
	root := a.root()
	everyCommand(root, func(cmd *cobra.Command) {
		var out bytes.Buffer
		cmd.SetOut(&out)
		cmd.InitDefaultHelpFlag()
		if err := cmd.Help(); err != nil {
			t.Error(err)
		}
		for line := range strings.Lines(out.String()) {
			line = strings.TrimSuffix(line, "\n")
			if n := utf8.RuneCountInString(line); n > usualWidth && !strings.Contains(cmd.Example+cmd.Long, line) {
				t.Errorf("%s: %d columns: %s", cmd.CommandPath(), n, line)
			}
		}
	})
}

// TestFlagsOfAttachHaveGroups: a new flag must be put into a group of the help.
func TestFlagsOfAttachHaveGroups(t *testing.T) {
	cmd := (&app{}).attachCommand()
	sections := nicflags.Sections(cmd.Flags())
	if first := sections[0]; first.Title != "Guest" || first.Flags.Lookup("vm") == nil {
		t.Errorf("the first group is %q", first.Title)
	}
	sections[len(sections)-1].Flags.VisitAll(func(f *pflag.Flag) {
		if sections[len(sections)-1].Title == "" {
			t.Errorf("--%s has none", f.Name)
		}
	})
}

// TestEveryVerbHasJSON, except those that only explain, watch, which logs, and those that vmnet
// itself runs.
func TestEveryVerbHasJSON(t *testing.T) {
	without := []string{"vmnet help", "vmnet watch"}
	everyCommand((&app{}).root(), func(cmd *cobra.Command) {
		if !cmd.HasSubCommands() && !cmd.Hidden && cmd.Flags().Lookup("output") == nil &&
			!slices.Contains(without, cmd.CommandPath()) {
			t.Errorf("%s has no --output", cmd.CommandPath())
		}
	})
}

func TestFill(t *testing.T) {
	const text = "one two\nthree four\n\n    a table  of wide columns\n\nfive"
	if got, want := fill(text, 9), "one two\nthree\nfour\n\n    a table  of wide columns\n\nfive"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestListFits: a list drops columns for which there is no room; -o wide prints all of them.
func TestListFits(t *testing.T) {
	nics := sightings([]nic.NIC{
		{
			VM: "web", ID: "net0", Interface: "web-net0", Type: "tap", Source: "br0", Port: "vlan:10;isolated",
			Model: "virtio-net-pci", MAC: "52:54:00:00:00:01", Queues: 1, Vhost: "off",
			State: forwarding, Via: nic.ViaLibvirt,
		},
		{
			VM: "ubuntu-22.04-server", ID: "net0", Interface: "ubuntu-2-ab34ef", Type: "macvtap",
			Source: "enp129s0f0np0",
			Mode:   "bridge", Model: "virtio-net-pci", MAC: "52:54:00:00:00:02", Queues: 4, Vhost: "on",
			State: nic.OtherBridge, Foreign: true,
		},
	})
	for _, test := range []struct {
		nics   []tapmgr.Sighting
		wide   bool
		header string
		fits   bool
	}{
		{nics[:1], false, "VM NIC INTERFACE TYPE SOURCE MAC STATE VIA", true},
		{nics, false, "VM NIC INTERFACE SOURCE STATE VIA", true},
		{nics, true, "VM NIC INTERFACE TYPE SOURCE MODEL MAC QUEUES VHOST STATE VIA", false},
	} {
		var out bytes.Buffer
		if err := (&app{out: &out}).printList(test.nics, test.wide); err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		if got := strings.Join(strings.Fields(lines[0]), " "); got != test.header {
			t.Errorf("columns %s, want %s", got, test.header)
		}
		for _, l := range lines {
			if fits := utf8.RuneCountInString(l) <= usualWidth; test.fits && !fits || strings.HasSuffix(l, " ") {
				t.Errorf("%q", l)
			}
		}
		if strings.Contains(out.String(), "\x1b") {
			t.Error("coloured, and no terminal")
		}
	}
	var out bytes.Buffer
	if err := (&app{out: &out, colours: true}).printList(nics[:1], false); err != nil ||
		!strings.Contains(out.String(), "  \x1b[32mforwarding\x1b[0m") {
		t.Errorf("%v, %q", err, &out)
	}
}

// TestColours: colours appear only on a terminal, unless the environment disables them.
func TestColours(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if hasColours(f) || hasColours(&bytes.Buffer{}) {
		t.Error("on what is no terminal")
	}
	tty, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	t.Setenv("NO_COLOR", "")
	t.Setenv("TERM", "xterm")
	if !hasColours(tty) {
		t.Error("not on a terminal")
	}
	for name, value := range map[string]string{"NO_COLOR": "1", "TERM": "dumb"} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(name, value)
			if hasColours(tty) {
				t.Errorf("with %s=%s", name, value)
			}
		})
	}
}
