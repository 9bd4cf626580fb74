package control

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"vmnet/bridge"
	"vmnet/internal/rundir"
)

// socketName is the socket's in its switch's folder, which is in one of folders.
const socketName = "socket"

// maxPath is what fits into sun_path of struct sockaddr_un (unix(7)), with its zero.
const maxPath = 107

// folders are where switches of a name are looked for by this user, best first: its own, and root's, in which there may be
// switches that run as this user (see Prepare). The first is there even if nothing is; of the others no
// directory counts that somebody else has made, or could have filled.
func folders() []string {
	uid := os.Geteuid()
	own := rundir.Of(uid, os.Getenv("XDG_RUNTIME_DIR"))
	dirs := rundir.Own(own, uid)
	if len(dirs) == 0 {
		dirs = own[:1]
	}
	for i, dir := range dirs {
		dirs[i] = filepath.Join(dir, "switch")
	}
	if uid != 0 {
		dirs = append(dirs, filepath.Join(rundir.System, "switch"))
	}
	return dirs
}

// Path is the path of a switch's socket, whether that is there or not. A name with a slash is that path itself.
func Path(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, checkPath(name)
	}
	if err := checkName(name); err != nil {
		return "", err
	}
	dirs := folders()
	for _, dir := range dirs {
		path := filepath.Join(dir, name, socketName)
		if _, err := os.Lstat(path); err == nil {
			return path, checkPath(path)
		}
	}
	path := filepath.Join(dirs[0], name, socketName)
	return path, checkPath(path)
}

func checkPath(path string) error {
	if len(path) > maxPath {
		return fmt.Errorf("%w switch: a socket's path has at most %d bytes, %s has %d", bridge.ErrInvalid, maxPath, path, len(path))
	}
	return nil
}

// checkName allows what is a file's name, and needs no quotes in a shell or unit.
func checkName(name string) error {
	odd := func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-", r))
	}
	if name == "" || len(name) > 64 || strings.ContainsFunc(name, odd) || strings.ContainsRune(".-", rune(name[0])) {
		return fmt.Errorf("%w switch name %q: want 1 to 64 letters, digits, and - _ . behind the first, or a socket's path with a slash", bridge.ErrInvalid, name)
	}
	return nil
}

// maxOfUser is how many switches of one user Running tells of.
const maxOfUser = 64

// Running lists the sockets of switches that this user could reach, its own first: root those of all users, in the folders that are
// known. Whether somebody listens there is for Dial to find out. Who listens on another user's may answer anything, or nothing. What
// lies in a folder that others than its user can write to is left out, and so are links, what is not called as a switch
// is, and those of one user beyond 64: nobody hides the others' by many of his own.
func Running() ([]string, error) {
	dirs := folders()
	if os.Geteuid() == 0 {
		dirs = append(dirs, "/run/user/*/vmnet/switch")
		for _, dir := range rundir.Shared {
			dirs = append(dirs, filepath.Join(dir, "vmnet-*/switch"))
		}
	}
	var paths []string
	for _, dir := range dirs {
		found, err := runningIn(dir)
		if err != nil {
			return nil, err
		}
		paths = append(paths, found...)
	}
	return paths, nil
}

// runningIn is Running for folders of one user each, which a pattern tells (filepath.Match).
func runningIn(pattern string) ([]string, error) {
	found, err := filepath.Glob(filepath.Join(pattern, "*", socketName))
	of := map[string]int{}
	return slices.DeleteFunc(found, func(path string) bool {
		own := filepath.Dir(path)
		all := filepath.Dir(own)
		if of[all] == maxOfUser || checkName(filepath.Base(own)) != nil || !isOurs(path) {
			return true
		}
		of[all]++
		return false
	}), err
}

// NameOf is by what name this user reaches the switch of a socket that Running has told of: the path, where it is not one of
// his own or root's.
func NameOf(path string) string {
	name := filepath.Base(filepath.Dir(path))
	if own, err := Path(name); err == nil && own == path {
		return name
	}
	return path
}

// isOurs tells whether a path can be that of a switch's socket: nobody but one user, or root, can have put it there.
func isOurs(path string) bool {
	own := filepath.Dir(path)
	all := filepath.Dir(own)
	user, ok := ownerOf(filepath.Dir(all))
	as, asOK := ownerOf(own) // root's may be in part another user's, see Prepare
	if !ok || !asOK || user != 0 && as != user {
		return false
	}
	info, err := os.Lstat(path)
	return err == nil && info.Mode().Type() == fs.ModeSocket &&
		rundir.OwnedAlone(filepath.Dir(all), user) == nil && rundir.OwnedAlone(all, user) == nil && rundir.OwnedAlone(own, as) == nil
}

// FolderOwner is the user in whose folder of switches the socket of that path is; ok is false where there is no such folder.
func FolderOwner(path string) (uid int, ok bool) { return ownerOf(filepath.Dir(filepath.Dir(path))) }

func ownerOf(path string) (uid int, ok bool) {
	info, err := os.Lstat(path)
	if err != nil {
		return 0, false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return int(st.Uid), true
}
