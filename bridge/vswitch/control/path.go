package control

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"vmnet/bridge/brport"
	"vmnet/internal/rundir"
)

// SocketName is the name of the socket in its switch's directory, which is in one of switchDirs.
const SocketName = "socket"

// maxPath is the longest path in bytes that fits into sun_path of struct sockaddr_un (unix(7))
// before the final zero byte.
const maxPath = 107

// switchDirs returns the directories in which this user's switches are looked for by name, the
// preferred one first: its own, and root's, which may have switches that run as this user (see
// Prepare). The first one may not exist. The others do not include directories that another user
// has made or can write to.
func switchDirs() []string {
	uid := os.Geteuid()
	dirs := rundir.OwnOrBest(rundir.Of(uid, os.Getenv("XDG_RUNTIME_DIR")), uid)
	for i, dir := range dirs {
		dirs[i] = filepath.Join(dir, "switch")
	}
	if uid != 0 {
		dirs = append(dirs, filepath.Join(rundir.System, "switch"))
	}
	return dirs
}

// Path returns a switch's socket path, which need not exist. A name with a slash is the path
// itself.
func Path(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, CheckPath(name)
	}
	if err := CheckName(name); err != nil {
		return "", err
	}
	dirs := switchDirs()
	for _, dir := range dirs {
		path := filepath.Join(dir, name, SocketName)
		if _, err := os.Lstat(path); err == nil {
			return path, CheckPath(path)
		}
	}
	path := filepath.Join(dirs[0], name, SocketName)
	return path, CheckPath(path)
}

// CheckPath returns an error if a socket's path is too long.
func CheckPath(path string) error {
	if len(path) > maxPath {
		return fmt.Errorf("%w switch: want a socket path of at most %d bytes: %s has %d",
			brport.ErrInvalid, maxPath, path, len(path))
	}
	return nil
}

// CheckName returns an error unless a text can be a switch's name: it accepts file names that need
// no quotes in a shell or unit.
func CheckName(name string) error {
	odd := func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-", r))
	}
	if name == "" || len(name) > 64 || strings.ContainsFunc(name, odd) || strings.ContainsRune(".-", rune(name[0])) {
		return fmt.Errorf("%w switch name %q: want 1 to 64 letters, digits, and - _ . after the first, "+
			"or a socket's path with a slash", brport.ErrInvalid, name)
	}
	return nil
}

// maxOfUser limits how many switches of one user Running lists.
const maxOfUser = 64

// Running lists the sockets of switches that this user could reach, its own first. For root it
// lists those of all users, in the known directories. Only Dial finds out whether a switch listens.
// Another user's socket may give any reply or none. Running skips sockets in directories that users
// other than their owner can write to, symbolic links, names that a switch cannot have, and more
// than 64 sockets of one user, so that a user cannot hide the switches of others.
func Running() ([]string, error) {
	dirs := switchDirs()
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

// runningIn is Running for the directories that match a pattern (filepath.Match), each of one user.
func runningIn(pattern string) ([]string, error) {
	found, err := filepath.Glob(filepath.Join(pattern, "*", SocketName))
	of := map[string]int{}
	return slices.DeleteFunc(found, func(path string) bool {
		own := filepath.Dir(path)
		all := filepath.Dir(own)
		if of[all] == maxOfUser || CheckName(filepath.Base(own)) != nil || !isSwitchSocket(path) {
			return true
		}
		of[all]++
		return false
	}), err
}

// NameOf returns the name by which this user reaches the switch of a socket that Running has
// listed. It is the path unless the socket is in this user's own or root's directory.
func NameOf(path string) string {
	name := filepath.Base(filepath.Dir(path))
	if own, err := Path(name); err == nil && own == path {
		return name
	}
	return path
}

// isSwitchSocket reports whether a switch's socket can have that path: only one user, or root, can
// have created it.
func isSwitchSocket(path string) bool {
	own := filepath.Dir(path)
	all := filepath.Dir(own)
	user, ok := ownerOf(filepath.Dir(all))
	as, asOK := ownerOf(own) // a subdirectory of root's may belong to another user, see Prepare
	if !ok || !asOK || user != 0 && as != user {
		return false
	}
	info, err := os.Lstat(path)
	return err == nil && info.Mode().Type() == fs.ModeSocket &&
		rundir.OwnedAlone(filepath.Dir(all), user) == nil && rundir.OwnedAlone(all, user) == nil &&
		rundir.OwnedAlone(own, as) == nil
}

// DirOwner returns the owner of the directory of switches that has the socket of that path. ok is
// false if there is no such directory.
func DirOwner(path string) (uid int, ok bool) { return ownerOf(filepath.Dir(filepath.Dir(path))) }

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
