// Package privilege is for programs that are installed setuid root or with file capabilities: it
// identifies the process's caller, keeps only the necessary privilege, drops that too, and finally
// executes the caller's own program. The contracts are those of capabilities(7), credentials(7) and
// execve(2).
//
// The order, from the first statement of main:
//
//	p, err := privilege.Begin()      // standard fds, umask, environment
//	err = privilege.Inherited(fd)    // for each fd number the caller named
//	err = p.Keep(cap.NET_ADMIN)      // the caller's ids again, and one capability
//	...
//	err = p.Drop()                   // nothing left, in any thread
//	err = p.Exec(path, argv)         // or privilege.Harden() for those that exec nothing
//
// All changes are made in all threads of the process. After an error of Begin, Keep or Drop, print
// it and exit.
//
// There is neither a seccomp filter nor a Landlock domain: after Keep the process can do no more to
// files, processes or the kernel's other interfaces than its caller can do without it, and the
// remaining capability works over netlink and ioctl, which a filter would have to let pass.
package privilege

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// ownUmask hides the files of a privileged process from all other users.
const ownUmask = 0o077

// Caller identifies the user who started the process by its real ids, which neither setuid nor file
// capabilities change.
type Caller struct {
	UID, GID int
	Groups   []int // supplementary groups
}

// Who asks the kernel for the user who started this process.
func Who() (Caller, error) {
	groups, err := unix.Getgroups()
	if err != nil {
		return Caller{}, fmt.Errorf("list the caller's supplementary groups: %w", err)
	}
	return Caller{UID: unix.Getuid(), GID: unix.Getgid(), Groups: groups}, nil
}

// Root reports whether the caller is root, who needs no privilege of ours.
func (c Caller) Root() bool { return c.UID == 0 }

// In reports whether the caller has the group, as its own or a supplementary one.
func (c Caller) In(gid int) bool { return c.GID == gid || slices.Contains(c.Groups, gid) }

// Process is this process and the way it was started. It is not safe for concurrent use.
type Process struct {
	Caller Caller

	start   task
	env     []string
	umask   int
	exposed bool   // the kernel admits debuggers whenever an id changes (fs.suid_dumpable is 1)
	reserve uint64 // permitted, but effective only in With
	dropped bool
}

// Begin records how the process was started and makes it safe to continue: fds 0 to
func Begin() (*Process, error) {
	// execve(2) with an empty argv: Linux passes one empty string from 5.18 on.
	if len(os.Args) == 0 {
		return nil, errors.New("started without even a program name (argv is empty)")
	}
	if err := openStandard(); err != nil {
		return nil, err
	}
	env, err := takeEnv()
	if err != nil {
		return nil, err
	}
	p := &Process{umask: unix.Umask(ownUmask), env: env}
	if p.Caller, err = Who(); err != nil {
		return nil, err
	}
	if p.start, err = ownTask(); err != nil { // all threads are still alike
		return nil, err
	}
	if p.Elevated() {
		err = p.keepDebuggersOut()
	}
	return p, err
}

// keepDebuggersOut forbids debuggers and dumps. After setuid or file capabilities they are
// forbidden already, unless fs.suid_dumpable overrides that (proc_sys_fs(5)).
func (p *Process) keepDebuggersOut() error {
	was, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	p.exposed = err != nil || was == 1
	return undumpable()
}

func undumpable() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid debuggers and dumps (PR_SET_DUMPABLE): %w", err)
	}
	return nil
}

// Elevated reports whether the process was started with more than its caller would have had: other
// ids, or capabilities without being root. Capabilities that the caller handed over (ambient ones)
// count, since Drop removes them too.
func (p *Process) Elevated() bool {
	return p.start.uids != same(p.Caller.UID) || p.start.gids != same(p.Caller.GID) ||
		!p.Caller.Root() && p.start.prm != 0
}
