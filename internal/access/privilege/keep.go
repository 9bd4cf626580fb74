package privilege

import (
	"errors"
	"fmt"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// rootsFiles is what root's Keep adds: root expects to get at everybody's files (a
// program in the home of whoever used sudo, a monitor's socket in another user's
// folder), and can have them by other means anyway.
const rootsFiles = 1<<cap.DAC_OVERRIDE | 1<<cap.DAC_READ_SEARCH

// Has tells whether Keep would be granted the capability.
func (p *Process) Has(v cap.Value) bool { return p.start.prm&bits(v) != 0 }

// Keep makes the process its caller's again, with nothing but the capabilities
// given: uids and gids (real, effective, saved, file system) are the caller's,
// permitted and effective are the values, inheritable and ambient are empty. So
// files are opened with the caller's rights from then on. The supplementary
// groups are the caller's all the time.
//
// Where the caller is root, there is no boundary to defend. Only the effective set
// is reduced, against accidents, to the values and those for other users' files;
// the rest stays permitted, for Drop to restore.
//
// An error names the capabilities that were not there and the cure; everything
// has been dropped then.
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

// Drop gives up everything: no permitted, effective, inheritable or ambient
// capability, no id that is not the caller's. Every thread is read back from /proc.
// After an error nothing may be executed. Where the caller is root, its capabilities
// are again what they were at the start.
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

// goal is what all threads are to be, with these capabilities effective.
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

// setIDs needs no privilege: the real ids are the caller's already. When the last
// uid of 0 goes, so do all capabilities, unless keep; that flag then stays set until
// execve, without a meaning any more: a second call to reset it would cost as much.
//
// When an id changes the kernel makes the process as dumpable as fs.suid_dumpable says. If that is 1, only those
// threads that have kept their capabilities are safe from the caller's debuggers meanwhile
// (__ptrace_may_access of kernel/ptrace.c), and a debugger of any is in the memory of all.
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
			return fmt.Errorf("keep capabilities over the change of the uid (PR_SET_KEEPCAPS; do the securebits forbid it?): %w", err)
		}
	}
	if err := syscall.Setresuid(c.UID, c.UID, c.UID); err != nil {
		return fmt.Errorf("return to uid %d: %w", c.UID, err)
	}
	return undumpable()
}

// setCaps sets three sets; the kernel takes from the ambient one what is not in
// both permitted and inheritable.
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
		return fmt.Errorf("set capabilities (permitted %#x, effective %#x, inheritable %#x): %w", t.prm, t.eff, t.inh, err)
	}
	return nil
}

// refusal says why capabilities are missing, and the cure.
func (p *Process) refusal(missing, want uint64) error {
	install := fmt.Sprintf("setuid root (chown root, chmod u+s) or with file capabilities (setcap %s+ep)", strings.ToLower(names(want, ",")))
	nnp, _ := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	var st unix.Statfs_t
	nosuid := unix.Statfs("/proc/self/exe", &st) == nil && st.Flags&unix.ST_NOSUID != 0
	var why string
	switch {
	case p.start.uids[1] == 0:
		why = "root's capabilities are limited here: give it to the container or service that this was started in (its bounding set and securebits)"
	case p.start.prm != 0:
		why = "the file's capabilities, or those that the caller gave, are others: install it " + install
	case nnp == 1:
		why = "the caller has given up all new privileges (no_new_privs: a container, or systemd's NoNewPrivileges=), so neither setuid nor file capabilities work: start it without"
	case nosuid:
		why = "the program is on a file system that is mounted nosuid: install it elsewhere, " + install
	default:
		why = "the program must be installed " + install
	}
	return fmt.Errorf("the right %s is missing: %s", names(missing, ", "), why)
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
