package privilege

import (
	"fmt"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// Harden is for commands that execute nothing. It forbids core dumps, the caller's debuggers
// (PR_SET_DUMPABLE, which setuid and file capabilities already imply unless fs.suid_dumpable
// overrides it) and any privilege by execve (PR_SET_NO_NEW_PRIVS, in all threads). It cannot be
// undone, so do not call it before executing a program.
//
// The bounding set is left alone: it limits what execve may add, which is nothing with
// no_new_privs, and clearing it takes forty calls in all threads.
func Harden() error {
	if err := hardenProcess(); err != nil {
		return err
	}
	if err := roomForSignals(); err != nil {
		return err
	}
	if _, err := cap.Prctlw(unix.PR_SET_NO_NEW_PRIVS, 1); err != nil {
		return fmt.Errorf("give up new privileges (PR_SET_NO_NEW_PRIVS): %w", err)
	}
	return nil
}

// hardenProcess sets what all threads share.
func hardenProcess() error {
	if err := undumpable(); err != nil {
		return err
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("limit core dumps to 0: %w", err)
	}
	return nil
}
