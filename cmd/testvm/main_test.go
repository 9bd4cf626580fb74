package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"vmnet/internal/leaktest"
	"vmnet/testvm"
	"vmnet/testvm/lab"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// buildCLI builds the static program as it is shipped, and returns its directory.
func buildCLI(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command("go", "build", "-o", dir, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v: %s", err, out)
	}
	return dir
}

// runScripts runs testdata/*.txt that match, with testvm in the PATH and a directory
// for sockets of their own.
func runScripts(t *testing.T, files ...string) {
	bin := buildCLI(t)
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Files:       files,
		WorkdirRoot: t.TempDir(), // -run may name one script
		Setup: func(env *testscript.Env) error {
			sockets, err := os.MkdirTemp("", "tv") // a socket's path must be short
			if err != nil {
				return err
			}
			env.Defer(func() { _ = os.RemoveAll(sockets) })
			env.Setenv("XDG_RUNTIME_DIR", sockets)
			env.Setenv("XDG_CACHE_HOME", cache)
			env.Setenv("VMNET_CACHE", os.Getenv("VMNET_CACHE"))
			env.Setenv("PATH", bin+string(filepath.ListSeparator)+os.Getenv("PATH"))
			return nil
		},
	})
}

func TestScripts(t *testing.T) { runScripts(t, "testdata/usage.txt") }

func TestLiveScripts(t *testing.T) {
	testvm.Require(t)
	runScripts(t, "testdata/run.txt")
}

func TestLiveLabScript(t *testing.T) {
	lab.Require(t)
	runScripts(t, "testdata/lab.txt")
}
