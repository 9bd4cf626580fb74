package leaktest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ownTemp mounts a tmpfs over tempDir, in which setuid programs and devices work. It keeps visible,
// and returns, the entries of tempDir that hold the program, the working directory or a path from
// the environment.
func ownTemp(self string) (kept []string, err error) {
	dir, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	var fds []int
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}()
	for _, path := range entriesOf(tempDir, append(os.Environ(), self, dir)) {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("open %s: %w", path, err)
		}
		kept, fds = append(kept, path), append(fds, fd)
	}
	if err := unix.Mount("tmpfs", tempDir, "tmpfs", 0, "mode=1777"); err != nil {
		return nil, fmt.Errorf("mount %s: %w", tempDir, err)
	}
	for i, path := range kept {
		if err := bind(fds[i], path); err != nil {
			return nil, fmt.Errorf("keep %s: %w", path, err)
		}
	}
	return kept, nil
}

// entriesOf returns the entries of dir that the paths in words name or lie in. A word is a path, a
// list of paths, or a variable with such a value.
func entriesOf(dir string, words []string) []string {
	var found []string
	for _, word := range words {
		for path := range strings.FieldsFuncSeq(word, func(r rune) bool { return strings.ContainsRune("=:, ", r) }) {
			rest, in := strings.CutPrefix(filepath.Clean(path), dir+"/")
			if !in {
				continue
			}
			name, _, _ := strings.Cut(rest, "/")
			found = append(found, filepath.Join(dir, name))
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// bind bind-mounts the file or directory behind fd at path.
func bind(fd int, path string) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	var err error
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		err = os.Mkdir(path, 0o755)
	} else {
		err = os.WriteFile(path, nil, 0o600)
	}
	if err != nil {
		return err
	}
	return unix.Mount(fmt.Sprintf("/proc/self/fd/%d", fd), path, "", unix.MS_BIND|unix.MS_REC, "")
}
