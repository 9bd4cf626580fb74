package privilege

import (
	"errors"
	"fmt"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// Confine is Keep and Harden for commands that execute nothing and do all their work on the calling
// goroutine: the goroutine is locked to its thread, which alone gets the capabilities and
// no_new_privs. The other threads, in which Go's runtime works, keep less than after Keep: the
// caller's ids and no capability at all.
//
// Confine shortens the start of a short process: Go stops the world and waits for each thread once
// instead of five times. It falls back to Keep and Harden if there is no uid to give up, since then
// nothing takes the capabilities away from the other threads by itself, if the caller's securebits
// keep the kernel from doing that, or if fs.suid_dumpable would let debuggers into those threads.
// But if the file capabilities are exactly those asked for, all threads are from the start as Keep
// would make them. A caller that is root could do without this program what Confine forbids. So it
// keeps all capabilities in effect, and is spared the thread that Go starts once a thread is
// locked.
func (p *Process) Confine(values ...cap.Value) error {
	const noSetuidFixup = 1 << 2 // SECBIT_NO_SETUID_FIXUP, include/uapi/linux/securebits.h
	securebits, err := unix.PrctlRetInt(unix.PR_GET_SECUREBITS, 0, 0, 0, 0)
	want := bits(values...)
	already := !p.Caller.Root() && p.start == p.goal(want) // all threads have been alike since the start
	if err != nil || !already && (p.exposed || securebits&noSetuidFixup != 0 ||
		!p.Caller.Root() && p.start.uids == same(p.Caller.UID)) {
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

// ownThread gives up everything that the calling thread, to which its goroutine is locked, does not
// keep.
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

// giveUpIDs sets the ids of all threads to the caller's. With its last uid of 0 each thread but
// this one loses its capabilities (PR_SET_KEEPCAPS, capabilities(7)).
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
		return fmt.Errorf(
			"keep capabilities over the change of the uid (PR_SET_KEEPCAPS; do the securebits forbid it?): %w", err)
	}
	if err := syscall.Setresuid(c.UID, c.UID, c.UID); err != nil {
		return fmt.Errorf("return to uid %d: %w", c.UID, err)
	}
	return nil
}
