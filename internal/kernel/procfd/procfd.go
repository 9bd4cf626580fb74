// Package procfd lists the open files of processes, as /proc reports them (proc(5)), and inspects
// them without opening them.
package procfd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// File is an open file of a process.
type File struct {
	PID    int
	FD     int
	Target string // of the link in /proc/PID/fd: a path, "net:[4026531840]", "socket:[1]"
	UID    int    // of the process if all of its user ids are the same and Scan.All found the file; else -1
}

// Path returns a path of the file itself, which works even if the file was removed. When it is
// used, the process may have another file under that number: see Refer.
func (f File) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", f.PID, f.FD) }

// Still reports whether the process has a file with the same Target open under the same number. A
// process that only inspected a file of another one has closed its copy by then.
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

// maxOf bounds how many files of one process Of visits. No VMM has nearly as many.
const maxOf = 1 << 16

// Of calls visit for the open files of one process: for none if the process has ended or the caller
// may not inspect it.
func Of(pid int, visit func(File)) {
	First(pid, maxOf, visit)
}

// First is Of for at most the n lowest fds of the process.
func First(pid, n int, visit func(File)) {
	l := look{limit: n}
	_ = l.process(context.Background(), pid, func(fd int, target []byte) {
		visit(File{PID: pid, FD: fd, Target: string(target), UID: noUser})
	})
}

// look lists the open files of processes with buffers of its own, so that a process with very many
// files takes time but no memory.
type look struct {
	limit  int // files of one process
	names  [32 << 10]byte
	target [unix.PathMax]byte
}

// errLimit is returned for a process that has more files than the limit.
var errLimit = errors.New("it has more files than are inspected")

// process calls visit for the open files of one process. target is valid until visit returns.
func (l *look) process(ctx context.Context, pid int, visit func(fd int, target []byte)) error {
	dir, err := unix.Open(fmt.Sprintf("/proc/%d/fd", pid), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil // it has ended, or the caller may not inspect it
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

// RealUID returns the real uid of a process (proc_pid_status(5)). The owner of /proc/PID says less:
// it is root for a process that is not dumpable.
func RealUID(pid int) (int, error) {
	ids, err := UserIDs(pid)
	return ids[0], err
}

// noUser stands for the user of a process that has the ids of several, such as a set-user-ID
// program.
const noUser = -1

// one returns the user that all four ids name, or noUser.
func one(ids [4]int) int {
	for _, id := range ids {
		if id != ids[0] {
			return noUser
		}
	}
	return ids[0]
}

// UserIDs returns the real, effective, saved and file system uid of a process ("Uid:" in
// proc_pid_status(5)). With an error, the real one is -1.
func UserIDs(pid int) (ids [4]int, err error) {
	text, err := Read(pid, "status")
	if err != nil {
		return [4]int{noUser}, err
	}
	for line := range strings.Lines(string(text)) {
		rest, ok := strings.CutPrefix(line, "Uid:")
		if !ok {
			continue
		}
		fields := strings.Fields(rest)
		if len(fields) != len(ids) {
			break
		}
		for i, f := range fields {
			if ids[i], err = strconv.Atoi(f); err != nil {
				return [4]int{noUser}, fmt.Errorf("%s: %w", pathOf(pid, "status"), err)
			}
		}
		return ids, nil
	}
	return [4]int{noUser}, fmt.Errorf("%s does not have the four user ids", pathOf(pid, "status"))
}
