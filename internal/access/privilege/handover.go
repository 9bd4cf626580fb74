package privilege

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// What HandOver writes into the environment: a mark, and the caller's variables behind a byte that
// takes every meaning from their names.
const (
	mark = "VMNET_HANDED_OVER=1"
	mask = "_"
)

// HandOver lets another program of ours take this process's place and do what was asked for, with
// those of the values that this process has. It begins with Begin too, and finds the caller, the
// environment, the umask and the limits as this one did. It returns only with an error, after which
// nothing is left of the privileges.
//
// The other program's file has no privilege of its own, so that nobody gets any who executes it. The ids
// are the caller's already, and the capabilities are ambient ones: execve(2) passes no others on to
// such a file except to root, and to uid 0 it would pass on more than this one's file may have been given. But of
// ambient ones the kernel makes no secure mode (AT_SECURE), in which C libraries and Go's
// runtime would distrust the environment: hence no variable keeps its name on the way. Nor does Go's runtime
// keep to itself there what a deadly signal finds on the stack: let nothing be on it that the caller may not see.
//
// Who can change the file at path, or where that leads, can do what this process can: unless only root can, it is refused.
func (p *Process) HandOver(path string, argv []string, values ...cap.Value) error {
	err := p.passOn(path, bits(values...))
	if err == nil {
		unix.Umask(p.umask)
		err = syscall.Exec(path, argv, masked(p.env))
		unix.Umask(ownUmask)
	}
	return errors.Join(fmt.Errorf("execute %s: %w", path, err), p.Drop())
}

// passOn prepares the calling thread, the only one that is left after execve.
func (p *Process) passOn(path string, want uint64) error {
	if p.Elevated() {
		if err := rootsAlone(path); err != nil {
			return err
		}
	}
	if p.Caller.Root() {
		return nil
	}
	runtime.LockOSThread() // never unlocked
	if p.start.uids != same(p.Caller.UID) || p.start.gids != same(p.Caller.GID) {
		if err := roomForSignals(); err != nil {
			return err
		}
		if err := setIDs(p.Caller, true); err != nil {
			return err
		}
	}
	give := want & p.start.prm
	goal := p.start
	goal.uids, goal.gids = same(p.Caller.UID), same(p.Caller.GID)
	goal.prm, goal.eff, goal.inh, goal.amb = give, give, give, give
	if err := setOwnCaps(goal); err != nil {
		return err
	}
	for _, v := range values(give) {
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(v), 0, 0); err != nil {
			return fmt.Errorf("pass on %s (PR_CAP_AMBIENT_RAISE; do the securebits forbid it?): %w", v, err)
		}
	}
	return checkOwn(goal)
}

// masked is an environment of which no variable has a meaning.
func masked(env []string) []string {
	all := []string{mark, "GOTRACEBACK=none"} // a panic prints no stack
	for _, s := range env {
		all = append(all, mask+s)
	}
	return all
}

// unmask takes the caller's environment out of what masked made; any other is as it is.
func unmask(env []string) []string {
	if len(env) == 0 || env[0] != mark {
		return env
	}
	var callers []string
	for _, s := range env {
		if rest, ok := strings.CutPrefix(s, mask); ok {
			callers = append(callers, rest)
		}
	}
	return callers
}
