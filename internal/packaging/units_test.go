// Package packaging has the script of `make deb` and `make rpm`, and tests of the packages and of
// the units in them.
package packaging

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"vmnet/internal/leaktest"
	"vmnet/internal/nstest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

const top = "../.." // of the source tree

// TestScripts parses the scripts of the packages, which only `make packages-test` runs.
func TestScripts(t *testing.T) {
	scripts, err := filepath.Glob("[dr][ep][bm]/*")
	if err != nil || len(scripts) < 8 {
		t.Fatalf("scripts %q, %v", scripts, err)
	}
	for _, script := range append(scripts, "package.sh") {
		text, err := os.ReadFile(script)
		if err != nil {
			t.Fatal(err)
		}
		if name := filepath.Base(script); name == "templates" || name == "lintian-overrides" {
			continue
		}
		cmd := exec.Command("sh", "-n")
		cmd.Stdin = bytes.NewReader(text)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", script, err, out)
		}
	}
}

// TestUnitsAreConfined asks systemd how exposed each unit is, from 0 to 10. The server of a network
// makes rules, namespaces and processes of other users, so no unit could confine it as much.
func TestUnitsAreConfined(t *testing.T) {
	_, err := exec.LookPath("systemd-analyze")
	nstest.Require(t, "systemd-analyze", err == nil, "apt install systemd")
	figure := regexp.MustCompile(`Overall exposure level for [^:]*: ([0-9.]+) `)
	for name, most := range map[string]float64{
		"vmnet-switch@.service": 2.0, "vmnet-watch.service": 3.5, "vmnet-network@.service": 6.2,
	} {
		text, err := os.ReadFile(filepath.Join(top, "docs/systemd", name))
		if err != nil {
			t.Fatal(err)
		}
		// The command reads a template only as an instance.
		unit := filepath.Join(t.TempDir(), strings.Replace(name, "@", "", 1))
		text = []byte(strings.ReplaceAll(string(text), "@PREFIX@", "/usr"))
		if err := os.WriteFile(unit, text, 0o644); err != nil {
			t.Fatal(err)
		}
		argv := []string{"systemd-analyze", "security", "--offline=yes", "--no-pager", unit}
		if os.Geteuid() == 0 { // it makes /run/systemd
			private := `mount -t tmpfs run /run && exec "$@"`
			argv = append([]string{"unshare", "--mount", "sh", "-c", private, "sh"}, argv...)
		}
		out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
		found := figure.FindSubmatch(out)
		if err != nil || found == nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		if got, err := strconv.ParseFloat(string(found[1]), 64); err != nil || got > most {
			t.Errorf("%s is exposed by %v, want at most %v\n%s", name, got, most, out)
		}
	}
}
