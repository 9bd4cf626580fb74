package testvm

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vmnet/internal/nstest"
)

// TestCPIO reads cpioWriter's output with another implementation, as far as that lists and extracts
// it without root. The test compares the other fields in the headers.
func TestCPIO(t *testing.T) {
	busybox, err := exec.LookPath("busybox")
	nstest.Require(t, "busybox", err == nil, "apt-get install busybox-static")
	w := &cpioWriter{}
	w.dir("dev")
	w.charDevice("dev/console", 0o600, 5, 1)
	for _, size := range []string{"", "1", "22", "333", "4444"} {
		w.file("file"+size, 0o755, []byte(size))
	}
	w.symlink("link", "file1")
	archive := w.finish()
	dir := t.TempDir()
	cpio := func(args ...string) string {
		cmd := exec.Command(busybox, append([]string{"cpio"}, args...)...)
		cmd.Dir, cmd.Stdin = dir, bytes.NewReader(archive)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("cpio %v: %v", args, err)
		}
		return string(out)
	}

	var listed []string
	for line := range strings.Lines(cpio("-t", "-v")) { // mode, owner, size, date, time, name
		f := strings.Fields(line)
		listed = append(listed, strings.Join(append(f[:3:3], f[5:]...), " "))
	}
	want := []string{
		"drwxr-xr-x 0/0 0 dev", "crw------- 0/0 0 dev/console", "-rwxr-xr-x 0/0 0 file", "-rwxr-xr-x 0/0 1 file1",
		"-rwxr-xr-x 0/0 2 file22", "-rwxr-xr-x 0/0 3 file333", "-rwxr-xr-x 0/0 4 file4444",
		"lrwxrwxrwx 0/0 0 link -> file1",
	}
	if diff := cmp.Diff(want, listed); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	cpio("-i", "file*", "link")
	for name, want := range map[string]string{
		"file": "", "file1": "1", "file22": "22", "file333": "333",
		"file4444": "4444", "link": "1",
	} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); string(got) != want || err != nil {
			t.Errorf("%s has %q, %v", name, got, err)
		}
	}

	inodes := map[string]bool{}
	for _, m := range regexp.MustCompile(`070701([0-9A-F]{8})((?:[0-9A-F]{8}){12})([^\0]+)\0`).FindAllSubmatch(archive,
		-1) {
		inode, fields, name := string(m[1]), string(m[2]), string(m[3])
		if inodes[inode] {
			t.Errorf("%s: inode %s is taken: the files would be hard links", name, inode)
		}
		inodes[inode] = true
		if device := fields[8*8 : 10*8]; name == "dev/console" && device != "0000000500000001" {
			t.Errorf("dev/console is device %s", device)
		}
	}
	if len(inodes) != len(want)+1 { // the trailer has one as well
		t.Errorf("%d headers", len(inodes))
	}
}

func TestModulesComeBehindTheirDependencies(t *testing.T) {
	depends := map[string][]string{
		"/top.ko": {"mid-dle", "low", "inside"}, "/middle.ko": {"low"}, "/a.ko": {"b"},
		"/b.ko": {"a"}, "/c.ko": {"nowhere"},
	}
	newResolver := func() *resolver {
		return &resolver{
			files: map[string]string{
				"top": "/top.ko", "mid_dle": "/middle.ko", "low": "/low.ko", "a": "/a.ko",
				"b": "/b.ko", "c": "/c.ko",
			},
			builtin: map[string]bool{"inside": true},
			depends: func(file string) ([]string, error) { return depends[file], nil },
		}
	}
	r := newResolver()
	for _, name := range []string{"top", "low", "inside", "top"} {
		if err := r.add(name, nil); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]string{"/low.ko", "/middle.ko", "/top.ko"}, r.order); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
	for name, want := range map[string]string{
		"a": "depends on itself", "c": "module nowhere is missing",
		"absent": "module absent is missing",
	} {
		if err := newResolver().add(name, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", name, err, want)
		}
	}
}

func TestLiveModulesOfTheGuestKernel(t *testing.T) {
	Require(t)
	k, err := FindKernel()
	if err != nil {
		t.Fatal(err)
	}
	files, err := moduleFiles(k.Modules, guestModules)
	if err != nil {
		t.Fatal(err)
	}
	at := func(name string) int {
		return slices.IndexFunc(files, func(f string) bool { return filepath.Base(f) == name+".ko" })
	}
	for _, pair := range [][2]string{
		{"virtio_ring", "virtio"},
		{"virtio", "virtio_pci"},
		{"failover", "net_failover"},
		{"net_failover", "virtio_net"},
		{"virtio_ring", "virtio_console"},
	} {
		if first, then := at(pair[0]), at(pair[1]); first < 0 || then < first {
			t.Errorf("%s is at %d and %s, which needs it, at %d", pair[0], first, pair[1], then)
		}
	}
}

// kernelIn creates files that FindKernelIn accepts as the kernel of that release.
func kernelIn(t *testing.T, dir, release string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(dir+"/boot", 0o755), os.MkdirAll(dir+"/lib/modules/"+release, 0o755),
		os.WriteFile(dir+"/boot/vmlinuz-"+release, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
}

// TestWhereKernelsAre: a user's own kernel comes first; $VMNET_CACHE excludes all others.
func TestWhereKernelsAre(t *testing.T) {
	own, chosen := t.TempDir(), t.TempDir()
	t.Setenv("XDG_CACHE_HOME", own)
	t.Setenv("VMNET_CACHE", "")
	kernelIn(t, own+"/vmnet/cloud-kernel", "own")
	if k, err := FindKernel(); err != nil || k.Release != "own" {
		t.Errorf("the user's own: %+v, %v", k, err)
	}
	t.Setenv("VMNET_CACHE", chosen)
	if k, err := FindKernel(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("none in $VMNET_CACHE: %+v, %v", k, err)
	}
	kernelIn(t, chosen+"/full-kernel", "chosen")
	if k, err := FindKernelOf("full"); err != nil || k.Release != "chosen" {
		t.Errorf("$VMNET_CACHE: %+v, %v", k, err)
	}
}

func TestKernelThatIsMissing(t *testing.T) {
	t.Setenv("VMNET_CACHE", t.TempDir())
	_, err := FindKernel()
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "setup.sh") {
		t.Errorf("no kernel: %v", err)
	}
	dir := t.TempDir()
	if err := os.MkdirAll(dir+"/boot", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/boot/vmlinuz-6.1", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := FindKernelIn(dir); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "modules") {
		t.Errorf("no modules: %v", err)
	}
	if err := os.MkdirAll(dir+"/lib/modules/6.1", 0o755); err != nil {
		t.Fatal(err)
	}
	got, err := FindKernelIn(dir)
	want := Kernel{Release: "6.1", Image: dir + "/boot/vmlinuz-6.1", Modules: dir + "/lib/modules/6.1"}
	if err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	want.Image = dir + "/boot/vmlinux-6.1"
	if err := os.WriteFile(want.Image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := FindKernelIn(dir); err != nil || got != want {
		t.Errorf("unpacked: got %+v, %v, want %+v", got, err, want)
	}
}

func TestInitMustBeStatic(t *testing.T) {
	name := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(name, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := initProgram(t.Context(), name); err == nil || !strings.Contains(err.Error(), "CGO_ENABLED=0") {
		t.Errorf("a script as /init: %v", err)
	}
}
