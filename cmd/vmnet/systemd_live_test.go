package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"vmnet/internal/kernel/netns"
	"vmnet/internal/nstest"
)

// A manager is a systemd that is process 1 of its own namespaces, with a part of the test's cgroup
// and with the units that the test gives it.
type manager struct {
	t   *testing.T
	pid int // as the test sees it
}

// managerOutside runs managerInside in a cgroup of its own, and removes that once all has ended.
const managerOutside = `set -e
mount -t cgroup2 cgroup2 "$1"
own=$1/vmnet-test-$$
mkdir "$own"
sh -c 'echo $$ >"$1/cgroup.procs" && shift && exec "$@"' sh "$own" \
    unshare --mount --pid --cgroup --fork --kill-child --mount-proc sh -ec "$2" sh "$3" &
trap 'kill -KILL $!' TERM
set +e
wait
wait
while ! find "$own" -depth -type d -exec rmdir {} +; do sleep 0.01; done 2>/dev/null
`

const managerInside = `
umount -R /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs -o mode=0755 tmpfs /run
mkdir /run/systemd /run/lock
mount -t tmpfs tmpfs /dev/net
mknod -m 0666 /dev/net/tun c 10 200 # as udev makes it
mount -t tmpfs tmpfs /etc/systemd/system
cp -R "$1"/. /etc/systemd/system
export container=vmnet
exec /lib/systemd/systemd --system --unit=none.target --log-target=null --show-status=no
`

// startManager starts one in a network namespace, with unit files by their names.
func startManager(t *testing.T, ns *netns.NS, units map[string]string) *manager {
	t.Helper()
	nstest.RequireRoot(t)
	_, err := os.Stat("/lib/systemd/systemd")
	nstest.Require(t, "systemd", err == nil, "apt install systemd")
	dir := t.TempDir()
	units["none.target"] = "[Unit]\nDefaultDependencies=no\n"
	for name, text := range units {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("unshare", "--mount", "sh", "-c", managerOutside, "sh", t.TempDir(), managerInside, dir)
	cmd.Stderr = os.Stderr
	if err := ns.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	m := &manager{t: t}
	nstest.Eventually(t, patience, "systemd serves", func() bool {
		if m.pid = childOf(childOf(cmd.Process.Pid)); m.pid == 0 {
			return false
		}
		_, err := m.output("systemctl", "show", "-p", "Version")
		return err == nil
	})
	return m
}

// childOf returns a process's first child, or 0.
func childOf(pid int) int {
	all, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
	child, _, _ := strings.Cut(string(all), " ")
	n, _ := strconv.Atoi(child)
	return n
}

// output runs a command as root beside the manager, in no unit, and returns all that it prints.
func (m *manager) output(argv ...string) (string, error) {
	enter := []string{"--target", strconv.Itoa(m.pid), "--mount", "--pid", "--net"}
	out, err := exec.Command("nsenter", append(enter, argv...)...).CombinedOutput()
	return string(out), err
}

func (m *manager) run(argv ...string) string {
	m.t.Helper()
	out, err := m.output(argv...)
	if err != nil {
		m.t.Fatalf("%v: %v\n%s", argv, err, out)
	}
	return out
}

// property returns what systemd knows of a unit.
func (m *manager) property(unit, name string) string {
	m.t.Helper()
	return strings.TrimSpace(m.run("systemctl", "show", "--value", "-p", name, unit))
}

// path returns where the test finds a path of the manager's namespace.
func (m *manager) path(path string) string { return fmt.Sprintf("/proc/%d/root%s", m.pid, path) }
