package procview

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
)

// A Listener is an AF_UNIX stream socket on which a process listens.
type Listener struct {
	FD   int    // the lowest of the process's fds that is the socket
	Name string // as it was bound: a path, which may be relative or removed; "@name" for an abstract one
}

const (
	// maxTable bounds in bytes how much of a list of sockets is read, which has all those of a
	// network namespace.
	maxTable = 32 << 20
	// maxFiles bounds how many files of a process are inspected. No VMM has nearly as many.
	maxFiles = 1 << 14
	// maxListeners bounds how many Listeners are returned.
	maxListeners = 64
)

// Listening returns the sockets on which a process listens, ordered by fd. If the caller may not
// inspect the process (PTRACE_MODE_READ_FSCREDS in ptrace(2)), the error matches fs.ErrPermission
// with errors.Is. The caller must check that the process itself answers at a name. Any process can
// bind a name that contains a line feed, after which another line of the kernel's list seems to
// begin. So a socket may be returned with several names.
func Listening(pid int) ([]Listener, error) {
	sockets, err := socketsOf(pid)
	if err != nil {
		return nil, err
	}
	if len(sockets) == 0 {
		return nil, nil
	}
	var found []Listener
	for _, table := range tables(pid) {
		list, err := listenersIn(table, sockets)
		if err != nil {
			return nil, err
		}
		found = append(found, list...)
	}
	slices.SortFunc(found, func(a, b Listener) int {
		if a.FD != b.FD {
			return a.FD - b.FD
		}
		return strings.Compare(a.Name, b.Name)
	})
	return found, nil
}

// ListenerInodes returns the inodes of the AF_UNIX stream sockets that listen in the caller's
// network namespace, in any process.
func ListenerInodes() (map[uint64]bool, error) {
	f, err := os.Open("/proc/thread-self/net/unix")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	found := map[uint64]bool{}
	lines := bufio.NewScanner(io.LimitReader(f, maxTable))
	for lines.Scan() {
		if inode, _, ok := parseListener(lines.Text()); ok {
			found[inode] = true
		}
	}
	return found, lines.Err()
}

// HasFile reports whether a process has a file open whose link in /proc/PID/fd is target.
func HasFile(pid int, target string) bool {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	names, err := filesOf(dir)
	return err == nil && slices.ContainsFunc(names, func(name string) bool {
		link, err := os.Readlink(dir + "/" + name)
		return err == nil && link == target
	})
}

// filesOf lists the names in /proc/PID/fd, at most maxFiles of them: a process may have many files
// open.
func filesOf(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(maxFiles)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return names, err
}

// socketsOf maps the inodes of a process's sockets to its fds.
func socketsOf(pid int) (map[uint64]int, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	names, err := filesOf(dir)
	if err != nil {
		return nil, err
	}
	sockets := map[uint64]int{}
	for _, name := range names {
		target, err := os.Readlink(dir + "/" + name)
		if err != nil {
			continue // closed in the meantime
		}
		inode, ok := strings.CutPrefix(target, "socket:[")
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(strings.TrimSuffix(inode, "]"), 10, 64)
		fd, errFD := strconv.Atoi(name)
		if errors.Join(err, errFD) != nil {
			continue
		}
		if old, known := sockets[n]; !known || fd < old {
			sockets[n] = fd
		}
	}
	return sockets, nil
}

// tables returns the paths of the lists of sockets in which those of a process may be: that of its
// own network namespace and, for inherited sockets, those of the caller and of the first process.
func tables(pid int) (paths []string) {
	var seen []string
	for _, proc := range []string{strconv.Itoa(pid), "thread-self", "1"} {
		ns, err := os.Readlink("/proc/" + proc + "/ns/net")
		if err != nil && len(paths) > 0 || slices.Contains(seen, ns) {
			continue
		}
		seen = append(seen, ns)
		paths = append(paths, "/proc/"+proc+"/net/unix")
	}
	return paths
}

// listenersIn reads one list (unix_seq_show in net/unix/af_unix.c).
func listenersIn(path string, sockets map[uint64]int) (found []Listener, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewReader(io.LimitReader(f, maxTable))
	for len(found) < maxListeners {
		line, err := lines.ReadString('\n')
		if inode, name, ok := parseListener(strings.TrimSuffix(line, "\n")); ok {
			if fd, known := sockets[inode]; known {
				found = append(found, Listener{fd, name})
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	return found, nil
}

// parseListener parses one line: "address: count protocol flags type state inode name". All fields
// but the last two are hexadecimal.
func parseListener(line string) (inode uint64, name string, ok bool) {
	const acceptsConnections, stream = "00010000", "0001" // __SO_ACCEPTCON of linux/net.h, SOCK_STREAM
	var fields []string
	rest := line
	for range 7 {
		field, after, _ := strings.Cut(strings.TrimLeft(rest, " "), " ")
		fields, rest = append(fields, field), after
	}
	if fields[3] != acceptsConnections || fields[4] != stream || rest == "" {
		return 0, "", false
	}
	inode, err := strconv.ParseUint(fields[6], 10, 64)
	return inode, rest, err == nil
}
