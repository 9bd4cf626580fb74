package privilege

import (
	"fmt"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// GiveUp is for a program that was installed without privilege, has used its caller's, and
// continues without any: all threads get the user's ids and groups, no capability in any set, and
// none by execve(2) any more (no_new_privs). Each thread is read back from /proc. Becoming another
// user takes CAP_SETUID and CAP_SETGID; Who returns the current user.
//
// After an error the process may be in any state in between, and must exit.
func GiveUp(to Caller) error {
	if err := roomForSignals(); err != nil {
		return err
	}
	if err := switchTo(to); err != nil {
		return err
	}
	if err := setCaps(task{}); err != nil {
		return err
	}
	groups := slices.Sorted(slices.Values(to.Groups)) // in the kernel's order
	if err := check(task{uids: same(to.UID), gids: same(to.GID), groups: listGroups(groups)}); err != nil {
		return err
	}
	if _, err := cap.Prctlw(unix.PR_SET_NO_NEW_PRIVS, 1); err != nil {
		return fmt.Errorf("give up new privileges (PR_SET_NO_NEW_PRIVS): %w", err)
	}
	return nil
}

func switchTo(to Caller) error {
	now, err := Who()
	if err != nil || now.UID == to.UID && now.GID == to.GID && slices.Equal(now.Groups, to.Groups) {
		return err
	}
	if err := syscall.Setgroups(to.Groups); err != nil {
		return fmt.Errorf("become user %d: set its groups: %w (needs CAP_SETGID)", to.UID, err)
	}
	if err := syscall.Setresgid(to.GID, to.GID, to.GID); err != nil {
		return fmt.Errorf("become user %d: set its group: %w (needs CAP_SETGID)", to.UID, err)
	}
	if err := syscall.Setresuid(to.UID, to.UID, to.UID); err != nil {
		return fmt.Errorf("become user %d: %w (needs CAP_SETUID)", to.UID, err)
	}
	return nil
}
