package privilege

import (
	"fmt"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// Harden is for the forms that execute nothing: no core dump, no debugger of the
// caller's (PR_SET_DUMPABLE; after setuid or file capabilities it is so already
// unless fs.suid_dumpable says else), and no privilege by execve any more
// (PR_SET_NO_NEW_PRIVS, in all threads). It cannot be undone, so a program to
// execute must not find it.
//
// The bounding set is left alone: it limits what execve may add, which is nothing
// with no_new_privs, and to clear it takes forty calls in all threads.
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

// hardenProcess is what is one for all threads.
func hardenProcess() error {
	if err := undumpable(); err != nil {
		return err
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("limit core dumps to 0: %w", err)
	}
	return nil
}
