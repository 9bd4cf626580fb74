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

// rootsAlone makes sure that a program is root's, and that nobody else can write it or lead the path elsewhere: to another
// of root's programs, which would do what its caller says.
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
			return fmt.Errorf("%w: others than root may write %s (chown root, chmod go-w)", os.ErrPermission, file)
		}
	}
	if !last.Mode().IsRegular() {
		return fmt.Errorf("%w: it is no program", os.ErrPermission)
	}
	return nil
}

// RootsOwn tells by what Lstat says whether only root may write a file, or in a folder change what is root's. A link's own
// mode means nothing.
func RootsOwn(info os.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	link, sticky := info.Mode()&os.ModeSymlink != 0, info.IsDir() && info.Mode()&os.ModeSticky != 0
	return ok && st.Uid == 0 && (link || sticky || info.Mode().Perm()&0o022 == 0)
}

const maxLinks = 40 // that the kernel follows in one path (MAXSYMLINKS of include/linux/namei.h)

// Way lists what decides which file an absolute path leads to: each folder and symbolic link on the way, from the root
// on, and the file at last.
func Way(path string) (way []string, err error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("%s: its path is not absolute", path)
	}
	at, rest, links := "/", path, 0 // at has no link before its last name
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
		case !errors.Is(err, unix.EINVAL): // which is no link
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
