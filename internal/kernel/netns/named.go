package netns

import (
	"os"
	"path/filepath"

	"vmnet/internal/kernel/procfd"
)

// dirs are where namespaces are bound: ip-netns(8), Neutron, CNI and rootful Podman use the first
// one, Docker the second. Only root can write to them.
var dirs = []string{RunDir, "/run/docker/netns"}

// Name is a path at which a namespace is bound.
type Name struct {
	Name  string // as Open takes it: a name of ip-netns(8), or a path
	Inode uint64
}

// Named lists the bound namespaces, at most most of them. It opens none, and leaves out what is no
// longer a namespace.
func Named(most int) (names []Name) {
	own, err := procfd.Refer("/proc/thread-self/ns/net")
	if err != nil {
		return nil
	}
	defer own.Close()
	for _, dir := range dirs {
		entries, _ := os.ReadDir(dir) // without the directory, none is bound there
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			r, err := procfd.Refer(path)
			if err != nil {
				continue
			}
			st := r.Stat
			r.Close()
			if st.Dev != own.Dev {
				continue
			}
			if len(names) == most {
				return names
			}
			name := path
			if dir == RunDir {
				name = e.Name()
			}
			names = append(names, Name{name, st.Ino})
		}
	}
	return names
}
