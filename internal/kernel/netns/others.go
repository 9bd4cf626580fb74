package netns

import (
	"os"
	"path/filepath"
	"strconv"
)

// Others calls f with each other network namespace that has a name (ip-netns(8)) or a process in
// it, as far as the caller may look. It ends with f's first error.
func (ns *NS) Others(f func(*NS) error) error {
	own, err := ns.Inode()
	if err != nil {
		return err
	}
	seen := map[uint64]bool{own: true}
	for _, path := range paths() {
		other, err := Open(path)
		if err != nil {
			continue // it has gone, or may not be looked at
		}
		inode, err := other.Inode()
		if err == nil && !seen[inode] {
			seen[inode] = true
			err = f(other)
		}
		if closeErr := other.Close(); err == nil {
			err = closeErr
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// paths are those of all processes' namespaces, and of the named ones.
func paths() []string {
	named, _ := filepath.Glob(filepath.Join(RunDir, "*"))
	processes, _ := os.ReadDir("/proc")
	for _, p := range processes {
		if _, err := strconv.Atoi(p.Name()); err == nil {
			named = append(named, filepath.Join("/proc", p.Name(), "ns", "net"))
		}
	}
	return named
}
