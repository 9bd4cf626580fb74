package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"vmnet/internal/kernel/pidfd"
	"vmnet/internal/kernel/procfd"
	"vmnet/internal/kernel/procview"
)

// A Process is a running QEMU as it was when it was read.
type Process struct {
	PID     int
	UID     int    // its owner: see [pidfd.Owner]
	Started uint64 // see [pidfd.Started]
	CmdLine

	args []string // its command line, with the files of -readconfig expanded
}

// Hold opens a handle of the process. If it has ended, even if its PID was reused, the error
// matches [ErrNotFound] with errors.Is. The caller closes the Handle.
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

// Errors of Running.Find, Hold and others; the text names the guest and the cure.
var (
	ErrNotFound  = errors.New("no such guest")
	ErrAmbiguous = errors.New("more than one guest of that name")
	ErrOtherUser = errors.New("guest of another user")
	ErrNoMonitor = errors.New("no usable monitor")
	ErrLibvirt   = errors.New("managed by libvirt")
)

// maxCmdLine bounds how much of one command line is read, in bytes (the kernel's own limit is far
// higher, QEMU's command lines are far shorter).
const maxCmdLine = 256 << 10

// List returns the running QEMU processes that /proc shows, in all network namespaces, except those
// whose owner is unknown: see [pidfd.Owner].
func List() ([]Process, error) {
	found, _, err := list(isQEMU)
	return found, err
}

// A doubtful process has the command line of a QEMU and an unknown owner.
type doubtful struct {
	CmdLine
	why error
}

// MaybeOfLibvirt is List without most of those that libvirt has not started, of which it reads
// only the beginning of the command line.
func MaybeOfLibvirt() ([]Process, error) {
	found, _, err := list(func(pid int, argv []string) bool {
		cut := len(strings.Join(argv, " ")) >= usualCmdLine-1 // what shows it may come later
		return isQEMU(pid, argv) && (cut || Parse(argv).Libvirt)
	})
	return found, err
}

func list(wanted func(pid int, argv []string) bool) (found []Process, doubted []doubtful, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, nil, fmt.Errorf("list processes: %w", err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		p, err := look(pid, wanted)
		switch {
		case err == nil:
			found = append(found, p)
		case errors.Is(err, pidfd.ErrDoubtful):
			doubted = append(doubted, doubtful{p.CmdLine, err})
		}
	}
	return found, doubted, nil
}

// ByPID reads one process, which must be a QEMU. The error matches [ErrNotFound] with errors.Is if
// it is not one or has ended, and [pidfd.ErrDoubtful] too if its owner is unknown.
func ByPID(pid int) (Process, error) {
	p, err := look(pid, isQEMU)
	if errors.Is(err, errNoQEMU) {
		return Process{},
			fmt.Errorf(
				"process %d is not a QEMU by its program's name, nor by its options and sockets "+
					"(if it is one, name its monitor with --qmp): %w",
				pid, ErrNotFound)
	}
	return p, ended(pid, err)
}

// AnyByPID is ByPID for a process that answers as a QEMU, whatever its command line says.
func AnyByPID(pid int) (Process, error) {
	p, err := look(pid, func(int, []string) bool { return true })
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

// look reads one process that is wanted. With an error that matches [pidfd.ErrDoubtful] it returns
// the command line too.
func look(pid int, wanted func(pid int, argv []string) bool) (Process, error) {
	argv, err := arguments(pid, wanted)
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
	// Read the command line again: it is the owner's only if the same process had it both before
	// and after.
	again, errAgain := arguments(pid, wanted)
	if err = errors.Join(h.Check(), errAgain, err); err == nil && !slices.Equal(again, argv) {
		err = errNoQEMU // it has executed another program in between
	}
	p.args = argv
	if err == nil {
		p.args = p.expanded(argv)
	}
	p.CmdLine = Parse(p.args)
	return p, err
}

// configWait bounds the wait for a file system that holds a file of -readconfig.
const configWait = time.Second

// expanded expands the files of -readconfig. It reads only files that are named by a process of the
// caller or of root.
func (p Process) expanded(argv []string) []string {
	if p.UID != 0 && p.UID != os.Geteuid() {
		return argv
	}
	ctx, cancel := context.WithTimeout(context.Background(), configWait)
	defer cancel()
	all, _ := Expand(argv, func(path string) (string, error) {
		text, err := procview.Read(ctx, p.PID, path, MaxConfig)
		return string(text), err
	})
	return all
}

// usualCmdLine is how long most command lines are at most, in bytes.
const usualCmdLine = 4096

// arguments reads the command line of a process that is wanted. Most are not, as their first
// arguments show.
func arguments(pid int, wanted func(pid int, argv []string) bool) ([]string, error) {
	text, err := procfd.ReadStart(pid, "cmdline", usualCmdLine)
	if err != nil {
		return nil, err
	}
	if len(text) == 0 || !wanted(pid, split(text)) { // a kernel thread's, or an exiting process's, is empty
		return nil, errNoQEMU
	}
	if len(text) < usualCmdLine {
		return split(text), nil
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err = io.ReadAll(io.LimitReader(f, usualCmdLine+maxCmdLine))
	return split(text), err
}

func split(text []byte) []string {
	return strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")
}

// isQEMU reports whether a process runs guests. If the name of its program does not say so, it must
// have QEMU's options, and one thing that a wrapper before QEMU lacks: a management socket, or a
// KVM guest.
func isQEMU(pid int, argv []string) bool {
	return IsQEMU(argv[0]) || IsQEMU(exe(pid)) || hasQEMUOptions(argv) &&
		(procview.HasFile(pid, "anon_inode:kvm-vm") || listens(pid))
}

func listens(pid int) bool {
	all, err := procview.Listening(pid)
	return err == nil && len(all) > 0
}

// hasQEMUOptions reports whether arguments are QEMU's, and not those of a wrapper that names its
// program.
func hasQEMUOptions(argv []string) bool {
	for _, arg := range argv[1:] {
		switch {
		case slices.Contains(qemuOptions, arg):
			return true
		case IsQEMU(arg):
			return false
		}
	}
	return false
}

// qemuOptions are QEMU's own: few other programs have one of them.
var qemuOptions = []string{
	"-qmp", "-qmp-pretty", "-mon", "-chardev", "-readconfig", "-machine", "-netdev",
	"-nodefaults", "-accel",
}

// exe returns the running program, which argv[0] may hide; empty if the caller may not see it.
func exe(pid int) string {
	target, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return strings.TrimSuffix(target, " (deleted)")
}

// IsQEMU reports whether a program's name or path is that of a QEMU that runs guests.
func IsQEMU(program string) bool {
	base := filepath.Base(program)
	return strings.HasPrefix(base, "qemu-system-") || base == "qemu-kvm" || base == "kvm" || base == "qemu"
}
