package tun

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vmnet/internal/netns"
)

// A Holder is a process with open queue fds of a tap.
type Holder struct {
	PID int
	FDs []int // its fd numbers, ascending
}

// Holders reads from /proc which processes hold queues of the taps in ns, by
// interface name. It sees the processes that the caller may inspect: its own
// user's, or all with CAP_SYS_PTRACE. Processes that end meanwhile are left out.
func Holders(ns *netns.NS) (map[string][]Holder, error) {
	inode, err := ns.Inode()
	if err != nil {
		return nil, err
	}
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	found := map[string][]Holder{}
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		for name, fds := range queuesOf(pid, inode) {
			found[name] = append(found[name], Holder{pid, fds})
		}
	}
	return found, nil
}

// queuesOf returns the queue fds of one process by interface name.
func queuesOf(pid int, netnsInode uint64) map[string][]int {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil // gone, or not ours to see
	}
	var found map[string][]int
	for _, e := range entries {
		// The path differs in containers, the name of the node does not.
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil || !strings.HasPrefix(target, "/") || !strings.Contains(filepath.Base(target), "tun") {
			continue
		}
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		name := interfaceOf(pid, fd)
		if name == "" || !inNetns(pid, fd, netnsInode) {
			continue
		}
		if found == nil {
			found = map[string][]int{}
		}
		found[name] = append(found[name], fd)
	}
	for _, fds := range found {
		slices.Sort(fds)
	}
	return found
}

// interfaceOf reads the "iff:" line that the tun driver adds to fdinfo. It is
// empty for other files, and for a tap that was deleted under its holder.
func interfaceOf(pid, fd int) string {
	info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", pid, fd))
	if err != nil {
		return ""
	}
	for line := range bytes.Lines(info) {
		if name, ok := bytes.CutPrefix(line, []byte("iff:")); ok {
			return string(bytes.TrimSpace(name))
		}
	}
	return ""
}

// inNetns tells whether the tap behind the fd is in that netns. fdinfo does not
// say, so a copy of the fd is asked (TUNGETDEVNETNS). Where the kernel does
// not let us, the answer is yes: whoever asks must then treat the tap as held.
func inNetns(pid, fd int, inode uint64) bool {
	dev, err := devNetns(pid, fd)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EBADF) || errors.Is(err, fs.ErrNotExist) {
		return false // ended, or closed meanwhile
	}
	return err != nil || dev == inode
}

func devNetns(pid, fd int) (inode uint64, err error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(pidfd)
	dup, err := unix.PidfdGetfd(pidfd, fd, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(dup)
	ns, err := unix.IoctlRetInt(dup, unix.TUNGETDEVNETNS)
	if err != nil {
		return 0, err
	}
	defer unix.Close(ns)
	var st unix.Stat_t
	if err := unix.Fstat(ns, &st); err != nil {
		return 0, err
	}
	return st.Ino, nil
}
