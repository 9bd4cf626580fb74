// Package procfd lists what processes have open, as /proc reports it (proc(5)), and looks at it
// without opening it.
package procfd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// File is an open file of a process.
type File struct {
	PID    int
	FD     int
	Target string // of the link in /proc/PID/fd: a path, "net:[4026531840]", "socket:[1]"
	UID    int    // of the process by all of its ids, where Scan.All has visited it; else -1
}

// Path leads to the file itself, also where its own path is gone. By the time that it is used the
// process may have another file there: see Refer.
func (f File) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", f.PID, f.FD) }

// Still reports whether the process has the same file open as when it was visited. A
// process that only looked at somebody else's has closed its copy by then.
func (f File) Still() bool {
	now, err := os.Readlink(f.Path())
	return err == nil && now == f.Target
}

// PIDs lists the processes that /proc shows.
func PIDs() (pids []int, err error) {
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	for _, p := range procs {
		if pid, err := strconv.Atoi(p.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// maxOf bounds how many files of one process Of visits; no VMM has nearly as many.
const maxOf = 1 << 16

// Of visits the open files of one process; none where it has ended or may not be looked into.
func Of(pid int, visit func(File)) {
	First(pid, maxOf, visit)
}

// First is Of for no more than the n lowest of the process's fds.
func First(pid, n int, visit func(File)) {
	l := look{limit: n}
	_ = l.process(context.Background(), pid, func(fd int, target []byte) {
		visit(File{PID: pid, FD: fd, Target: string(target), UID: nobodys})
	})
}

// look reads the open files of processes with buffers of its own, so that a process with very many
// costs time and no memory.
type look struct {
	limit  int // files of one process
	names  [32 << 10]byte
	target [unix.PathMax]byte
}

// errLimit ends a look at a process that has more files than the limit.
var errLimit = errors.New("it has more files than are looked at")

// process visits the open files of one process. The target is valid until visit returns.
func (l *look) process(ctx context.Context, pid int, visit func(fd int, target []byte)) error {
	dir, err := unix.Open(fmt.Sprintf("/proc/%d/fd", pid), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil // it has ended, or may not be looked into
	}
	defer unix.Close(dir)
	var names []string
	for seen := 0; ; {
		n, err := unix.ReadDirent(dir, l.names[:])
		if err != nil || n <= 0 {
			return nil
		}
		_, _, names = unix.ParseDirent(l.names[:n], -1, names[:0])
		for _, name := range names {
			fd, err := strconv.Atoi(name)
			if err != nil {
				continue
			}
			if seen == l.limit {
				return errLimit
			}
			seen++
			if n, err := unix.Readlinkat(dir, name, l.target[:]); err == nil {
				visit(fd, l.target[:n])
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}
