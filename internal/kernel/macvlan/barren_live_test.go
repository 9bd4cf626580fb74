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

// TestLiveQueuesOpenWithoutUdevAndDev opens queues as in a container that has no /sys, only a wrong
// node in /dev, and everything else mounted nodev.
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

// barren is the main function of that process. Its fd 3 is the wire's netns.
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
	// The node of a device with the same index in another netns.
	wrong := fmt.Sprintf("/dev/tap%d", d.Link.Index)
	if err := unix.Mknod(wrong, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		return err
	}
	return errors.Join(d.OpenQueue(), d.OpenQueue(), d.Up(), d.Close())
}

// createOnWire makes a device on eth0 in the netns that is fd 3 of this process.
func createOnWire() (*macvlan.Device, error) {
	ns, err := netns.Open("/proc/self/fd/3")
	if err != nil {
		return nil, err
	}
	nl, err := rtnl.Open(ns)
	if err != nil {
		return nil, err
	}
	parent, err := nl.Link("eth0")
	if err != nil {
		return nil, err
	}
	return macvlan.Create(nl, parent, vtap.Config{Kind: vtap.Macvtap, Name: "P2-net0", Mode: "bridge", MAC: guestMAC})
}
