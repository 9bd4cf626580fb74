// Package netns names network namespaces and runs code in them. A namespace is
// a value that is passed down; nothing here changes what the caller is in.
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

// Open opens a network namespace by the name that ip-netns(8) knows, or by a
// path, which holds a slash: /proc/123/ns/net, /var/run/netns/blue. The empty
// name is the current one.
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
		return nil, fmt.Errorf("open netns %q: %w (ip netns list names them; a path must hold a slash)",
			nameOrPath, err)
	}
	if kind, err := unix.IoctlRetInt(int(h), unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		h.Close()
		return nil, fmt.Errorf("open netns %q: %s is not a network namespace", nameOrPath, path)
	}
	return &NS{h, nameOrPath}, nil
}

// open opens a namespace's file, and nothing else whatever the path leads to by now. All such files
// are on the kernel's one nsfs, whose device number tells it without asking anybody: fstatfs(2) for
// its NSFS_MAGIC would wait for the server of a FUSE file.
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

// OpenHeld opens the namespace that a process has open as an fd.
func OpenHeld(f procfd.File) (*NS, error) {
	ns, err := Open(f.Path())
	if err != nil {
		return nil, err
	}
	ns.label = "unnamed"
	return ns, nil
}

// InodeOf tells which namespace a file of a process is; ok is false where it is none.
func InodeOf(f procfd.File) (inode uint64, ok bool) {
	text, ok := strings.CutPrefix(f.Target, "net:[")
	if !ok {
		return 0, false
	}
	inode, err := strconv.ParseUint(strings.TrimSuffix(text, "]"), 10, 64)
	return inode, err == nil
}

// New makes an unnamed network namespace, which lives while it is open
// or something in it is. It needs CAP_SYS_ADMIN.
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

// Handle is the open fd, for netlink handles; ns keeps it.
func (ns *NS) Handle() vnetns.NsHandle { return ns.handle }

// File is a copy of the open fd, which the caller owns.
func (ns *NS) File() (*os.File, error) {
	fd, err := unix.FcntlInt(uintptr(ns.handle), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("copy the netns fd: %w", err)
	}
	return os.NewFile(uintptr(fd), "netns "+ns.label), nil
}

// String is the name or path that the namespace was opened by; empty for the current one.
func (ns *NS) String() string { return ns.label }

// Path names the namespace for as long as ns is open, for this process and those it starts.
func (ns *NS) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(ns.handle)) }

// Inode identifies the namespace among all of this kernel's.
func (ns *NS) Inode() (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(ns.handle), &st); err != nil {
		return 0, fmt.Errorf("stat netns: %w", err)
	}
	return st.Ino, nil
}

// Owner identifies the user namespace that owns ns, whose privileged users may do anything in it.
// It is an error where that is not the caller's own or one beneath it (NS_GET_USERNS,
// ioctl_nsfs(2)).
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

// OwnUser identifies the user namespace that this process is in, as Owner does.
func OwnUser() (inode uint64, err error) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/user", &st); err != nil {
		return 0, fmt.Errorf("stat the own user namespace: %w", err)
	}
	return st.Ino, nil
}

// IsCurrent tells whether ns was opened as the one that this process is in. A nil NS is that too,
// for who asks no more of it than this and Do.
func (ns *NS) IsCurrent() bool { return ns == nil || ns.label == "" }

// Do runs f with its thread in ns. f must not start goroutines that rely on it.
// Where it is the namespace that the thread is in anyway, nothing is switched.
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

// onOwnThread runs f on a thread that ends with it: a thread whose namespace
// was changed is never given back to the Go runtime.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked, so the thread dies with the goroutine
		done <- f()
	}()
	return <-done
}
