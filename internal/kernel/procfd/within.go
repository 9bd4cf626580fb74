package procfd

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks is how many symbolic links a path may lead over: MAXSYMLINKS in Linux's
// include/linux/namei.h.
const maxLinks = 40

// ReferIn opens a path from the directory dirfd without an effect on the file (O_PATH), as
// openat2(2) does. resolve has flags of that: RESOLVE_IN_ROOT or none, RESOLVE_NO_SYMLINKS or
// RESOLVE_NO_MAGICLINKS. The caller closes fd.
//
// Where openat2 is missing, ReferIn follows the path itself. RestrictSUIDSGID= and DynamicUser= of
// systemd.exec(5) take it from a service, as some containers do: a filter of system calls cannot
// read its arguments. All links of procfs are refused then.
func ReferIn(dirfd int, path string, resolve uint64) (fd int, err error) {
	fd, err = unix.Openat2(dirfd, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: resolve})
	if errors.Is(err, unix.ENOSYS) {
		return follow(dirfd, path, resolve)
	}
	return fd, err
}

// walk is a path that is followed name by name. If somebody moves a directory meanwhile, the way
// back stays the one that was taken, since dirs has it.
type walk struct {
	dirs   []int // from the one where it began
	inRoot bool  // that one is the root
	links  int
}

func follow(dirfd int, path string, resolve uint64) (fd int, err error) {
	w := &walk{inRoot: resolve&unix.RESOLVE_IN_ROOT != 0}
	defer w.leave(0)
	start, err := unix.Openat(dirfd, ".", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	w.dirs = []int{start}
	if path == "" {
		return -1, unix.ENOENT
	}
	names, err := w.from(path)
	if err != nil {
		return -1, err
	}
	for len(names) > 0 {
		name := names[0]
		names = names[1:]
		target, err := w.step(name, resolve)
		if err != nil {
			return -1, err
		}
		if target != "" {
			more, err := w.from(target)
			if err != nil {
				return -1, err
			}
			names = append(more, names...)
		}
	}
	last := len(w.dirs) - 1
	fd, w.dirs = w.dirs[last], w.dirs[:last]
	return fd, nil
}

// leave closes what is after the first n of dirs.
func (w *walk) leave(n int) {
	for _, fd := range w.dirs[n:] {
		_ = unix.Close(fd)
	}
	w.dirs = w.dirs[:n]
}

// from returns the names of a path, which begins at the root if it is absolute.
func (w *walk) from(path string) ([]string, error) {
	if strings.HasPrefix(path, "/") {
		w.leave(1)
		if !w.inRoot {
			root, err := unix.Open("/", unix.O_PATH|unix.O_CLOEXEC, 0)
			if err != nil {
				return nil, err
			}
			w.leave(0)
			w.dirs = append(w.dirs, root)
		}
	}
	return strings.Split(path, "/"), nil
}

// step follows one name. If it is a link, step returns where that leads.
func (w *walk) step(name string, resolve uint64) (target string, err error) {
	at := w.dirs[len(w.dirs)-1]
	up := name == ".."
	back := up && len(w.dirs) > 1
	if name == "" || back || up && w.inRoot {
		name = "." // which only a directory has
	}
	fd, err := unix.Openat(at, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return "", err
	}
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		defer unix.Close(fd) //nolint:errcheck // it was only read
		return w.link(fd, resolve)
	case back:
		_ = unix.Close(fd)
		w.leave(len(w.dirs) - 1)
	case name == ".":
		_ = unix.Close(fd)
	case up:
		_ = unix.Close(at)
		w.dirs = []int{fd}
	default:
		w.dirs = append(w.dirs, fd)
	}
	return "", nil
}

// link reads a link, if it may be followed.
func (w *walk) link(fd int, resolve uint64) (target string, err error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return "", err
	}
	w.links++
	if w.links > maxLinks || resolve&unix.RESOLVE_NO_SYMLINKS != 0 || fs.Type == unix.PROC_SUPER_MAGIC {
		return "", unix.ELOOP
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", buf)
	return string(buf[:max(n, 0)]), err
}
