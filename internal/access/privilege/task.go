package privilege

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	taskDir    = "/proc/self/task"
	bufferSize = 1024    // on the stack: growing it for a bigger one takes as long as the rest
	maxStatus  = 1 << 20 // 65536 supplementary groups (NGROUPS_MAX) of ten digits, and some
)

// task holds the credentials of one thread, as in /proc/PID/task/TID/status (proc_pid_status(5)).
// Compare them with ==.
type task struct {
	uids, gids         [4]int // real, effective, saved, file system
	groups             string
	inh, prm, eff, amb uint64 // bit n is capability n
}

func same(id int) [4]int { return [4]int{id, id, id, id} }

func readTask(path string) (task, error) {
	status, err := read(path)
	if err != nil {
		return task{}, fmt.Errorf("read own credentials: %w", err)
	}
	t, err := parseTask(status)
	if err != nil {
		return task{}, fmt.Errorf("read own credentials: %s: %w", path, err)
	}
	return t, nil
}

// read is os.ReadFile for a file in /proc, in half the time: it runs once per thread, and a start
// should be fast.
func read(path string) (string, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var all []byte
	for buf := make([]byte, bufferSize); ; {
		n, err := unix.Read(fd, buf)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return "", &fs.PathError{Op: "read", Path: path, Err: err}
		case n == 0:
			return string(all), nil
		case len(all) > maxStatus:
			return "", &fs.PathError{Op: "read", Path: path, Err: unix.EFBIG}
		}
		all = append(all, buf[:n]...)
	}
}

// threads lists the ids of the process's threads.
func threads() ([]string, error) {
	ids, err := list(taskDir)
	if err != nil {
		return nil, fmt.Errorf("list own threads: %w", err)
	}
	return ids, nil
}

// list is os.ReadDir for a directory in /proc, as read is os.ReadFile: it returns names, unsorted.
func list(dir string) ([]string, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	var names []string
	for buf := make([]byte, bufferSize); ; {
		n, err := unix.ReadDirent(fd, buf)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, &fs.PathError{Op: "read", Path: dir, Err: err}
		case n == 0:
			return names, nil
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}

// parseTask requires every line that it knows, except CapAmb, which Linux has from 4.3 on.
func parseTask(status string) (task, error) {
	var t task
	ids := map[string]*[4]int{"Uid": &t.uids, "Gid": &t.gids}
	caps := map[string]*uint64{"CapInh": &t.inh, "CapPrm": &t.prm, "CapEff": &t.eff, "CapAmb": &t.amb}
	seen := map[string]bool{"CapAmb": true}
	for line := range strings.Lines(status) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		var err error
		switch {
		case ids[key] != nil:
			err = parseIDs(value, ids[key])
		case caps[key] != nil:
			*caps[key], err = strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		case key == "Groups":
			t.groups = strings.TrimSpace(value)
		}
		if err != nil {
			return task{}, fmt.Errorf("%s: %w", key, err)
		}
		seen[key] = true
	}
	for _, key := range []string{"Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff"} {
		if !seen[key] {
			return task{}, fmt.Errorf("%s: no such line", key)
		}
	}
	return t, nil
}

func parseIDs(value string, ids *[4]int) error {
	f := strings.Fields(value)
	if len(f) != len(ids) {
		return fmt.Errorf("%d ids instead of %d", len(f), len(ids))
	}
	for i := range ids {
		id, err := strconv.ParseUint(f[i], 10, 32)
		if err != nil {
			return err
		}
		ids[i] = int(id)
	}
	return nil
}

// check compares every thread of the process with want.
func check(want task) error {
	ids, err := threads()
	if err != nil {
		return err
	}
	found := 0
	for _, id := range ids {
		got, err := readTask(taskDir + "/" + id + "/status")
		switch {
		case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH): // it has ended
			continue
		case err != nil:
			return err
		case got != want:
			return fmt.Errorf("thread %s has %+v instead of %+v", id, got, want)
		}
		found++
	}
	if found == 0 {
		return fmt.Errorf("list own threads: none in %s", taskDir)
	}
	return nil
}
