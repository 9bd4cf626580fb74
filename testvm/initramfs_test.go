package testvm

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/u-root/u-root/pkg/cpio"
)

// TestCPIO reads what cpioWriter wrote with another implementation.
func TestCPIO(t *testing.T) {
	w := &cpioWriter{}
	w.dir("dev")
	w.charDevice("dev/console", 0o600, 5, 1)
	for _, size := range []string{"", "1", "22", "333", "4444"} {
		w.file("file"+size, 0o755, []byte(size))
	}
	w.symlink("link", "file1")
	archive := w.finish()

	records, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(archive)))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	inodes := map[uint64]bool{}
	for _, r := range records {
		content, err := io.ReadAll(io.NewSectionReader(r.ReaderAt, 0, int64(r.FileSize)))
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, strings.TrimSpace(strings.Join([]string{r.Name, string(rune('0' + r.Mode>>12)), string(content)}, " ")))
		if r.Name == "dev/console" && (r.Rmajor != 5 || r.Rminor != 1 || r.Mode != 0o20600) {
			t.Errorf("dev/console: %+v", r.Info)
		}
		if inodes[r.Ino] {
			t.Errorf("%s: inode %d is taken: the files would be hard links", r.Name, r.Ino)
		}
		inodes[r.Ino] = true
	}
	want := []string{"dev 4", "dev/console 2", "file 8", "file1 8 1", "file22 8 22", "file333 8 333", "file4444 8 4444", "link : file1"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestModulesComeBehindTheirDependencies(t *testing.T) {
	depends := map[string][]string{"/top.ko": {"mid-dle", "low", "inside"}, "/middle.ko": {"low"}, "/a.ko": {"b"}, "/b.ko": {"a"}, "/c.ko": {"nowhere"}}
	newResolver := func() *resolver {
		return &resolver{
			files:   map[string]string{"top": "/top.ko", "mid_dle": "/middle.ko", "low": "/low.ko", "a": "/a.ko", "b": "/b.ko", "c": "/c.ko"},
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
	for name, want := range map[string]string{"a": "depends on itself", "c": "module nowhere is missing", "absent": "module absent is missing"} {
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
	for _, pair := range [][2]string{{"virtio_ring", "virtio"}, {"virtio", "virtio_pci"}, {"failover", "net_failover"}, {"net_failover", "virtio_net"}, {"virtio_ring", "virtio_console"}} {
		if first, then := at(pair[0]), at(pair[1]); first < 0 || then < first {
			t.Errorf("%s is at %d and %s, which needs it, at %d", pair[0], first, pair[1], then)
		}
	}
}

// kernelIn lays out what FindKernelIn takes for the kernel of that release.
func kernelIn(t *testing.T, dir, release string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(dir+"/boot", 0o755), os.MkdirAll(dir+"/lib/modules/"+release, 0o755),
		os.WriteFile(dir+"/boot/vmlinuz-"+release, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
}

// TestWhereKernelsAre: a user's own kernel is found first, and $VMNET_CACHE leaves no choice.
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
