package bridgeconf

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vmnet/internal/nstest"
)

// helpers are where distributions have qemu-bridge-helper.
var helpers = []string{"/usr/lib/qemu/qemu-bridge-helper", "/usr/libexec/qemu-bridge-helper"}

// TestLiveQEMU shows the files of all cases to QEMU's own helper, in a netns without bridges
// and with an /etc of its own: what it allows ends at the bridge that is not there.
func TestLiveQEMU(t *testing.T) {
	nstest.Require(t, "root", os.Geteuid() == 0, "run it as root")
	helper := ""
	for _, h := range helpers {
		if _, err := os.Stat(h); err == nil {
			helper = h
		}
	}
	nstest.Require(t, "qemu", helper != "", "apt install qemu-system-common")
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			if got, text := askQEMU(t, helper, write(t, tc.main, tc.files)); got != tc.want {
				t.Errorf("QEMU says %s, the table %s: %s", got, tc.want, text)
			}
		})
	}
}

func askQEMU(t *testing.T, helper, conf string) (verdict, string) {
	t.Helper()
	const script = `ulimit -n 1024; cp "$1" "$2/main.copy" && mount -t tmpfs none /etc && mkdir /etc/qemu && cp "$2/main.copy" /etc/qemu/bridge.conf && exec "$3" --br=br0 --fd=0`
	cmd := exec.Command("unshare", "--mount", "--net", "sh", "-c", script, "sh", conf, filepath.Dir(conf), helper)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Fatalf("%s: %v: %s", helper, err, out)
	}
	text := string(bytes.TrimSpace(out))
	switch {
	case strings.Contains(text, "access denied by acl file"):
		return denied, text
	case strings.Contains(text, "failed to parse default acl file"):
		return broken, text
	case strings.Contains(text, "bridge `br0'"), strings.Contains(text, "/dev/net/tun"):
		return allowed, text // it got as far as the bridge or the tap
	}
	t.Fatalf("%s said %q", helper, text)
	return "", text
}
