// Package privilege is for programs that are installed setuid root or with file
// capabilities: who started this process, how it keeps only what it needs, how
// it gets rid of that too, and how it then becomes the caller's own program.
// The contracts are those of capabilities(7), credentials(7) and execve(2).
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
// All changes are made in all threads of the process. An error of Begin, Keep or
// Drop means: say it and exit.
//
// There is neither a seccomp filter nor a Landlock domain: after Keep the process
// can do no more to files, processes or the kernel's other interfaces than its
// caller can without it, and the capability that is left works over netlink and
// ioctl, which a filter would have to let pass.
package privilege

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// ownUmask keeps what a privileged process makes from everybody else.
const ownUmask = 0o077

// Caller is who started the process: its real ids, which neither setuid nor file
// capabilities change.
type Caller struct {
	UID, GID int
	Groups   []int // supplementary groups
}

// Who asks the kernel who started this process.
func Who() (Caller, error) {
	groups, err := unix.Getgroups()
	if err != nil {
		return Caller{}, fmt.Errorf("list the caller's supplementary groups: %w", err)
	}
	return Caller{UID: unix.Getuid(), GID: unix.Getgid(), Groups: groups}, nil
}

// Root tells whether the caller is root, and so may do everything without us.
func (c Caller) Root() bool { return c.UID == 0 }

// In tells whether the caller has the group, as its own or a supplementary one.
func (c Caller) In(gid int) bool { return c.GID == gid || slices.Contains(c.Groups, gid) }

// Process is this process and how it was started. It is not for concurrent use.
type Process struct {
	Caller Caller

	start   task
	env     []string
	umask   int
	exposed bool   // the kernel lets debuggers in whenever an id changes (fs.suid_dumpable is 1)
	reserve uint64 // permitted, but in effect in With alone
	dropped bool
}

// Begin looks at how the process was started and makes it safe to go on: fds 0 to
// 2 are open (those that were closed, on /dev/null), the umask is 077, and the
// environment is put aside (see Process.Getenv). To be called before anything else
// opens files or reads the environment.
func Begin() (*Process, error) {
	// execve(2) with an empty argv: Linux makes it one empty string from 5.18 on.
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
	if p.start, err = ownTask(); err != nil { // all threads are alike yet
		return nil, err
	}
	if p.Elevated() {
		err = p.keepDebuggersOut()
	}
	return p, err
}

// keepDebuggersOut forbids debuggers and dumps: after setuid or file capabilities it is so already, unless
// fs.suid_dumpable says else (proc_sys_fs(5)).
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

// Elevated tells whether the process was started with more than its caller would
// have had: other ids, or capabilities without being root. Capabilities that
// the caller handed over (ambient ones) count, for Drop takes them too.
func (p *Process) Elevated() bool {
	return p.start.uids != same(p.Caller.UID) || p.start.gids != same(p.Caller.GID) ||
		!p.Caller.Root() && p.start.prm != 0
}
