// Package rundir knows where a user's sockets are: in a directory that nobody else can write to, for whoever can could
// listen in the place of the program that the user means.
package rundir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

// System is root's.
const System = "/run/vmnet"

// Shared are the directories in which everybody may make one, as a user without one of his own does.
var Shared = []string{"/tmp", "/var/tmp", "/dev/shm"}

// Of returns the directories that a user's sockets may be in, best first. runtime is the user's $XDG_RUNTIME_DIR; empty or
// relative is none. Anybody can make a directory of a user's name in the shared ones, so there are several, and Own
// chooses.
func Of(uid int, runtime string) []string {
	if uid == 0 {
		return []string{System}
	}
	var dirs []string
	if filepath.IsAbs(runtime) {
		dirs = append(dirs, filepath.Join(runtime, "vmnet"))
	}
	for _, dir := range Shared {
		dirs = append(dirs, filepath.Join(dir, fmt.Sprintf("vmnet-%d", uid)))
	}
	// That of a login session (pam_systemd(8)) nobody else can make.
	login := fmt.Sprintf("/run/user/%d/vmnet", uid)
	if !slices.Contains(dirs, login) {
		dirs = slices.Insert(dirs, len(dirs)-len(Shared)+1, login)
	}
	return dirs
}

// Own leaves of directories those that are there and the user's alone, in which nobody else can have put anything.
func Own(dirs []string, uid int) []string {
	return slices.DeleteFunc(slices.Clone(dirs), func(dir string) bool { return OwnedAlone(dir, uid) != nil })
}

// Make makes the first of the directories that can be made, or takes one that is the user's alone. Through root's others may
// pass, to directories in it that are theirs. An error names each of them and what to do.
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
		if !errors.Is(err, fs.ErrNotExist) { // most users have no login session's
			errs = append(errs, err)
		}
	}
	if uid == 0 {
		return "", errors.Join(errs...)
	}
	return "", fmt.Errorf("%w (set XDG_RUNTIME_DIR to a directory that is yours alone)", errors.Join(errs...))
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
		return fmt.Errorf("%s is not a directory that you own and others cannot write to", dir)
	}
	return nil
}
