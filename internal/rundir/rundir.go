// Package rundir knows where a user's sockets are: in a directory that no other user can write to.
// A user who can write to it could listen in place of the intended program.
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

// System is root's directory.
const System = "/run/vmnet"

// Shared are the directories in which every user may make one; a user without a private one does
// so.
var Shared = []string{"/tmp", "/var/tmp", "/dev/shm"}

// Of returns the directories that a user's sockets may be in, best first. runtime is the user's
// $XDG_RUNTIME_DIR; empty and relative values are ignored. Any user can make a directory of another
// user's name in the shared ones, so there are several candidates, and Own chooses.
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
	// Only the login manager can make a login session's directory (pam_systemd(8)).
	login := fmt.Sprintf("/run/user/%d/vmnet", uid)
	if !slices.Contains(dirs, login) {
		dirs = slices.Insert(dirs, len(dirs)-len(Shared)+1, login)
	}
	return dirs
}

// Own keeps the directories that exist and belong to the user alone, so that no other user can have
// put anything into them.
func Own(dirs []string, uid int) []string {
	return slices.DeleteFunc(slices.Clone(dirs), func(dir string) bool { return OwnedAlone(dir, uid) != nil })
}

// OwnOrBest returns the directories that Own keeps, or the best one, which may not exist yet.
func OwnOrBest(dirs []string, uid int) []string {
	if own := Own(dirs, uid); len(own) > 0 {
		return own
	}
	return dirs[:1]
}

// Make makes the first of the directories that can be made, or takes one that belongs to the user
// alone. Root's may be traversed by others, to directories in it that are theirs. An error names
// each directory and the cure.
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
		if !errors.Is(err, fs.ErrNotExist) { // most users have no login session's directory
			errs = append(errs, err)
		}
	}
	if uid == 0 {
		return "", errors.Join(errs...)
	}
	return "", fmt.Errorf("%w (set XDG_RUNTIME_DIR to a directory that is yours alone)", errors.Join(errs...))
}

// Mkdir makes a directory with that mode, whatever the umask is.
func Mkdir(dir string, mode fs.FileMode) error {
	if err := os.Mkdir(dir, mode); err != nil {
		return err
	}
	return os.Chmod(dir, mode)
}

// OwnedAlone returns nil for a directory, not a symbolic link to one, that the user owns and no
// other user can write to.
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
