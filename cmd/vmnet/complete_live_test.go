package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vmnet/internal/nstest"
	"vmnet/tapmgr/nic"
)

// TestLiveCompletion requests completions at every place of every command, on a host with nothing
// to complete and on one with NICs: each value comes once, and no text has characters that a shell
// would expand.
func TestLiveCompletion(t *testing.T) {
	nstest.Require(t, "root", os.Geteuid() == 0, "run it as root")
	s := switchHere(t)
	for _, c := range []struct {
		name string
		with func(t *testing.T, netns string)
		want map[string]string // by words
	}{
		{"nothing", func(*testing.T, string) {}, map[string]string{
			"attach --bridge": "", "detach --vm": "", "detach --nic": "", "bridge show": "",
			"switch remove-port " + s.path: "a b",
		}},
		{"bridges and NICs", populate, map[string]string{
			"attach --bridge": "br0 br1", "detach --vm": "P2 P3", "detach --nic": "net0 net1",
			"detach --vm P3 --nic": "net0", "bridge show": "br0 br1", "switch remove-port " + s.path: "a b",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ns := nstest.New(t).Path()
			c.with(t, ns)
			everyPlace(s.path, func(words []string) { completions(t, ns, words) })
			for words, want := range c.want {
				if got := completions(t, ns, append(strings.Fields(words), "")); strings.Join(got, " ") != want {
					t.Errorf("%s: %q, want %q", words, got, want)
				}
			}
		})
	}
}

// everyPlace calls f with the words in front of the cursor: arguments, also after a switch's path,
// flags, and the value of each flag.
func everyPlace(path string, f func(words []string)) {
	everyCommand((&app{}).root(), func(cmd *cobra.Command) {
		verb := strings.Fields(cmd.CommandPath())[1:]
		places := [][]string{{""}, {path, ""}, {"-"}, {"--"}}
		visit := func(flag *pflag.Flag) { places = append(places, []string{"--" + flag.Name, ""}) }
		cmd.Flags().VisitAll(visit)
		cmd.InheritedFlags().VisitAll(visit)
		for _, place := range places {
			f(slices.Concat(verb, place))
		}
	})
}

// completions returns the offered values, in order.
func completions(t *testing.T, netns string, words []string) (values []string) {
	t.Helper()
	var out, errs bytes.Buffer
	status := run(t.Context(), slices.Concat([]string{cobra.ShellCompRequestCmd, "--netns", netns}, words),
		strings.NewReader(""), &out, &errs)
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	last := lines[len(lines)-1]
	if status != 0 || !regexp.MustCompile(`^:\d+$`).MatchString(last) {
		t.Fatalf("%q: %d, %s%s", words, status, &out, &errs)
	}
	for _, line := range lines[:len(lines)-1] {
		value, _, _ := strings.Cut(line, "\t")
		if (value == "" || strings.ContainsAny(line, "`*") || strings.ContainsAny(value, "?[]{}$\\'\"")) &&
			!namesGuest(line) {
			t.Errorf("%q: offers %q", words, line)
		}
		if slices.Contains(values, value) {
			t.Errorf("%q: offers %q twice", words, value)
		}
		values = append(values, value)
	}
	return values
}

// namesGuest reports whether a line has the name of a guest that runs on this machine, which the
// test does not control.
func namesGuest(line string) bool {
	return slices.ContainsFunc(guestNames(), func(name string) bool { return strings.Contains(line, name) })
}

// populate creates bridges, and taps that were NICs of two guests, each with a net0.
func populate(t *testing.T, netns string) {
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("nsenter",
			append([]string{"--net=" + netns, "ip"}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %q: %v: %s", args, err, out)
		}
	}
	for _, name := range []string{"br0", "br1"} {
		ip("link", "add", name, "type", "bridge")
	}
	for i, id := range []string{"P2 net0", "P2 net1", "P3 net0"} {
		vm, nicID, _ := strings.Cut(id, " ")
		r := nic.Record{
			VM: vm, NIC: nicID, Type: nic.TypeTap, Source: "br0", MAC: net.HardwareAddr{0x52, 0x54, 0, 0, 0, byte(i)},
			Model: nic.DefaultModel, Queues: 1, Phase: nic.PhasePlugged,
		}
		alias, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		name, altName := nic.InterfaceName(vm, nicID)
		ip("tuntap", "add", name, "mode", "tap")
		ip("link", "set", name, "alias", alias)
		if altName != "" {
			ip("link", "property", "add", "dev", name, "altname", altName)
		}
		ip("link", "set", name, "master", fmt.Sprint("br", i%2))
	}
}
