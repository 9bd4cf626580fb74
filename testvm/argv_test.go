package testvm

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var testFiles = Files{
	Kernel: "/k/vmlinuz", Initramfs: "/vm/initramfs", QMP: "/vm/qmp", Agent: "/vm/agent",
	Console: "/vm/console",
}

func TestCommandLineGolden(t *testing.T) {
	for name, c := range map[string]Config{
		"default": {},
		"q35": {
			Name: "P2", Machine: "q35", SparePorts: 2, MemoryMiB: 256, CPUs: 2, Accel: "kvm",
			KernelArgs: []string{"acpi=off"},
			ExtraArgs:  []string{"-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"},
		},
		"nics": {Name: "P3", QMP: "none", NICs: []NIC{
			{Netdev: "user,restrict=on"},
			{ID: "lan", Model: "e1000e", MAC: "52:54:00:00:00:02", Netdev: "tap,fds=3:4", Device: "mq=on,vectors=6"},
		}},
		"icount":   {Icount: true},
		"paused":   {Name: "comma, space and $dollar", Paused: true, AllowReset: true},
		"terminal": {Name: "P4", Terminal: true},
		"lab":      {Name: "lab", CPUs: 2, MemoryMiB: 1536, Root: "/"},
	} {
		t.Run(name, func(t *testing.T) {
			argv, err := CommandLine(c, testFiles)
			if err != nil {
				t.Fatal(err)
			}
			got := strings.Join(argv, "\n") + "\n"
			file := filepath.Join("testdata", name+".golden")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("(-want +got; -update accepts it):\n%s", diff)
			}
		})
	}
}

func TestCommandLineEscapesCommas(t *testing.T) {
	files := testFiles
	files.QMP, files.Agent = "/a,b/qmp", "/a,b/agent"
	argv, err := CommandLine(Config{Name: "a,b"}, files)
	if err != nil {
		t.Fatal(err)
	}
	line := strings.Join(argv, " ")
	for _, want := range []string{"guest=a,,b ", "unix:/a,,b/qmp,server", "path=/a,,b/agent,server"} {
		if !strings.Contains(line, want) {
			t.Errorf("%q is not in %s", want, line)
		}
	}
}

func TestConfigIsValidated(t *testing.T) {
	nic := func(n NIC) Config { return Config{NICs: []NIC{n}} }
	for want, c := range map[string]Config{
		`machine "microvm" is unknown`:          {Machine: "microvm"},
		`accel "xen" is unknown`:                {Accel: "xen"},
		"spare ports: machine pc has none":      {SparePorts: 1},
		"spare ports: 17 is not from":           {Machine: "q35", SparePorts: 17},
		"spare ports: -1 is not from":           {Machine: "q35", SparePorts: -1},
		"memory: 16 MiB is too little":          {MemoryMiB: 16},
		"cpus: -1 is not from":                  {CPUs: -1},
		"boot timeout -1s is negative":          {BootTimeout: -time.Second},
		"holds control characters":              {Name: "a\nb"},
		"longer than the 107 bytes":             {QMP: "/" + strings.Repeat("q", 107)},
		`NIC 0: id "a,b" is not a letter`:       nic(NIC{ID: "a,b", Netdev: "user"}),
		`"01:00:00:00:00:01" is no unicast`:     nic(NIC{MAC: "01:00:00:00:00:01", Netdev: "user"}),
		`"02:00:00:00:00" is no unicast`:        nic(NIC{MAC: "02:00:00:00:00", Netdev: "user"}),
		`netdev "" must be given`:               nic(NIC{}),
		`netdev "user,id=x" must be given`:      nic(NIC{Netdev: "user,id=x"}),
		`NIC 1: id "n" is taken by another one`: {NICs: []NIC{{ID: "n", Netdev: "user"}, {ID: "n", Netdev: "user"}}},
	} {
		if _, err := CommandLine(c, testFiles); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: error %v, want %q", c, err, want)
		}
	}
}
