// Package rundir knows where a user's sockets are: in a folder that nobody else can write to, since who could would
// listen in the place of whom the user means.
package rundir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// System is root's.
const System = "/run/vmnet"

// Of are the folders that a user's sockets may be in, best first. runtime is the user's $XDG_RUNTIME_DIR; empty or
// relative is none.
func Of(uid int, runtime string) []string {
	if uid == 0 {
		return []string{System}
	}
	dirs := []string{fmt.Sprintf("/tmp/vmnet-%d", uid)}
	if filepath.IsAbs(runtime) {
		dirs = append([]string{filepath.Join(runtime, "vmnet")}, dirs...)
	}
	return dirs
}

// Make makes the first of the folders that can be made, or takes one that is the user's alone. Through root's others may pass,
// to folders in it that are theirs.
func Make(dirs []string, uid int) (string, error) {
	var errs []error
	mode := fs.FileMode(0o700)
	if uid == 0 {
		mode = 0o711
	}
	for _, dir := range dirs {
		err := Mkdir(dir, mode)
		if err == nil || errors.Is(err, fs.ErrExist) {
			err = OwnedAlone(dir, uid)
		}
		if err == nil {
			return dir, nil
		}
		errs = append(errs, err)
	}
	return "", errors.Join(errs...)
}

// Mkdir makes a folder with that mode, whatever the umask is.
func Mkdir(dir string, mode fs.FileMode) error {
	if err := os.Mkdir(dir, mode); err != nil {
		return err
	}
	return os.Chmod(dir, mode)
}

// OwnedAlone is nil for a folder, not a link to one, that the user owns and nobody else can write to.
func OwnedAlone(dir string, uid int) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() || int(st.Uid) != uid || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s is no folder that you own and others cannot write to", dir)
	}
	return nil
}
