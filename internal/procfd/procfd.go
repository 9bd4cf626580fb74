// Package procfd lists what processes have open, as /proc tells (proc(5)).
package procfd

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// File is an open file of a process.
type File struct {
	PID    int
	FD     int
	Target string // of the link in /proc/PID/fd: a path, "net:[4026531840]", "socket:[1]"
}

// Path opens, or is asked for, the file itself, also where its path is gone.
func (f File) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", f.PID, f.FD) }

// All visits the open files of all processes that the caller may inspect: its own
// user's, or all with CAP_SYS_PTRACE. Processes that end meanwhile are left out.
func All(visit func(File)) error {
	pids, err := PIDs()
	for _, pid := range pids {
		Of(pid, visit)
	}
	return err
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

// RealUID is the user who runs a process (proc_pid_status(5)). That /proc/PID belongs to somebody says less:
// it belongs to root where the process may not be looked into.
func RealUID(pid int) (int, error) {
	path := fmt.Sprintf("/proc/%d/status", pid)
	text, err := os.ReadFile(path)
	if err != nil {
		return -1, err
	}
	for line := range strings.Lines(string(text)) {
		rest, ok := strings.CutPrefix(line, "Uid:\t")
		if !ok {
			continue
		}
		real, _, _ := strings.Cut(rest, "\t")
		return strconv.Atoi(real)
	}
	return -1, fmt.Errorf("%s tells no uid", path)
}

// Of visits the open files of one process; none where it has ended or may not be looked into.
func Of(pid int, visit func(File)) {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		f := File{PID: pid, FD: fd}
		if f.Target, err = os.Readlink(f.Path()); err == nil {
			visit(f)
		}
	}
}

// Still tells whether the process has the same file open as when it was visited. A
// process that only looked at somebody else's has let go of its copy by then.
func (f File) Still() bool {
	now, err := os.Readlink(f.Path())
	return err == nil && now == f.Target
}
