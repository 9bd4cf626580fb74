package leaktest_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vmnet/internal/leaktest"
	"vmnet/internal/nstest"
)

// TestLiveBeside runs programs beside tests that do nothing: good ones, and ones that fail the
// tests.
func TestLiveBeside(t *testing.T) {
	nstest.RequireRoot(t)
	const good = `trap 'touch "$0.asked"; kill $!; exit 0' TERM; sleep 600 & echo ready; wait`
	for name, test := range map[string]struct{ script, want string }{
		"good": {good, ""},
		"in pids": {
			strings.Replace(good, "echo ready", `[ "$(ls -d /proc/[0-9]* | wc -l)" -lt 9 ] && echo ready`, 1),
			"",
		},
		"late":   {"echo soon", `beside the tests, says "soon`},
		"ended":  {"trap '' TERM; echo ready; exit 3", "exited before them"},
		"failed": {"trap 'exit 3' TERM; echo ready; while :; do sleep 0.01; done", "beside the tests failed"},
		"leaves": {
			"trap 'exit 0' TERM; sleep 600 & echo ready; while :; do sleep 0.01; done",
			"processes still run: ",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "beside")
			if err := os.WriteFile(path, []byte("#!/bin/sh\n"+test.script+"\n"), 0o700); err != nil {
				t.Fatal(err)
			}
			what := "nothing"
			if name == "ended" {
				what = "patience"
			}
			cmd := enclosed(t, what)
			cmd.Env = append(cmd.Env, leaktest.BesideEnv+"="+path)
			out, err := cmd.CombinedOutput()
			if !strings.Contains(string(out), test.want) || (err == nil) != (test.want == "") {
				t.Errorf("got %v and %q, want %q", err, out, test.want)
			}
			_, err = os.Stat(path + ".asked")
			if test.want == "" && err != nil {
				t.Errorf("it was not asked to end: %v", err)
			}
		})
	}
}
