package testprogram

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// Command returns a command to run in dir. Its environment is that of the test, without the
// variables of a make that runs the test, and env.
func Command(dir string, env []string, args ...string) *exec.Cmd {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = dir
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(e string) bool {
		name, _, _ := strings.Cut(e, "=")
		return strings.HasPrefix(name, "MAKE") ||
			slices.Contains([]string{"MFLAGS", "PREFIX", "DESTDIR", "PRIVILEGE", "GROUP"}, name)
	}), env...)
	return cmd
}

// Run runs a Command that must succeed, and returns what it has printed.
func Run(tb testing.TB, dir string, env []string, args ...string) string {
	tb.Helper()
	out, err := Command(dir, env, args...).CombinedOutput()
	if err != nil {
		tb.Fatalf("%q: %v\n%s", args, err, out)
	}
	return string(out)
}

// CompareModes demands that files were found with the modes that want has. More may be found, but
// only where they may be, and none of a program for tests.
func CompareModes(tb testing.TB, found, want map[string]string, mayBe func(path string) bool) {
	tb.Helper()
	for path, mode := range want {
		if found[path] != mode {
			tb.Errorf("%s is %q, want %q", path, found[path], mode)
		}
	}
	for path := range found {
		if !mayBe(path) {
			tb.Errorf("%s is in a wrong place", path)
		}
		if strings.Contains(path, "testvm") {
			tb.Errorf("%s is for tests", path)
		}
	}
}
