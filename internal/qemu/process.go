package qemu

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"vmnet/internal/pidfd"
)

// A Process is a running QEMU, as it was when it was looked at.
type Process struct {
	PID     int
	UID     int    // whose it is: see [pidfd.Owner]
	Started uint64 // see [pidfd.Started]
	CmdLine
}

// Hold holds the process. That it has ended is an error that Is [ErrNotFound], also where
// its number has been given to another one. The caller closes the Handle.
func (p Process) Hold() (*pidfd.Handle, error) {
	h, err := pidfd.Open(p.PID)
	if err != nil {
		return nil, ended(p.PID, err)
	}
	started, err := pidfd.Started(p.PID)
	if err = errors.Join(err, h.Check()); err == nil && started != p.Started {
		err = fs.ErrNotExist
	}
	if err != nil {
		_ = h.Close()
		return nil, ended(p.PID, err)
	}
	return h, nil
}

// Errors of Find, Hold and the like; the text names the guest and the cure.
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

// List returns the running QEMU processes of all network namespaces that /proc shows, but
// not those of which nobody knows whose they are: see [pidfd.Owner].
func List() ([]Process, error) {
	found, _, err := list()
	return found, err
}

// A doubtful process has the command line of a QEMU, and is not believed to be anybody's.
type doubtful struct {
	CmdLine
	why error
}

func list() (found []Process, doubted []doubtful, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, nil, fmt.Errorf("list processes: %w", err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		p, err := look(pid, isQEMU)
		switch {
		case err == nil:
			found = append(found, p)
		case errors.Is(err, pidfd.ErrDoubtful):
			doubted = append(doubted, doubtful{p.CmdLine, err})
		}
	}
	return found, doubted, nil
}

// ByPID reads one process, which must be a QEMU. The error Is [ErrNotFound] where it is
// none or has ended, and [pidfd.ErrDoubtful] too where nobody knows whose it is.
func ByPID(pid int) (Process, error) {
	p, err := look(pid, isQEMU)
	if errors.Is(err, errNoQEMU) {
		return Process{}, fmt.Errorf("process %d is not a QEMU (its program is not called qemu-system-*, qemu-kvm, kvm or qemu): %w", pid, ErrNotFound)
	}
	return p, ended(pid, err)
}

// AnyByPID is ByPID for a process that listens on a monitor's socket, whatever its program is called.
func AnyByPID(pid int) (Process, error) {
	p, err := look(pid, func(string, string) bool { return true })
	return p, ended(pid, err)
}

func ended(pid int, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("process %d: %w", pid, ErrNotFound)
	}
	return fmt.Errorf("%w: %w", ErrNotFound, err)
}

var errNoQEMU = errors.New("not a QEMU")

// look reads one process. Of one that Is [pidfd.ErrDoubtful] it returns the command line too.
func look(pid int, wanted func(dir, program string) bool) (Process, error) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	argv, err := arguments(dir, wanted)
	if err != nil {
		return Process{}, err
	}
	h, err := pidfd.Open(pid)
	if err != nil {
		return Process{}, err
	}
	defer h.Close()
	p := Process{PID: pid}
	if p.UID, err = pidfd.Owner(pid); err == nil {
		p.Started, err = pidfd.Started(pid)
	}
	// The command line once more: it is the word of whoever is the owner only if the same
	// process had it both before and after.
	again, errAgain := arguments(dir, wanted)
	if err = errors.Join(h.Check(), errAgain, err); err == nil && !slices.Equal(again, argv) {
		err = errNoQEMU // it has executed another program meanwhile
	}
	p.CmdLine = Parse(argv)
	return p, err
}

// isQEMU reports whether a process, whose files in /proc dir has, runs a QEMU.
func isQEMU(dir, program string) bool { return IsQEMU(program) || IsQEMU(exe(dir)) }

// arguments reads the command line of a process that is wanted.
func arguments(dir string, wanted func(dir, program string) bool) ([]string, error) {
	f, err := os.Open(filepath.Join(dir, "cmdline"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	argv := readArgs(f, func(program string) bool { return wanted(dir, program) })
	if len(argv) == 0 {
		return nil, errNoQEMU
	}
	return argv, nil
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
