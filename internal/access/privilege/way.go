package privilege

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// rootsAlone checks that a program belongs to root, and that no other user can write it or redirect
// the path: to another of root's programs, which would do what its caller says.
func rootsAlone(path string) error {
	way, err := Way(path)
	if err != nil {
		return err
	}
	var last os.FileInfo
	for _, file := range way {
		if last, err = os.Lstat(file); err != nil {
			return err
		}
		if !RootsOwn(last) {
			return fmt.Errorf("%w: users other than root may write %s (chown root, chmod go-w)", os.ErrPermission, file)
		}
	}
	if !last.Mode().IsRegular() {
		return fmt.Errorf("%w: it is not a program", os.ErrPermission)
	}
	return nil
}

// RootsOwn reports whether only root may write a file, or change root's files in a directory. info
// is the result of Lstat. A link's own mode means nothing.
func RootsOwn(info os.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	link, sticky := info.Mode()&os.ModeSymlink != 0, info.IsDir() && info.Mode()&os.ModeSticky != 0
	return ok && st.Uid == 0 && (link || sticky || info.Mode().Perm()&0o022 == 0)
}

const maxLinks = 40 // the kernel's limit for one path (MAXSYMLINKS of include/linux/namei.h)

// Way lists the files that decide where an absolute path leads: each directory and symbolic link on
// the way, from the root on, and finally the file.
func Way(path string) (way []string, err error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("%s: the path is not absolute", path)
	}
	at, rest, links := "/", path, 0 // at contains no link before its last name
	for {
		way = append(way, at)
		target, err := os.Readlink(at)
		switch {
		case err == nil && links == maxLinks:
			return nil, &os.PathError{Op: "follow", Path: path, Err: unix.ELOOP}
		case err == nil:
			links++
			rest = target + "/" + rest
			if at = filepath.Dir(at); filepath.IsAbs(target) {
				at = "/"
			}
		case !errors.Is(err, unix.EINVAL): // not a link
			return nil, err
		}
		if rest = strings.TrimLeft(rest, "/"); rest == "" {
			return way, nil
		}
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		at = filepath.Join(at, name)
	}
}
