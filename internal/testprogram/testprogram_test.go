package testprogram_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"vmnet/internal/leaktest"
	"vmnet/internal/testprogram"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestProgram(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hello")
	if err := os.WriteFile(path, []byte("an older one"), 0o4700); err != nil {
		t.Fatal(err)
	}
	program := testprogram.Build(t, "./testdata/hello", "main.text=set")
	testprogram.Install(t, path, program)
	if out, err := exec.Command(path).CombinedOutput(); err != nil || string(out) != "set" {
		t.Errorf("%v: %q", err, out)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o755 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if again := testprogram.Build(t, "./testdata/hello", "main.text=set"); &again[0] != &program[0] {
		t.Error("it was built twice")
	}
}
