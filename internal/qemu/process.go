package qemu

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// A Process is a running QEMU.
type Process struct {
	PID int
	UID int // of the process, as /proc says
	CmdLine
}

// Errors of Find and Open; the text names the guest and the cure.
var (
	ErrNotFound  = errors.New("no such guest")
	ErrAmbiguous = errors.New("more than one guest of that name")
	ErrOtherUser = errors.New("guest of another user")
	ErrNoMonitor = errors.New("no usable monitor")
	ErrLibvirt   = errors.New("managed by libvirt")
)

// maxCmdLine bounds what is read of one command line (the kernel's own limit is
// far higher, QEMU's command lines are far shorter).
const maxCmdLine = 1 << 20

// List returns the running QEMU processes of all network namespaces that /proc shows.
func List() ([]Process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var found []Process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if p, ok := read(pid); ok {
			found = append(found, p)
		}
	}
	return found, nil
}

// ByPID reads one process, which must be a QEMU.
func ByPID(pid int) (Process, error) {
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); errors.Is(err, fs.ErrNotExist) {
		return Process{}, fmt.Errorf("process %d: %w", pid, ErrNotFound)
	}
	p, ok := read(pid)
	if !ok {
		return Process{}, fmt.Errorf("process %d is not a QEMU (its program is not called qemu-system-*, qemu-kvm, kvm or qemu): %w", pid, ErrNotFound)
	}
	return p, nil
}

// read looks at one process. The second result is false where it is no QEMU,
// has ended or cannot be read.
func read(pid int) (Process, bool) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	f, err := os.Open(filepath.Join(dir, "cmdline"))
	if err != nil {
		return Process{}, false
	}
	defer f.Close()
	argv := readArgs(f, func(program string) bool { return IsQEMU(program) || IsQEMU(exe(dir)) })
	if len(argv) == 0 {
		return Process{}, false
	}
	info, err := os.Stat(dir)
	if err != nil {
		return Process{}, false
	}
	uid := int(info.Sys().(*syscall.Stat_t).Uid)
	return Process{PID: pid, UID: uid, CmdLine: Parse(argv)}, true
}

// readArgs reads NUL-separated arguments, of programs that are wanted: most processes
// are none, and are told by their first bytes.
func readArgs(f *os.File, wanted func(program string) bool) []string {
	data := make([]byte, 4096)
	n, _ := f.Read(data)
	data = data[:max(n, 0)]
	program, _, _ := strings.Cut(string(data), "\x00")
	if program == "" || !wanted(program) {
		return nil
	}
	rest, _ := io.ReadAll(io.LimitReader(f, maxCmdLine))
	return strings.Split(strings.TrimSuffix(string(append(data, rest...)), "\x00"), "\x00")
}

// exe is the program that runs, which argv[0] may hide; empty where the caller may not see it.
func exe(dir string) string {
	target, _ := os.Readlink(filepath.Join(dir, "exe"))
	return strings.TrimSuffix(target, " (deleted)")
}

// IsQEMU tells by a program's name or path whether it is a QEMU that runs guests.
func IsQEMU(program string) bool {
	base := filepath.Base(program)
	return strings.HasPrefix(base, "qemu-system-") || base == "qemu-kvm" || base == "kvm" || base == "qemu"
}

// Find returns the one running QEMU of the calling user whose guest has that
// name. Another user's is refused, since anybody may call a process anything:
// it must be named by its pid.
func Find(name string) (Process, error) {
	all, err := List()
	if err != nil {
		return Process{}, err
	}
	var ours, others []Process
	for _, p := range all {
		switch {
		case p.Name != name:
		case p.UID == os.Geteuid():
			ours = append(ours, p)
		default:
			others = append(others, p)
		}
	}
	switch {
	case len(ours) == 1:
		return ours[0], nil
	case len(ours) > 1:
		return Process{}, fmt.Errorf("%w: %q: processes %s (name one with --pid)", ErrAmbiguous, name, pids(ours))
	case len(others) > 0:
		p := others[0]
		return Process{}, fmt.Errorf("%w: %q runs as %s (name it with --pid %d if that is the guest you mean)", ErrOtherUser, name, userName(p.UID), p.PID)
	}
	return Process{}, fmt.Errorf("%w: no running QEMU has -name guest=%s (running: %s; --pid or --qmp name one without a name)", ErrNotFound, name, names(all))
}

