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
// caller's securebits keep the kernel from doing that.
func (p *Process) Confine(values ...cap.Value) error {
	const noSetuidFixup = 1 << 2 // SECBIT_NO_SETUID_FIXUP, include/uapi/linux/securebits.h
	securebits, err := unix.PrctlRetInt(unix.PR_GET_SECUREBITS, 0, 0, 0, 0)
	if err != nil || securebits&noSetuidFixup != 0 || !p.Caller.Root() && p.start.uids == same(p.Caller.UID) {
		if err := p.Keep(values...); err != nil {
			return err
		}
		return Harden()
	}
	want := bits(values...)
	if missing := want &^ p.start.prm; missing != 0 {
		err = p.refusal(missing, want)
	} else {
		err = p.confine(want)
	}
	if err != nil {
		return errors.Join(err, p.Drop())
	}
	return nil
}

func (p *Process) confine(want uint64) error {
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
	if err := checkOwn(goal); err != nil {
		return err
	}
	if err := hardenProcess(); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("give up new privileges (PR_SET_NO_NEW_PRIVS): %w", err)
	}
	return nil
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

// setOwnCaps and checkOwn are about the calling thread.
func setOwnCaps(t task) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData // the lower 32 capabilities, and the others
	for i := range data {
		shift := 32 * i
		data[i] = unix.CapUserData{Effective: uint32(t.eff >> shift), Permitted: uint32(t.prm >> shift), Inheritable: uint32(t.inh >> shift)}
	}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("set capabilities (permitted %#x, effective %#x, inheritable %#x): %w", t.prm, t.eff, t.inh, err)
	}
	return nil
}

func checkOwn(want task) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("read own credentials: %w", err)
	}
	got := want
	got.uids[0], got.uids[1], got.uids[2] = unix.Getresuid()
	got.gids[0], got.gids[1], got.gids[2] = unix.Getresgid()
	got.prm = uint64(data[0].Permitted) | uint64(data[1].Permitted)<<32
	got.eff = uint64(data[0].Effective) | uint64(data[1].Effective)<<32
	got.inh = uint64(data[0].Inheritable) | uint64(data[1].Inheritable)<<32
	if got != want {
		return fmt.Errorf("the thread did not become what it should: it has %+v instead of %+v", got, want)
	}
	return nil
}
