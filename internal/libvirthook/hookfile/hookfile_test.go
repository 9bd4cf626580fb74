package hookfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"vmnet/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// machine is a directory that stands for /, with two programs in it.
func machine(t *testing.T) (root string) {
	t.Helper()
	root = t.TempDir()
	for _, dir := range []string{"/bin", "/new"} {
		write(t, filepath.Join(root, dir, Program), 0o755)
	}
	if err := os.MkdirAll(filepath.Join(root, filepath.Dir(filepath.Dir(Dir))), 0o755); err != nil {
		t.Fatal(err)
	}
	return root
}

func write(t *testing.T, path string, mode fs.FileMode) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, mode)); err != nil {
		t.Fatal(err)
	}
}

const (
	link    = Dir + "/" + Name
	program = "/bin/" + Program
)

func TestInstallAndRemove(t *testing.T) {
	root := machine(t)
	if _, err := Look(root + Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before: %v", err)
	}
	for _, step := range []struct {
		do   func() (Change, error)
		want Change
		left string
	}{
		{func() (Change, error) { return Remove(root, Dir) }, Change{Path: link}, ""},
		{func() (Change, error) { return Install(root, Dir, program) }, Change{link, program, true, true}, program},
		{func() (Change, error) { return Install(root, Dir, program) }, Change{link, program, false, false}, program},
		// dangling, seen from here
		{func() (Change, error) {
			return Install(root, Dir, "/new/"+Program)
		}, Change{link, "/new/" + Program, true, true}, "/new/" + Program},
		{func() (Change, error) { return Remove(root, Dir) }, Change{link, "/new/" + Program, true, false}, ""},
	} {
		got, err := step.do()
		if err != nil || got != step.want {
			t.Fatalf("%+v, %v, want %+v", got, err, step.want)
		}
		if left, _ := Look(root + Dir); left != step.left {
			t.Errorf("left: %q, want %q", left, step.left)
		}
	}
	if entries, _ := os.ReadDir(filepath.Dir(root + Dir)); len(entries) != 1 {
		t.Errorf("beside the directory: %v", entries)
	}
}

// TestReload: only the first hook needs a reload of libvirt.
func TestReload(t *testing.T) {
	for path, want := range map[string]bool{
		"/etc/libvirt/hooks/network":         true,
		"/etc/libvirt/hooks/qemu":            false,
		"/etc/libvirt/hooks/qemu.d/50-other": false,
	} {
		root := machine(t)
		write(t, root+path, 0o755)
		if got, err := Install(root, Dir, program); err != nil || got.Reload != want {
			t.Errorf("beside %s: %+v, %v", path, got, err)
		}
	}
	root := machine(t)
	write(t, root+"/etc/libvirt/hooks/qemu", 0o644) // which libvirt passes over
	if got, err := Install(root, Dir, program); err != nil || !got.Reload {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestNoDirectory: nothing is made where libvirt would not look.
func TestNoDirectory(t *testing.T) {
	for _, dir := range []string{
		"/nowhere", "/etc/libvirt/hook/qemu.d", "/etc/libvirt/hooks/network.d",
		"/usr/local/etc/libvirt/hooks/qemu.d", "/hooks/qemu.d/x",
	} {
		root := machine(t)
		if got, err := Install(root, dir, program); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %+v, %v", dir, got, err)
		}
		if _, err := os.Stat(filepath.Join(root, dir)); err == nil {
			t.Errorf("%s was made", dir)
		}
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
		if got, err := Install(root, dir, program); err != nil || !got.Changed {
			t.Errorf("%s, which is there: %+v, %v", dir, got, err)
		}
	}
}

func TestRefuses(t *testing.T) {
	root := machine(t)
	write(t, root+"/text/"+Program, 0o644)
	for _, wrong := range []string{"", "bin/" + Program, "/bin/other", "/nosuch/" + Program, "/text/" + Program} {
		if got, err := Install(root, Dir, wrong); err == nil {
			t.Errorf("%q: %+v", wrong, got)
		}
	}
	for name, make := range map[string]func(path string) error{
		"file":      func(path string) error { return os.WriteFile(path, []byte("#!/bin/sh\n"), 0o755) },
		"directory": func(path string) error { return os.Mkdir(path, 0o755) },
		"link":      func(path string) error { return os.Symlink("/bin/other", path) },
	} {
		root := machine(t)
		if err := errors.Join(os.MkdirAll(root+Dir, 0o755), make(root+link)); err != nil {
			t.Fatal(err)
		}
		if got, err := Install(root, Dir, program); !errors.Is(err, ErrForeign) {
			t.Errorf("install over a %s: %+v, %v", name, got, err)
		}
		if got, err := Remove(root, Dir); !errors.Is(err, ErrForeign) {
			t.Errorf("remove a %s: %+v, %v", name, got, err)
		}
		if _, err := os.Lstat(root + link); err != nil {
			t.Errorf("the %s is gone: %v", name, err)
		}
	}
}
