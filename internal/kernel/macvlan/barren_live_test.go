package macvlan_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/macvlan"
	"vmnet/internal/kernel/netns"
	"vmnet/internal/kernel/rtnl"
	"vmnet/macvtap/vtap"
)

const barrenEnv = "VMNET_TEST_BARREN"

// TestLiveQueuesOpenWithoutUdevAndDev opens queues where a container leaves nothing to open them
// by: no /sys, /dev without a node but a wrong one, all else mounted nodev.
func TestLiveQueuesOpenWithoutUdevAndDev(t *testing.T) {
	w := newWire(t)
	ns, err := os.Open(w.ns.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), barrenEnv+"=1")
	cmd.ExtraFiles = []*os.File{ns}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// barren is that process's main; its fd 3 is the wire's netns.
func barren() int {
	if err := inBarrenPlace(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func inBarrenPlace() error {
	err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	for _, dir := range []string{"/run", "/tmp", "/dev", "/sys"} {
		err = errors.Join(err, unix.Mount("none", dir, "tmpfs", unix.MS_NODEV, ""))
	}
	if err != nil {
		return err
	}
	d, err := createOnWire()
	if err != nil {
		return err
	}
	// Somebody else's device of the same index, as in another netns.
	wrong := fmt.Sprintf("/dev/tap%d", d.Link.Index)
	if err := unix.Mknod(wrong, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		return err
	}
	return errors.Join(d.OpenQueue(), d.OpenQueue(), d.Up(), d.Close())
}

// createOnWire makes a device on eth0 of the netns that a test's process has as fd 3.
func createOnWire() (*macvlan.Device, error) {
	ns, err := netns.Open("/proc/self/fd/3")
	if err != nil {
		return nil, err
	}
	nl, err := rtnl.Open(ns)
	if err != nil {
		return nil, err
	}
	lower, err := nl.Link("eth0")
	if err != nil {
		return nil, err
	}
	return macvlan.Create(nl, lower, vtap.Config{Kind: vtap.Macvtap, Name: "P2-net0", Mode: "bridge", MAC: guestMAC})
}
