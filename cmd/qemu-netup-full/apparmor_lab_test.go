package main

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vmnet/testvm/lab"
)

// TestLabAppArmor: under its profile qemu-netup gives a user's QEMU its tap, and reads nothing that
// is not its own. QEMU has no profile.
func TestLabAppArmor(t *testing.T) {
	lab.Inside(t)
	h := newHost(t)
	profile := h.profile("../../docs/apparmor/qemu-netup")
	parser := func(option string) {
		if out, err := exec.Command("apparmor_parser", option, "--skip-cache", profile).CombinedOutput(); err != nil {
			t.Fatalf("apparmor_parser %s: %v: %s", option, err, out)
		}
	}
	const securityfs = "/sys/kernel/security"
	if err := unix.Mount("securityfs", securityfs, "securityfs", 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
		t.Fatal(err)
	}
	parser("--replace")
	const qemu = `echo quit | qemu-system-x86_64 -S -nodefaults -display none -machine q35 -m 32 -monitor stdio $VMNET_ARGS &&
		cat /proc/self/attr/current`
	launch := []string{"--vm", "Plab", "--bridge", "br0", "--vhost", "off", "--", "/bin/sh", "-c", qemu}
	h.ok(h.nobodys(launch...), "unconfined")

	acl := "/srv/vmnet-bridge.conf"
	if err := os.WriteFile(acl, []byte("allow br1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(acl)
	h.config("bridge.conf", "allow br0\ninclude "+acl+"\n")
	elsewhere := []string{"--vm", "Plab", "--bridge", "br1", "--vhost", "off", "--vmm", "env", "--", "/bin/true"}
	h.fails(h.nobodys(elsewhere...), exitFailure, "permission denied")
	parser("--remove")
	h.ok(h.nobodys(elsewhere...), "")
}

// profile writes the profile of a file for this installation.
func (i *installation) profile(source string) (path string) {
	i.Helper()
	text, err := os.ReadFile(source)
	if err != nil {
		i.Fatal(err)
	}
	s := strings.NewReplacer("@PREFIX@/bin/qemu-netup", i.program, "@PREFIX@/libexec/vmnet/qemu-netup-full", i.full,
		"@PREFIX@/{bin/qemu-netup,libexec/vmnet/qemu-netup-full}", i.dir+"/qemu-netup{,-full}",
		"/etc/** r,", "/etc/** r,\n  "+i.dir+"/** r,").Replace(string(text))
	path = i.path("profile")
	if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
		i.Fatal(err)
	}
	return path
}
