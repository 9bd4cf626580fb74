package bridgeconf

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"vmnet/internal/nstest"
)

// helpers are the distributions' paths of qemu-bridge-helper.
var helpers = []string{"/usr/lib/qemu/qemu-bridge-helper", "/usr/libexec/qemu-bridge-helper"}

// TestLiveQEMU runs QEMU's own helper on the files of all cases, in a netns without bridges and
// with a private /etc: a bridge that it allows fails as it does not exist.
func TestLiveQEMU(t *testing.T) {
	nstest.Require(t, "root", os.Geteuid() == 0, "run it as root")
	helper := findHelper(t)
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			if got, text := askQEMU(t, write(t, tc.main, tc.files), helper); got != tc.want {
				t.Errorf("QEMU says %s, the table %s: %s", got, tc.want, text)
			}
		})
	}
}

func findHelper(t *testing.T) string {
	t.Helper()
	helper := ""
	for _, h := range helpers {
		if _, err := os.Stat(h); err == nil {
			helper = h
		}
	}
	nstest.Require(t, "qemu", helper != "", "apt install qemu-system-common")
	return helper
}

// TestLiveModes has files that one group each may read, and a user in one of the groups.
func TestLiveModes(t *testing.T) {
	nstest.Require(t, "root", os.Geteuid() == 0, "run it as root")
	const ours, theirs = 4242, 4343
	for _, tc := range []struct {
		name         string
		ours, theirs string
		want         verdict
	}{
		{"ours allows", "allow br0\n", "", allowed},
		{"theirs allows", "", "allow br0\n", denied},
		{"ours denies", "allow br0\ndeny br0\n", "", denied},
		{"theirs denies", "allow br0\n", "deny br0\n", allowed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			conf := write(t, "include DIR/theirs\ninclude DIR/ours\n",
				map[string]string{"ours": tc.ours, "theirs": tc.theirs})
			dir := filepath.Dir(conf)
			for path, gid := range map[string]int{dir + "/ours": ours, dir + "/theirs": theirs} {
				if err := errors.Join(os.Chown(path, 0, gid), os.Chmod(path, 0o640),
					os.Chmod(filepath.Dir(dir), 0o711)); err != nil {
					t.Fatal(err)
				}
			}
			if got, text := askQEMU(t, conf, "setpriv", "--reuid=4242", "--regid=4242", "--clear-groups",
				findHelper(t)); got != tc.want {
				t.Errorf("QEMU says %s, the table %s: %s", got, tc.want, text)
			}
			asUser(t, ours, func() {
				acl, err := Read(conf)
				if err != nil || len(acl.Skipped) != 1 || acl.Decide("br0").Allowed != (tc.want == allowed) {
					t.Errorf("%+v, %v, want %s", acl, err, tc.want)
				}
			})
		})
	}
}

// asUser runs f with the file permissions of the user and group of that id.
func asUser(t *testing.T, id int, f func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := errors.Join(syscall.Setfsgid(id), syscall.Setfsuid(id)); err != nil {
		t.Fatal(err)
	}
	f()
	if err := errors.Join(syscall.Setfsuid(0), syscall.Setfsgid(0)); err != nil {
		t.Fatal(err)
	}
}

// askQEMU runs QEMU's helper by that command, with conf as its file.
func askQEMU(t *testing.T, conf string, command ...string) (verdict, string) {
	t.Helper()
	// With more files than 1024 QEMU's stack would end before a cycle does.
	const script = `ulimit -n 1024; mount -t tmpfs none /etc && mkdir /etc/qemu && cp "$0" /etc/qemu && exec "$@" --br=br0 --fd=0`
	cmd := exec.Command("unshare", append([]string{"--mount", "--net", "sh", "-c", script, conf}, command...)...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Fatalf("%v: %v: %s", command, err, out)
	}
	text := string(bytes.TrimSpace(out))
	switch {
	case strings.Contains(text, "access denied by acl file"):
		return denied, text
	case strings.Contains(text, "failed to parse default acl file"):
		return broken, text
	case strings.Contains(text, "bridge `br0'"), strings.Contains(text, "/dev/net/tun"),
		strings.Contains(text, "create tun device"):
		return allowed, text // it got as far as the bridge or the tap
	}
	t.Fatalf("%v said %q", command, text)
	return "", text
}