// OfLibvirt returns the running QEMUs, whoever runs them, that say of themselves that libvirt has started them
// and that the guest is called so. Libvirt must vouch for one by its UUID.
func OfLibvirt(name string) ([]Process, error) {
	return filter(func(p Process) bool { return p.Libvirt && p.Name == name })
}

func filter(wanted func(Process) bool) ([]Process, error) {
	all, err := List()
	return slices.DeleteFunc(all, func(p Process) bool { return !wanted(p) }), err
}

func pids(ps []Process) string {
	var s []string
	for _, p := range ps {
		s = append(s, strconv.Itoa(p.PID))
	}
	return strings.Join(s, ", ")
}

// maxNames bounds how many guests an error text lists.
const maxNames = 10

func names(ps []Process) string {
	var s []string
	for _, p := range ps {
		name := strconv.Quote(p.Name) // anybody's process may be called anything
		if p.Name == "" {
			name = fmt.Sprintf("process %d", p.PID)
		}
		if s = append(s, name); len(s) == maxNames {
			s = append(s, "...")
			break
		}
	}
	if len(s) == 0 {
		return "none"
	}
	return strings.Join(s, ", ")
}

func userName(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return "user " + u.Username
	}
	return fmt.Sprintf("uid %d", uid)
}

// MonitorPath is where to connect to the process's monitor, from the caller's
// mount namespace: through the process's root, and its working directory where
// the command line has a relative path.
func (p Process) MonitorPath() (string, error) {
	switch {
	case p.Libvirt:
		return "", fmt.Errorf("%s (process %d) is %w, which holds its monitor", p.label(), p.PID, ErrLibvirt)
	case len(p.Monitors) == 0 && len(p.Others) > 0:
		return "", fmt.Errorf("%w: %s (process %d) has only %s (start it with -qmp unix:PATH,server=on,wait=off, or name its socket with --qmp)", ErrNoMonitor, p.label(), p.PID, strings.Join(p.Others, "; "))
	case len(p.Monitors) == 0:
		return "", fmt.Errorf("%w: %s (process %d) has none on its command line (start it with -qmp unix:PATH,server=on,wait=off, or name its socket with --qmp)", ErrNoMonitor, p.label(), p.PID)
	}
	paths := p.MonitorPaths()
	path := paths[len(paths)-1]
	if p.isRelative() {
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("%w: that of %s (process %d) has the relative path %s, and QEMU has changed its folder since, as with -daemonize (name the socket with --qmp)", ErrNoMonitor, p.label(), p.PID, p.Monitors[len(p.Monitors)-1].Path)
		}
	}
	return path, nil
}

func (p Process) isRelative() bool { return !filepath.IsAbs(p.Monitors[len(p.Monitors)-1].Path) }

// MonitorPaths is where to connect to each of the monitors, in the order of the command
// line. The last is the one that is used, which leaves the first to whoever else manages the guest.
func (p Process) MonitorPaths() []string {
	var paths []string
	for _, m := range p.Monitors {
		seen := fmt.Sprintf("/proc/%d/root%s", p.PID, m.Path)
		if !filepath.IsAbs(m.Path) {
			seen = fmt.Sprintf("/proc/%d/cwd/%s", p.PID, m.Path)
		} else if _, err := os.Lstat(seen); errors.Is(err, fs.ErrPermission) {
			seen = m.Path // its root may not be looked into: most likely it is ours
		}
		paths = append(paths, seen)
	}
	return paths
}

func (p Process) label() string {
	if p.Name == "" {
		return "the guest"
	}
	return fmt.Sprintf("guest %q", p.Name)
}
