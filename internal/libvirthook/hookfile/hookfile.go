// Package hookfile installs and removes vmnet's hook among libvirt's. The hook is a symbolic link,
// so that a new version of the program takes effect at once.
package hookfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

const (
	// Program is the name of the hook's program.
	Program = "vmnet-hook"
	// Dir is where libvirt looks for hooks for its QEMU guests since version 6.5 (docs/hooks.rst),
	// besides the one file with the directory's name without ".d". Libvirt runs all executable
	// files there, in the order of their names.
	Dir = "/etc/libvirt/hooks/qemu.d"
	// Name is the name of the link in Dir.
	Name = "vmnet"
)

// ErrForeign matches the error for a file of that name that is not vmnet's.
var ErrForeign = errors.New("not vmnet's")

// Change says what Install and Remove did.
type Change struct {
	Path    string `json:"path"`    // of the link
	Program string `json:"program"` // to which it points
	Changed bool   `json:"changed"`
	// Reload means that libvirt must reload: it looks for hooks only when it starts and at SIGHUP,
	// and if it found none, it calls none until then (virHookInitialize in src/util/virhook.c).
	Reload bool `json:"reload"`
}

// Look returns the program that the link in dir points to. The error matches fs.ErrNotExist with
// errors.Is if there is no link, and ErrForeign if something else has its name.
func Look(dir string) (program string, err error) {
	path := filepath.Join(dir, Name)
	info, err := os.Lstat(path)
	if err != nil {
		return "", err
	}
	if info.Mode()&fs.ModeSymlink == 0 {
		return "", fmt.Errorf("%s is %w (move or rename it)", path, ErrForeign)
	}
	if program, err = os.Readlink(path); err == nil && filepath.Base(program) != Program {
		err = fmt.Errorf("%s, a link to %s, is %w (remove it)", path, program, ErrForeign)
	}
	return program, err
}

// Install makes the link in dir to program, an absolute path on the machine whose root directory is
// root. It makes a missing dir only as hooks/qemu.d below libvirt's configuration; otherwise the
// error matches fs.ErrNotExist with errors.Is. It replaces a vmnet link to another program.
func Install(root, dir, program string) (Change, error) {
	c := Change{Path: filepath.Join(dir, Name), Program: program}
	if !filepath.IsAbs(program) || filepath.Base(program) != Program {
		return c, fmt.Errorf("program %q: want an absolute path to %s", program, Program)
	}
	if !executable(filepath.Join(root, program)) {
		return c, fmt.Errorf("program %s cannot be executed: libvirt would skip it", filepath.Join(root, program))
	}
	at := filepath.Join(root, dir)
	old, err := Look(at)
	if err == nil && old == program {
		return c, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return c, err
	}
	c.Changed, c.Reload = true, !found(at)
	if err := makeDir(root, dir); err != nil {
		return c, err
	}
	return c, replace(filepath.Join(at, Name), program)
}

// makeDir makes the directory of hooks if libvirt would look for one there.
func makeDir(root, dir string) error {
	at := filepath.Join(root, dir)
	if _, err := os.Stat(at); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	hooks := filepath.Dir(at)
	conf := filepath.Dir(hooks)
	if filepath.Base(at) != filepath.Base(Dir) || filepath.Base(hooks) != filepath.Base(filepath.Dir(Dir)) {
		return fmt.Errorf("directory %s: %w (libvirt's is %s)", at, fs.ErrNotExist, Dir)
	}
	if _, err := os.Stat(conf); err != nil {
		return fmt.Errorf("libvirt's configuration: %w (install libvirt, or name its directory of hooks with --dir)",
			err)
	}
	return os.MkdirAll(at, 0o755)
}

// replace makes the link in one step. It makes the new one outside the directory, since libvirt
// runs everything in it.
func replace(path, target string) error {
	tmp := filepath.Join(filepath.Dir(filepath.Dir(path)), fmt.Sprintf(".%s-%d", Name, os.Getpid()))
	if err := os.Symlink(target, tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return nil
}

// Remove removes the link. A missing link is success.
func Remove(root, dir string) (Change, error) {
	c := Change{Path: filepath.Join(dir, Name)}
	var err error
	c.Program, err = Look(filepath.Join(root, dir))
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return c, err
	}
	c.Changed = true
	return c, os.Remove(filepath.Join(root, c.Path))
}

// found reports whether libvirt finds a hook for QEMU guests, vmnet's or another.
func found(dir string) bool {
	if single := dir[:len(dir)-len(filepath.Ext(dir))]; executable(single) {
		return true
	}
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if executable(filepath.Join(dir, e.Name())) {
			return true
		}
	}
	return false
}

// executable reports whether libvirt would run a file (virFileIsExecutable in src/util/virfile.c).
func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}
