// Package sandbox confines the calling process to what a switch does once its ports are open. It
// forwards frames and answers clients. Ports that are added later arrive as open files.
//
// Two mechanisms of the kernel, which do not depend on each other, hold it there: seccomp(2) allows
// the system calls of a list (calls.go), and Landlock (landlock(7)) denies it the file system, TCP,
// and signals to other processes. Neither can be undone, and both cover every thread.
package sandbox

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/elastic/go-seccomp-bpf"
	"github.com/landlock-lsm/go-landlock/landlock"
	llsys "github.com/landlock-lsm/go-landlock/landlock/syscall"
)

// A Mode says whether Enter confines the process, and what happens to a refused system call.
type Mode string

const (
	Off    Mode = "off"    // nothing is confined
	On     Mode = "on"     // it fails with EPERM
	Strict Mode = "strict" // it ends the process with SIGSYS and a stack trace
)

// Modes are all modes.
var Modes = []Mode{On, Strict, Off}

// A Config is what the process may do besides.
type Config struct {
	Mode Mode

	// LockDirs are directories that it may open to lock them (flock(2)).
	LockDirs []string

	// RemoveDirs are directories below which it may remove sockets, other files and empty
	// directories.
	RemoveDirs []string
}

// Enter confines the process for the rest of its life. It returns what is in force, in words that
// people read, such as "seccomp". What the kernel lacks is left out and is no error. An error says
// why a mechanism that the kernel has is not in force; the other one may be.
func Enter(c Config) ([]string, error) {
	var on []string
	if c.Mode == Off {
		return on, nil
	}
	var errs []error
	abi, err := restrictFiles(c)
	switch {
	case err != nil:
		errs = append(errs, fmt.Errorf("confine the process by Landlock: %w", err))
	case abi > 0:
		on = append(on, fmt.Sprintf("Landlock %d", min(abi, maxABI)))
	}
	if seccomp.Supported() {
		switch err := restrictCalls(c.Mode); {
		case err == nil:
			on = append(on, "seccomp")
		case !errors.Is(err, errNoTable):
			errs = append(errs, fmt.Errorf("confine the process by seccomp: %w", err))
		}
	}
	return on, errors.Join(errs...)
}

// maxABI is the newest version of Landlock of which a rule is used. Version 9 also denies to
// connect to sockets by their path, which a switch does.
const maxABI = 7

// restrictFiles returns the version of Landlock that the kernel has, or 0.
func restrictFiles(c Config) (abi int, err error) {
	abi, err = llsys.LandlockGetABIVersion()
	if err != nil || abi < 1 {
		return 0, nil // the kernel was built or started without it
	}
	const remove = llsys.AccessFSRemoveFile | llsys.AccessFSRemoveDir
	return abi, landlock.V7.BestEffort().Restrict(
		landlock.PathAccess(llsys.AccessFSReadDir, usable(c.LockDirs)...).IgnoreIfMissing(),
		landlock.PathAccess(remove, usable(c.RemoveDirs)...).IgnoreIfMissing(),
		// A pidfd's process is read there. A file by which a process could be changed or read needs
		// the right to trace it, which Landlock denies for processes outside.
		landlock.PathAccess(llsys.AccessFSReadFile, "/proc").IgnoreIfMissing(),
	)
}

// usable returns the directories that the process can reach. A rule about another one would be
// refused, and with it all of them.
func usable(dirs []string) []string {
	return slices.DeleteFunc(slices.Clone(dirs), func(dir string) bool {
		_, err := os.Stat(dir)
		return err != nil
	})
}

// specAllow is SECCOMP_FILTER_FLAG_SPEC_ALLOW (linux/seccomp.h). Without it, kernels before Linux
// 5.16 slow down the process by a mitigation against code of others in its own address space.
const specAllow = 1 << 2

func restrictCalls(mode Mode) error {
	refuse := seccomp.ActionErrno
	if mode == Strict {
		refuse = seccomp.ActionTrap
	}
	groups, err := allowed(uint64(os.Getpid()))
	if err != nil {
		return err
	}
	return seccomp.LoadFilter(seccomp.Filter{
		NoNewPrivs: true,
		Flag:       seccomp.FilterFlagTSync | specAllow,
		Policy:     seccomp.Policy{DefaultAction: refuse, Syscalls: groups},
	})
}

// ParseMode returns the mode of that name.
func ParseMode(name string) (Mode, error) {
	names := make([]string, len(Modes))
	for i, m := range Modes {
		if string(m) == name {
			return m, nil
		}
		names[i] = string(m)
	}
	return "", fmt.Errorf("%q: want %s", name, strings.Join(names, ", "))
}
