package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vmnet/internal/leaktest"
	"vmnet/internal/testprogram"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// TestFull: a build in any directory finds its other half there, and a link to it does so too.
func TestFull(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(t.TempDir(), "link")
	build := exec.Command("go", "build", "-o", dir, "-ldflags", "-X main.fullPath=/nonexistent/full",
		".", "../qemu-netup-full")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	program := filepath.Join(dir, "qemu-netup")
	if err := os.Symlink(program, link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{program, link} {
		out, err := exec.Command(path, "--version").CombinedOutput()
		if err != nil || !strings.HasPrefix(string(out), "qemu-netup ") {
			t.Errorf("%s: %v: %s", path, err, out)
		}
	}
	if err := os.Remove(filepath.Join(dir, "qemu-netup-full")); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(program, "--version").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "execute /nonexistent/full: ") {
		t.Errorf("alone: %v: %s", err, out)
	}
	if got := full(true); got != fullPath {
		t.Errorf("with a privilege it becomes %s", got)
	}
}

func TestAsQEMU(t *testing.T) {
	type request struct {
		bridge string
		vnet   bool
		fd     int
	}
	for line, want := range map[string]request{
		"qemu-netup --use-vnet --fd=9 --br=br0":          {"br0", true, 9},
		"qemu-netup --br=br0 --fd=0":                     {"br0", false, 0},
		"/x/qemu-bridge-helper --fd=3 --br=--fd=4":       {"--fd=4", false, 3},
		"qemu-netup --br=a=b --fd=3":                     {"a=b", false, 3},
		"qemu-netup":                                     {},
		"qemu-netup --use-vnet":                          {},
		"qemu-netup --br=br0":                            {},
		"qemu-netup --fd=3":                              {},
		"qemu-netup --br= --fd=3":                        {},
		"qemu-netup --br=br0 --fd=":                      {},
		"qemu-netup --br=br0 --fd=03":                    {},
		"qemu-netup --br=br0 --fd=+3":                    {},
		"qemu-netup --br=br0 --fd=-3":                    {},
		"qemu-netup --br=br0 --fd=0x3":                   {},
		"qemu-netup --br=br0 --fd=99999999999999999999":  {},
		"qemu-netup --br=br0 --br=br1 --fd=3":            {},
		"qemu-netup --br=br0 --fd=3 --fd=3":              {},
		"qemu-netup --use-vnet=1 --br=br0 --fd=3":        {},
		"qemu-netup --use-vnet --use-vnet --br=b --fd=3": {},
		"qemu-netup --br br0 --fd=3":                     {},
		"qemu-netup --br=br0 --fd=3 more":                {},
		"qemu-netup --br=br0 --fd=3 --":                  {},
		"qemu-netup --profile=x --br=br0 --fd=3":         {},
		"qemu-netup --attach --fd=3":                     {},
		"qemu-ifup --br=br0 --fd=3":                      {},
		"/etc/qemu-ifdown --br=br0 --fd=3":               {},
	} {
		r, ok := asQEMU(strings.Fields(line))
		if ok != (want != request{}) || ok && (request{r.Bridge, r.VnetHdr, r.FD}) != want ||
			r.Settle != nil || !r.Port.IsZero() {
			t.Errorf("%s: %+v, %v, want %+v", line, r, ok, want)
		}
	}
}

// FuzzAsQEMU: what is read has been said, each word of it.
func FuzzAsQEMU(f *testing.F) {
	f.Add("qemu-netup --use-vnet --fd=9 --br=br0")
	f.Add("x --br=\x00 --fd=1")
	f.Fuzz(func(t *testing.T, line string) {
		argv := strings.Split(line, " ")
		r, ok := asQEMU(argv)
		if !ok {
			return
		}
		words := map[string]bool{}
		for _, arg := range argv[1:] {
			words[arg] = true
		}
		want := 2
		if r.VnetHdr {
			want++
		}
		if len(argv)-1 != want || !words["--br="+r.Bridge] || r.VnetHdr != words["--use-vnet"] {
			t.Errorf("%q: %+v", argv, r)
		}
	})
}

// TestNothingBeforeMain: packages of vmnet leave no work to their initialisation, which each start
// of the bridge helper would wait for.
func TestNothingBeforeMain(t *testing.T) {
	program := filepath.Join(t.TempDir(), "qemu-netup")
	testprogram.Install(t, program, testprogram.Build(t, "."))
	cmd := exec.Command(program, "--br=br0", "--fd=0") // no socket
	cmd.Env = []string{"GODEBUG=inittrace=1"}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "init runtime @") {
		t.Fatalf("%v: %s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "init vmnet/") && !strings.Contains(line, " 0 allocs") {
			t.Errorf("make it when it is needed: %s", line)
		}
	}
}
