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

// The additions of HandOver to the environment: a mark, and the prefix that makes every variable's
// name meaningless.
const (
	mark = "VMNET_HANDED_OVER=1"
	mask = "_"
)

// HandOver replaces this process by another program of vmnet, and passes on the capabilities among
// values that this process has. The other program begins with Begin too, and finds the caller, the
// environment, the umask and the limits as this one did. HandOver returns only with an error, and
// no privilege is left then.
//
// The other program's file has no privilege of its own, so executing it gains nothing. The ids are
// the caller's already, and the capabilities are ambient: execve(2) passes no others on to such a
// file except to root, and to uid 0 it might pass on more than this program's file was given.
// Ambient capabilities do not set secure mode (AT_SECURE), in which C libraries and Go's runtime
// would distrust the environment: therefore no variable keeps its name on the way. Nor does Go's
// runtime then hide the stack when a deadly signal arrives: keep everything off the stack that the
// caller may not see.
//
// A user who can change the file at path, or where path leads, can do what this process can:
// HandOver refuses the path unless only root can.
func (p *Process) HandOver(path string, argv []string, values ...cap.Value) error {
	err := p.passOn(path, bits(values...))
	if err == nil {
		unix.Umask(p.umask)
		err = syscall.Exec(path, argv, masked(p.env))
		unix.Umask(ownUmask)
	}
	return errors.Join(fmt.Errorf("execute %s: %w", path, err), p.Drop())
}

// passOn prepares the calling thread, the only one that survives execve.
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
	goal.prm, goal.inh, goal.amb = give, give, give
	goal.eff = give &^ rootsFiles // the caller must be allowed to execute it; execve(2) makes all of amb effective
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

// masked returns the environment with every variable's name made meaningless.
func masked(env []string) []string {
	all := []string{mark, "GOTRACEBACK=none"} // a panic prints no stack
	for _, s := range env {
		all = append(all, mask+s)
	}
	return all
}

// unmask restores the caller's environment from masked's result; any other environment it returns
// unchanged.
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
