//go:build packages

package packaging

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmnet/internal/nstest"
)

// machine is a root in which systemd runs as the first process, in namespaces and a control group
// of its own.
type machine struct {
	*root
	cgroup string
	init   *exec.Cmd
}

// cgroups is the directory of all control groups of the second version, which the first machine
// mounts. Below it are those of machines, by this prefix.
const cgroupPrefix = "vmnet-packages-"

// newMachine lays out a machine that has none of the services of this one.
func newMachine(t *testing.T) *machine {
	t.Helper()
	const systemd = "/lib/systemd/systemd"
	_, err := os.Stat(systemd)
	nstest.Require(t, "systemd", err == nil, "apt install systemd")
	m := &machine{root: newRoot(t)}
	// What runs here is not started there, and its hardware is not the machine's.
	m.sh(`rm -rf /etc/systemd/system/*.wants /etc/systemd/system/*.service /usr/sbin/policy-rc.d
		for unit in systemd-udevd systemd-udev-trigger systemd-modules-load systemd-logind; do
			ln -s /dev/null /etc/systemd/system/$unit.service
		done`)
	all := t.TempDir()
	if err := unix.Mount("cgroup2", all, "cgroup2", 0, ""); err != nil {
		t.Fatalf("mount the control groups: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(all, 0); err != nil {
			t.Error(err)
		}
	})
	stale, err := filepath.Glob(filepath.Join(all, cgroupPrefix+"*")) // of a test that was killed
	for _, dir := range stale {
		err = errors.Join(err, removeCgroup(dir))
	}
	if err == nil {
		m.cgroup, err = os.MkdirTemp(all, cgroupPrefix)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() && m.init != nil {
			t.Logf("its journal:\n%s", m.try("journalctl --no-pager -n 100; systemctl --no-pager list-units 'vmnet*'"))
		}
		m.halt()
		if err := removeCgroup(m.cgroup); err != nil {
			t.Error(err)
		}
	})
	return m
}

// removeCgroup removes a control group without processes, with those in it.
func removeCgroup(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	for _, dir := range slices.Backward(dirs) {
		err = errors.Join(err, os.Remove(dir))
	}
	return err
}

// boot starts the machine, and returns once what is enabled there has started.
func (m *machine) boot() {
	m.t.Helper()
	m.init = exec.Command("sh", "testdata/boot.sh", m.dir, m.cgroup)
	m.init.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Setsid:     true,
	}
	if err := m.init.Start(); err != nil {
		m.t.Fatal(err)
	}
	nstest.Eventually(m.t, 60*time.Second, "the machine has booted", func() bool {
		return m.try("systemctl is-active multi-user.target") == "active\n"
	})
}

// halt ends all of the machine's processes at once, as a power failure does.
func (m *machine) halt() {
	m.t.Helper()
	if m.init == nil {
		return
	}
	if err := m.init.Process.Kill(); err != nil {
		m.t.Error(err)
	}
	_ = m.init.Wait() // it was killed
	m.init = nil
	nstest.Eventually(m.t, 10*time.Second, "its processes have ended", func() bool {
		events, err := os.ReadFile(filepath.Join(m.cgroup, "cgroup.events"))
		return err == nil && strings.Contains(string(events), "populated 0")
	})
}

// command returns lines of the shell to run in the machine as root.
func (m *machine) command(script string) *exec.Cmd {
	cmd := exec.Command("nsenter", "--target", strconv.Itoa(m.init.Process.Pid), "--all",
		"/bin/sh", "-euc", script)
	cmd.Env = environment
	return cmd
}

// try runs lines of the shell in the machine, and returns what they print.
func (m *machine) try(script string) string {
	out, err := m.command(script).CombinedOutput()
	if err != nil && len(out) == 0 {
		return fmt.Sprintf("%v\n", err)
	}
	return string(out)
}

// run is try for lines that must succeed.
func (m *machine) run(script string) string {
	m.t.Helper()
	out, err := m.command(script).CombinedOutput()
	if err != nil {
		m.t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

// property returns a property of a unit.
func (m *machine) property(unit, name string) string {
	m.t.Helper()
	return strings.TrimSpace(m.run("systemctl show --value --property " + name + " " + unit))
}
