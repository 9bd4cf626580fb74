package procfd

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// NetnsOfAll calls visit with the PID and the inode of the network namespace of each process that
// the caller may inspect (PTRACE_MODE_READ_FSCREDS in ptrace(2)), in ascending order of PIDs. It
// keeps no list, so that any number of processes takes time but no memory. It stops when ctx ends.
func NetnsOfAll(ctx context.Context, visit func(pid int, inode uint64)) error {
	proc, err := unix.Open("/proc", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("list processes: open /proc: %w", err)
	}
	defer unix.Close(proc)
	l := &look{}
	var names []string
	for {
		n, err := unix.ReadDirent(proc, l.names[:])
		if err != nil {
			return fmt.Errorf("list processes: %w", err)
		}
		if n <= 0 {
			return nil
		}
		_, _, names = unix.ParseDirent(l.names[:n], -1, names[:0])
		for _, name := range names {
			pid, err := strconv.Atoi(name)
			if err != nil {
				continue
			}
			n, err := unix.Readlinkat(proc, name+"/ns/net", l.target[:])
			if err != nil {
				continue // it has ended, or the caller may not inspect it
			}
			if inode, ok := NetnsInode(string(l.target[:n])); ok {
				visit(pid, inode)
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// NetnsInode parses the target of a link in /proc to a network namespace, "net:[4026531840]"
// (namespaces(7)).
func NetnsInode(target string) (inode uint64, ok bool) {
	text, ok := strings.CutPrefix(target, "net:[")
	if !ok {
		return 0, false
	}
	text, ok = strings.CutSuffix(text, "]")
	inode, err := strconv.ParseUint(text, 10, 64)
	return inode, ok && err == nil
}
