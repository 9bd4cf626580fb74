package privilege

import (
	"errors"
	"fmt"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// rootsFiles is what Keep adds for root: root expects access to everybody's files (a program in the
// home directory of the user of sudo, a monitor's socket in another user's directory), and has
// other ways to get it anyway.
const rootsFiles = 1<<cap.DAC_OVERRIDE | 1<<cap.DAC_READ_SEARCH

// Has reports whether Keep would be granted the capability.
func (p *Process) Has(v cap.Value) bool { return p.start.prm&bits(v) != 0 }

// Keep returns the process to its caller, with nothing but the given capabilities: uids and gids
// (real, effective, saved, file system) become the caller's, permitted and effective become the
// values, inheritable and ambient become empty. From then on files are opened with the caller's
// privileges. The supplementary groups are the caller's all the time.
//
// A caller that is root needs no boundary. Only the effective set is reduced, against accidents, to
// the values and those for other users' files. The rest stays permitted, for Drop to restore.
//
// An error names the missing capabilities and the cure; everything has been dropped then.
func (p *Process) Keep(values ...cap.Value) error {
	want := bits(values...)
	var err error
	if missing := want &^ p.start.prm; missing != 0 {
		err = p.refusal(missing, want)
	} else {
		if p.Caller.Root() {
			want |= rootsFiles & p.start.prm
		}
		err = p.become(want)
	}
	if err != nil {
		return errors.Join(err, p.Drop())
	}
	return nil
}

// Drop gives up everything: no permitted, effective, inheritable or ambient capability is left, and
// no id but the caller's. Every thread is read back from /proc. After an error nothing may be
// executed. If the caller is root, its capabilities return to what they were at the start.
//
// The bounding set and the securebits are the caller's all the time.
func (p *Process) Drop() error {
	var err error
	p.reserve = 0
	if p.Caller.Root() {
		err = p.become(p.start.eff)
	} else {
		err = p.become(0)
	}
	p.dropped = err == nil
	if err != nil {
		return fmt.Errorf("drop privileges: %w", err)
	}
	return nil
}

// goal returns the credentials that all threads shall have, with these capabilities effective.
func (p *Process) goal(eff uint64) task {
	t := p.start
	t.uids, t.gids, t.eff = same(p.Caller.UID), same(p.Caller.GID), eff
	if !p.Caller.Root() {
		t.prm, t.inh, t.amb = eff|p.reserve, 0, 0
	}
	return t
}

func (p *Process) become(eff uint64) error {
	if err := roomForSignals(); err != nil {
		return err
	}
	goal := p.goal(eff)
	if err := setIDs(p.Caller, goal.prm != 0 || p.exposed); err != nil {
		return err
	}
	if err := setCaps(goal); err != nil {
		return err
	}
	return check(goal)
}

// setIDs needs no privilege: the real ids are the caller's already. With the last uid of 0 all
// capabilities are lost, unless keep is set. The flag for that then stays set until execve, without
// effect: a second call to reset it would cost as much.
//
// When an id changes, the kernel sets the process's dumpable flag from fs.suid_dumpable. If that is
// 1, only threads that have kept their capabilities are safe from the caller's debuggers until the
// flag is reset (__ptrace_may_access of kernel/ptrace.c), and a debugger of one thread sees the
// memory of all.
func setIDs(c Caller, keep bool) error {
	if r, e, s := unix.Getresgid(); [3]int{r, e, s} != [3]int{c.GID, c.GID, c.GID} {
		if err := syscall.Setresgid(c.GID, c.GID, c.GID); err != nil {
			return fmt.Errorf("return to gid %d: %w", c.GID, err)
		}
		if err := undumpable(); err != nil {
			return err
		}
	}
	if r, e, s := unix.Getresuid(); [3]int{r, e, s} == [3]int{c.UID, c.UID, c.UID} {
		return nil
	}
	if keep && !c.Root() {
		if _, err := cap.Prctlw(unix.PR_SET_KEEPCAPS, 1); err != nil {
			return fmt.Errorf(
				"keep capabilities over the change of the uid (PR_SET_KEEPCAPS; do the securebits forbid it?): %w", err)
		}
	}
	if err := syscall.Setresuid(c.UID, c.UID, c.UID); err != nil {
		return fmt.Errorf("return to uid %d: %w", c.UID, err)
	}
	return undumpable()
}

// setCaps sets three sets. The kernel removes from the ambient set what is not both permitted and
// inheritable.
func setCaps(t task) error {
	s := cap.NewSet()
	err := errors.Join(
		s.SetFlag(cap.Permitted, true, values(t.prm)...),
		s.SetFlag(cap.Effective, true, values(t.eff)...),
		s.SetFlag(cap.Inheritable, true, values(t.inh)...))
	if err == nil {
		err = s.SetProc()
	}
	if err != nil {
		return fmt.Errorf("set capabilities (permitted %#x, effective %#x, inheritable %#x): %w",
			t.prm, t.eff, t.inh, err)
	}
	return nil
}

// refusal explains why capabilities are missing, with the cure.
func (p *Process) refusal(missing, want uint64) error {
	install := fmt.Sprintf("setuid root (chown root, chmod u+s) or with file capabilities (setcap %s+ep)",
		strings.ToLower(names(want, ",")))
	nnp, _ := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	var st unix.Statfs_t
	nosuid := unix.Statfs("/proc/self/exe", &st) == nil && st.Flags&unix.ST_NOSUID != 0
	var why string
	switch {
	case p.start.uids[1] == 0:
		why = "root's capabilities are limited here: allow it for this container or service (bounding set and securebits)"
	case p.start.prm != 0:
		why = "the file or the caller gives other capabilities: install the program " + install
	case nnp == 1:
		why = "no_new_privs is set (by a container, or systemd's NoNewPrivileges=), which disables setuid and file capabilities: start it without"
	case nosuid:
		why = "the program's file system is mounted nosuid: install it elsewhere, " + install
	default:
		why = "the program must be installed " + install
	}
	return fmt.Errorf("%s is missing: %s", names(missing, ", "), why)
}

func bits(vs ...cap.Value) uint64 {
	var b uint64
	for _, v := range vs {
		b |= 1 << v
	}
	return b
}

func values(b uint64) []cap.Value {
	var vs []cap.Value
	for v := cap.Value(0); v < 64; v++ {
		if b&bits(v) != 0 {
			vs = append(vs, v)
		}
	}
	return vs
}

func names(b uint64, sep string) string {
	var s []string
	for _, v := range values(b) {
		s = append(s, strings.ToUpper(v.String()))
	}
	return strings.Join(s, sep)
}
