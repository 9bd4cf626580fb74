package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
	"vmnet/internal/vmm/launch"
	"vmnet/tapmgr/nic"
)

func TestHelpNamesEveryFlag(t *testing.T) {
	help := helpText()
	named := func(f *pflag.Flag) {
		if !strings.Contains(help, "--"+f.Name+" ") && !strings.Contains(help, "--"+f.Name+"=") {
			t.Errorf("--help says nothing of --%s", f.Name)
		}
		if f.Usage == "" {
			t.Errorf("--%s has no help", f.Name)
		}
	}
	f := newFlags()
	(&launchOptions{}).flags(f)
	ownFlags(f)
	f.VisitAll(named)
	(&bridgeOptions{}).flags().VisitAll(func(f *pflag.Flag) {
		if f.Usage == "" || !strings.Contains(help, "--"+f.Name) {
			t.Errorf("--help says nothing of --%s", f.Name)
		}
	})
	if !strings.Contains(help, "--next-nic ") {
		t.Error("--help says nothing of --next-nic")
	}
	for line := range strings.Lines(help) {
		if strings.ContainsAny(line, "\t\x1b`") {
			t.Errorf("--help has odd characters: %q", line)
		}
	}
}

func TestParseLaunchRefuses(t *testing.T) {
	for _, row := range [][2]string{
		{"--bridge br0", "-- and then the guest's command line"},
		{"--", "nothing follows --"},
		{"--vm a --bridge br0 extra -- x", `argument "extra": the program to run comes after --`},
		{"--vm a --bridge br0 --mac x -- x", "--mac"},
		{"--vm a --bridge br0 --queues 0 -- x", "want 1 to 256, or auto"},
		{"--vm a --bridge br0 --vhost maybe -- x", "want auto or on or off"},
		{"--vm a --bridge br0 --place moon -- x", "want auto or pci or pcie or mmio or ccw or usb"},
		{"--vm a --bridge br0 --macvtap eth0 -- x", "--bridge and --macvtap: a NIC can have only one of them"},
		{"--vm a --mode bridge --bridge br0 -- x", "go with --macvtap or --ipvtap"},
		{"--vm a --switch sw0 --bridge br0 -- x", "--bridge and --switch: a NIC can have only one of them"},
		{"--vm a --switch sw0 --profile lab -- x", "a NIC on a switch takes no profile"},
		{"--vm a --bridge br0 --lock-mac -- x", "go with --switch"},
		{"--bridge br0 -- x", "the guest has no name"},
		{"--vm a --bridge br0 -- qemu-system-x86_64 -name b", "the guest has two names"},
		{"--vm a --bridge br0 --spare-ports many -- qemu-system-x86_64", "--spare-ports"},
		{"--vm a --bridge br0 --netsn x -- x", "unknown flag: --netsn"},
		{"--vm a --bridge br0 -- x -m 1G", "x is not known as QEMU"},
		{"--vm a --bridge br0 --vmm kvm -- x", "want auto or qemu or env"},
		{"--vm a --bridge br0 -- sudo qemu-system-x86_64", "closes all files that it inherits"},
		{"--vm a --bridge br0 -- qemu-system-microblaze -M x", "takes no NIC besides those of its board"},
	} {
		line, want := row[0], row[1]
		_, err := parsed(strings.Fields(line))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", line, err, want)
		}
		if !isUsage(err) {
			t.Errorf("%s: %v is no case of wrong usage", line, err)
		}
	}
}

// parsed is a command line with what it says of the guest, without a look at any file.
func parsed(args []string) (*launchOptions, error) {
	o, err := parseLaunch(args)
	if err == nil {
		err = o.name(guestFiles{read: func(string) (string, error) { return "", fs.ErrNotExist }})
	}
	return o, err
}

// isUsage reports whether run ends with exitUsage for err.
func isUsage(err error) bool {
	return errors.Is(err, errUsage) || errors.Is(err, nic.ErrInvalid) || errors.Is(err, launch.ErrInvalid)
}

func TestParseLaunchReads(t *testing.T) {
	line := "--vm P7 --bridge br0 --queues auto --qmp auto --next-nic --bridge br1 --nic lan --next-nic --ipvtap eth0 --ip 192.0.2.1 --vmm env -- vmm --next-nic -- --bridge"
	o, err := parsed(strings.Fields(line))
	if err != nil {
		t.Fatal(err)
	}
	type nic struct {
		VM, ID, Bridge string
		Queues         int
		Lower          bool
	}
	var got []nic
	for _, n := range o.nics {
		got = append(got, nic{n.spec.VM, n.spec.NIC, n.spec.Bridge, n.spec.Queues, n.spec.Lower != nil})
	}
	want := []nic{{"P7", "net0", "br0", 1, false}, {"P7", "lan", "br1", 0, false}, {"P7", "net2", "", 0, true}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := strings.Join(o.argv, " "); got != "vmm --next-nic -- --bridge" || o.qmp != "auto" {
		t.Errorf("runs %q, monitor %q", got, o.qmp)
	}
}

func TestBridgeOptions(t *testing.T) {
	for line, want := range map[string]string{
		"--use-vnet --br=br0 --fd=5":            "",
		"--vlan 5 --isolated --br=br0 --fd=5":   "",
		"--profile lab --fd=5":                  "",
		"--br=br0":                              "--fd=NUMBER is missing",
		"--fd=5":                                "--br=BRIDGE is missing",
		"--br br0 --fd=5":                       "want --br=VALUE",
		"--br=br0 --fd=five":                    "--fd",
		"--br=br0 --fd=5 more":                  `argument "more"`,
		"--br=br0 --fd=99999999999999999999999": "--fd",
		"--br=br0 --fd=5 --helper=x":            "unknown flag: --helper",
	} {
		var o bridgeOptions
		err := o.parse(strings.Fields(line))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", line, err, want)
		}
	}
}

