// Package netns opens network namespaces and runs code in them. A namespace is a value that is
// passed to functions: none of them changes the namespace of the caller's thread.
package netns

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"vmnet/internal/kernel/procfd"
)

// RunDir is where ip-netns(8) binds named namespaces.
const RunDir = "/var/run/netns"

// NS is an open network namespace. Close it.
type NS struct {
	handle vnetns.NsHandle
	label  string
}

// Current opens the calling thread's network namespace.
func Current() (*NS, error) {
	h, err := vnetns.Get()
	if err != nil {
		return nil, fmt.Errorf("open the current netns: %w", err)
	}
	return &NS{h, ""}, nil
}

// Open opens a network namespace by its name in ip-netns(8), or by a path, which contains a slash:
// /proc/123/ns/net or /var/run/netns/blue. The empty name stands for the current one.
func Open(nameOrPath string) (*NS, error) {
	if nameOrPath == "" {
		return Current()
	}
	path := nameOrPath
	if !strings.Contains(path, "/") {
		if path == "." || path == ".." {
			return nil, fmt.Errorf("netns %q: not a name", nameOrPath)
		}
		path = filepath.Join(RunDir, path)
	}
	h, err := open(path)
	if err != nil {
		return nil, fmt.Errorf("open netns %q: %w (ip netns list names them; a path must contain a slash)",
			nameOrPath, err)
	}
	if kind, err := unix.IoctlRetInt(int(h), unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		h.Close()
		return nil, fmt.Errorf("open netns %q: %s is not a network namespace", nameOrPath, path)
	}
	return &NS{h, nameOrPath}, nil
}

// open opens the file of a namespace, and no other file, even if the path is replaced in the
// meantime. All such files are on the kernel's only nsfs, which open recognizes by its device
// number. To look for NSFS_MAGIC, fstatfs(2) would wait for the server of a FUSE file.
func open(path string) (vnetns.NsHandle, error) {
	r, err := procfd.Refer(path)
	if err != nil {
		return vnetns.None(), err
	}
	defer r.Close()
	own, err := procfd.Refer("/proc/thread-self/ns/net")
	if err != nil {
		return vnetns.None(), err
	}
	defer own.Close()
	if r.Dev != own.Dev {
		return vnetns.None(), fmt.Errorf("%s is not a network namespace", path)
	}
	fd, err := r.Open(unix.O_RDONLY)
	return vnetns.NsHandle(fd), err
}

// OpenHeld opens the namespace of which a process has an fd open.
func OpenHeld(f procfd.File) (*NS, error) {
	ns, err := Open(f.Path())
	if err != nil {
		return nil, err
	}
	ns.label = "unnamed"
	return ns, nil
}

// InodeOf returns the inode of the namespace that a file of a process is. ok is false for any other
// file.
func InodeOf(f procfd.File) (inode uint64, ok bool) { return procfd.NetnsInode(f.Target) }

// New makes an unnamed network namespace. It exists while an fd of it, a socket in it or a process
// in it does. New needs CAP_SYS_ADMIN.
func New() (*NS, error) {
	var ns *NS
	err := onOwnThread(func() error {
		h, err := vnetns.New()
		if err == nil {
			ns = &NS{h, "unnamed"}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make a netns: %w", err)
	}
	return ns, nil
}

// Close closes the namespace's fd.
func (ns *NS) Close() error { return ns.handle.Close() }

// Handle returns the open fd, for netlink handles. ns keeps ownership.
func (ns *NS) Handle() vnetns.NsHandle { return ns.handle }

// File returns a copy of the open fd, which the caller owns.
func (ns *NS) File() (*os.File, error) {
	fd, err := unix.FcntlInt(uintptr(ns.handle), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("copy the netns fd: %w", err)
	}
	return os.NewFile(uintptr(fd), "netns "+ns.label), nil
}

// String returns the name or path by which the namespace was opened, "unnamed" if it has neither,
// or "" for the current one.
func (ns *NS) String() string { return ns.label }

// Path returns a path of the namespace. While ns is open, this process and its children can use it.
func (ns *NS) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(ns.handle)) }

// Inode returns the inode of the namespace, which no other existing namespace has.
func (ns *NS) Inode() (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(ns.handle), &st); err != nil {
		return 0, fmt.Errorf("stat netns: %w", err)
	}
	return st.Ino, nil
}

// Owner returns the inode of the user namespace that owns ns: a process with capabilities there has
// them over ns. It fails unless that is the caller's user namespace or a descendant of it
// (NS_GET_USERNS in ioctl_nsfs(2)).
func (ns *NS) Owner() (inode uint64, err error) {
	fd, err := unix.IoctlRetInt(int(ns.handle), unix.NS_GET_USERNS)
	if err != nil {
		return 0, fmt.Errorf("ask for the user namespace of netns %s: %w", ns, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, fmt.Errorf("stat user namespace: %w", err)
	}
	return st.Ino, nil
}

// OwnUser returns the inode of this process's user namespace, to compare with Owner's.
func OwnUser() (inode uint64, err error) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/user", &st); err != nil {
		return 0, fmt.Errorf("stat the own user namespace: %w", err)
	}
	return st.Ino, nil
}

// IsCurrent reports whether ns was opened as the current namespace. A nil *NS means that one too,
// but only IsCurrent and Do accept it.
func (ns *NS) IsCurrent() bool { return ns == nil || ns.label == "" }

// Do calls f on a thread that is in ns. Goroutines that f starts may run in another namespace. If
// ns is the current namespace, Do only calls f.
func (ns *NS) Do(f func() error) error {
	if ns.IsCurrent() {
		return f()
	}
	return onOwnThread(func() error {
		if err := vnetns.Set(ns.handle); err != nil {
			return fmt.Errorf("enter netns %s: %w (needs CAP_SYS_ADMIN)", ns, err)
		}
		return f()
	})
}

// onOwnThread calls f on a thread that ends afterwards. The Go runtime must not reuse a thread
// whose namespace was changed.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked, so the thread ends with the goroutine
		done <- f()
	}()
	return <-done
}

// Others calls f for each other network namespace that has a name (ip-netns(8)) or a process in it,
// and that the caller may open. It stops at the first error of f.
func (ns *NS) Others(f func(*NS) error) error {
	own, err := ns.Inode()
	if err != nil {
		return err
	}
	seen := map[uint64]bool{own: true}
	for _, path := range paths() {
		other, err := Open(path)
		if err != nil {
			continue // it no longer exists, or the caller may not open it
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

// paths returns the paths of the named namespaces, and of those of all processes.
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
