// Package testprogram builds programs for tests: each once for all tests of a package, since a test
// that links its own spends most of its time on that.
package testprogram

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

var (
	mu    sync.Mutex
	built = map[string][]byte{} // by the arguments of Build
)

// Build returns a program as the Makefile builds it: static, and without debugging information.
// source is its import path, or its directory, which begins with a dot. Each of variables is set as
// by the linker's -X: "main.fullPath=/x". The caller must not change the result.
func Build(tb testing.TB, source string, variables ...string) []byte {
	tb.Helper()
	mu.Lock()
	defer mu.Unlock()
	key := strings.Join(append([]string{source}, variables...), "\x00")
	if program, ok := built[key]; ok {
		return program
	}
	dir, err := os.MkdirTemp("", "program")
	if err != nil {
		tb.Fatal(err)
	}
	defer os.RemoveAll(dir)
	flags := "-s -w"
	for _, v := range variables {
		flags += " -X " + v
	}
	path := filepath.Join(dir, "program")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", flags, "-o", path, source)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("build %s: %v: %s", source, err, out)
	}
	program, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	built[key] = program
	return program
}

// Install writes a program to path with mode 0755, in place of a file that is there. A child writes
// it: a file that this process writes is also open in each child that it forks meanwhile, until
// that child executes its program, and execve(2) fails with ETXTBSY as long as a writer has the
// file open.
func Install(tb testing.TB, path string, program []byte) {
	tb.Helper()
	cmd := exec.Command("sh", "-c", `rm -f "$0" && cat >"$0" && chmod 755 "$0"`, path)
	cmd.Stdin = bytes.NewReader(program)
	if out, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("install %s: %v: %s", path, err, out)
	}
}