func FuzzArgs(f *testing.F) {
	for _, line := range []string{
		"--vm\x00a\x00--bridge\x00br0\x00--\x00x",
		"--bridge\x00br0\x00--next-nic\x00--macvtap\x00eth0\x00--\x00qemu-system-x86_64\x00-name\x00guest=a,b",
		"--use-vnet\x00--br=br0\x00--fd=5", "--\x00",
		"-v\x00--trunk\x001-9,4094\x00--queues=auto\x00--vm=é\x00--\x00kvm\x00-smp\x0099999999999",
		"--attach\x00--fd=3", "ifup\x00tap0",
	} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		args := strings.Split(line, "\x00")
		if form, _ := formOf(append([]string{"qemu-netup"}, args...)); form == nil {
			t.Fatal("no form")
		}
		_ = (&bridgeOptions{}).parse(args)
		o, err := parsed(args)
		if err != nil {
			if !isUsage(err) {
				t.Fatalf("%q: %v is no case of wrong usage", args, err)
			}
			return
		}
		if len(o.nics) == 0 || len(o.nics) > maxNICs || len(o.argv) == 0 {
			t.Fatalf("%q: %+v", args, o)
		}
		specs, err := o.settle(nil)
		for _, s := range specs {
			if s.VM == "" || s.NIC == "" || s.Bridge == "" && s.Lower == nil {
				t.Fatalf("%q: %+v", args, s)
			}
		}
		_ = err
	})
}

var (
	times  = regexp.MustCompile(`\([0-9.]+(µs|ms|s)\)`)
	inodes = regexp.MustCompile(`netns=[0-9]+`)
)

// golden compares with a file of testdata, in which $DIR is the installation's directory.
func (h *host) golden(name, got string) {
	h.Helper()
	want, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		h.Fatal(err)
	}
	got = times.ReplaceAllString(strings.ReplaceAll(got, h.dir, "$DIR"), "(TIME)")
	got = inodes.ReplaceAllString(got, "netns=INODE")
	if diff := cmp.Diff(string(want), got); diff != "" {
		h.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

func TestLiveStepsAreTold(t *testing.T) {
	h := newHost(t)
	h.far(farAddr)
	h.policy("{users: [65534], bridges: [br0], lowers: [eth0]}")
	options := []string{
		"--bridge", "br0", "--queues", "2", "--mac", "52:54:00:00:00:01", "--isolated", "--vhost", "off", "--qmp",
		"auto",
		"--next-nic", "--macvtap", "eth0", "--mac", "52:54:00:00:00:02", "--vhost", "off",
	}
	qemu := []string{"--", qemuProgram, "-name", "guest=P5", "-M", "q35"}
	r := h.nobodys(append(append([]string{"--dry-run"}, options...), qemu...)...)
	h.ok(r)
	h.golden("dry-run.txt", r.stdout+r.stderr)
	if n := h.taps(); n != 0 {
		t.Errorf("a dry run made %d taps", n)
	}
	if _, err := os.Stat(h.path("run/vmnet")); err == nil {
		t.Error("a dry run made the monitor's directory")
	}
	r = h.nobodys(append(append([]string{"-v", "--vm", "P5"}, options...), "--vmm", "env", "--", "/bin/true")...)
	h.ok(r)
	h.golden("verbose.txt", r.stdout+r.stderr)

	// What is denied is denied to a dry run as well.
	h.fails(h.nobodys("--dry-run", "--vm", "P5", "--bridge", "br1", "--vmm", "env", "--", "/bin/true"), exitFailure,
		"bridge.conf allows it")
}

// TestMonitorNames: each guest has a file name of its own, which fits into a socket's path.
func TestMonitorNames(t *testing.T) {
	seen := map[string]string{}
	for _, vm := range []string{
		"a b", "a-b", "a/b", "a,b", "a=b", "a~b", "a\tb", ".a b", "..a-b", ".", "..", "-", strings.Repeat("n", 127),
		strings.Repeat("n", 126), strings.Repeat("é", 40), strings.Repeat("é", 41),
	} {
		name := monitorName(vm)
		if seen[name] != "" || len(name) > maxMonitorName+len(".qmp") || strings.ContainsAny(name, "/,= \t") ||
			name[0] == '.' && name != ".qmp" {
			t.Errorf("%q has %q, as %q", vm, name, seen[name])
		}
		seen[name] = vm
		if again := monitorName(strings.TrimSuffix(name, ".qmp")); strings.Contains(name, "~") && again == name {
			t.Errorf("a guest called %q has the same name", name)
		}
	}
	if got := monitorName("web-1.example"); got != "web-1.example.qmp" {
		t.Errorf("got %q", got)
	}
}
