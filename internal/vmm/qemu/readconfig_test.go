package qemu_test

import (
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vmnet/internal/vmm/qemu"
)

const config = `# a machine
[machine]
  type = "q35"
  accel = "tcg"

[device "root0"]
  driver = "pcie-root-port"
  chassis = "7"

[name]
  guest = "a,b"

[smp-opts]
  cpus = "4"

[chardev "q"]
  backend = "socket"
  path = "/run/q"
  server = "on"
  wait = "off"
[mon "m"]
  chardev = "q"
  mode = "control"
broken
[object
`

func read(path string) (string, error) {
	if path != "rc" {
		return "", fs.ErrPermission
	}
	return config, nil
}

func TestExpand(t *testing.T) {
	line := strings.Fields(
		"qemu-system-x86_64 -M accel=kvm --readconfig rc -name process=x -readconfig other -m 64 -readconfig")
	argv, unread := qemu.Expand(line, read)
	if diff := cmp.Diff([]string{"other"}, unread); diff != "" {
		t.Error(diff)
	}
	if m := qemu.MachineOf(argv); m.Type != "q35" || m.Place != qemu.PlacePCIe {
		t.Errorf("machine %+v", m)
	}
	if taken := qemu.ReadTaken(argv); !taken.Chassis[7] || !taken.IDs["root0"] {
		t.Errorf("taken %+v", taken)
	}
	c := qemu.Parse(argv)
	if c.Name != "a,b" || len(c.Monitors) != 1 || c.Monitors[0].Path != "/run/q" || qemu.CPUs(argv) != 4 {
		t.Errorf("%+v, %d CPUs", c, qemu.CPUs(argv))
	}
	if got := strings.Join(argv[len(argv)-5:], " "); got != "-readconfig other -m 64 -readconfig" {
		t.Errorf("the rest is %q", got)
	}
}

func TestExpandIsBounded(t *testing.T) {
	argv := []string{"qemu-system-x86_64"}
	for range 40 {
		argv = append(argv, "-readconfig", "rc")
	}
	if _, unread := qemu.Expand(argv, read); len(unread) != 24 {
		t.Errorf("%d files were not read", len(unread))
	}
	// A value is no option, whatever it looks like.
	if got, unread := qemu.Expand([]string{"qemu", "-name", "-readconfig", "rc"}, read); fmt.Sprint(got,
		unread) != "[qemu -name -readconfig rc] []" {
		t.Errorf("%q, %q", got, unread)
	}
}

func FuzzExpand(f *testing.F) {
	f.Add(config)
	f.Add("[a \"b\n=\"\"")
	f.Fuzz(func(t *testing.T, text string) {
		argv, _ := qemu.Expand([]string{"qemu", "-readconfig", "rc"}, func(string) (string, error) { return text, nil })
		if len(argv)%2 != 1 || argv[0] != "qemu" {
			t.Errorf("%q", argv)
		}
	})
}
