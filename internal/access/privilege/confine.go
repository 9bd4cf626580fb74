package privilege

import (
	"errors"
	"fmt"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// Confine is Keep and Harden for the forms that execute nothing and do all their work on the
// goroutine that calls it: that is locked to its thread, which alone has the capabilities
// and no_new_privs. The other threads, in which Go's runtime works, are left with less than
// after Keep: the caller's ids, and no capability at all.
//
// It is what makes a short life shorter: Go has to stop the world and wait for each thread
// once instead of five times. Where there is no uid to give up, and so nothing that takes
// the capabilities from other threads by itself, it is Keep and Harden; so too where the
// caller's securebits keep the kernel from doing that, or fs.suid_dumpable would let debuggers into those threads. But with file capabilities that are those
// asked for and no others, all threads are from the start as Keep would make them. Root could do without us whatever would be
// forbidden: where the caller is root, it keeps all capabilities in effect, and is spared the
// thread that Go starts as soon as one is locked.
func (p *Process) Confine(values ...cap.Value) error {
	const noSetuidFixup = 1 << 2 // SECBIT_NO_SETUID_FIXUP, include/uapi/linux/securebits.h
	securebits, err := unix.PrctlRetInt(unix.PR_GET_SECUREBITS, 0, 0, 0, 0)
	want := bits(values...)
	already := !p.Caller.Root() && p.start == p.goal(want) // which the threads have been alike in since
	if err != nil || !already && (p.exposed || securebits&noSetuidFixup != 0 || !p.Caller.Root() && p.start.uids == same(p.Caller.UID)) {
		if err := p.Keep(values...); err != nil {
			return err
		}
		return Harden()
	}
	if missing := want &^ p.start.prm; missing != 0 {
		err = p.refusal(missing, want)
	} else {
		err = p.confine(want, already)
	}
	if err != nil {
		return errors.Join(err, p.Drop())
	}
	return nil
}

func (p *Process) confine(want uint64, already bool) error {
	switch {
	case already:
		runtime.LockOSThread() // never unlocked
	case !p.Caller.Root() || p.start.gids != same(p.Caller.GID):
		if err := p.ownThread(want); err != nil {
			return err
		}
	}
	if err := hardenProcess(); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("give up new privileges (PR_SET_NO_NEW_PRIVS): %w", err)
	}
	return nil
}

// ownThread gives everything up but what the calling thread keeps, to which its goroutine is locked.
func (p *Process) ownThread(want uint64) error {
	if p.Caller.Root() {
		want |= rootsFiles & p.start.prm
	}
	goal := p.goal(want)
	runtime.LockOSThread() // never unlocked
	if err := giveUpIDs(p.Caller, p.start); err != nil {
		return err
	}
	if err := setOwnCaps(goal); err != nil {
		return err
	}
	return checkOwn(goal)
}

// giveUpIDs makes all threads the caller's. With the last uid of 0 go the capabilities of each
// thread but this one (PR_SET_KEEPCAPS, capabilities(7)).
func giveUpIDs(c Caller, start task) error {
	if c.Root() && start.gids == same(c.GID) {
		return nil
	}
	if err := roomForSignals(); err != nil {
		return err
	}
	if start.gids != same(c.GID) {
		if err := syscall.Setresgid(c.GID, c.GID, c.GID); err != nil {
			return fmt.Errorf("return to gid %d: %w", c.GID, err)
		}
	}
	if c.Root() {
		return nil
	}
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("keep capabilities over the change of the uid (PR_SET_KEEPCAPS; do the securebits forbid it?): %w", err)
	}
	if err := syscall.Setresuid(c.UID, c.UID, c.UID); err != nil {
		return fmt.Errorf("return to uid %d: %w", c.UID, err)
	}
	return nil
}
