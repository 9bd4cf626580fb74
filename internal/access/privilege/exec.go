package privilege

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	atSecure    = 23 // AT_SECURE of getauxval(3)
	maxPath     = 4096
	defaultPath = "/usr/local/bin:/usr/bin:/bin" // used without PATH, as in execvp(3)
)

// takeEnv empties the environment and returns the caller's.
//
// This program trusts nothing in it: not PATH, TMPDIR or XDG_*, nor the variables of libraries.
// LD_* means nothing to a static program. Variables that Go's runtime has read before main are out
// of reach, in setuid programs as well: GOGC, GOMEMLIMIT and GOMAXPROCS only make it slower or
// bigger. GODEBUG does more (with sbrk=1, another allocator, Go hangs now and then, even before
// main; the caller may kill it) and is refused in secure mode (AT_SECURE). There Go also sets
// GOTRACEBACK=none, so that a crash prints no memory. takeEnv removes that setting again, and the
// caller's GOTRACEBACK is lost.
func takeEnv() ([]string, error) {
	env := os.Environ()
	os.Clearenv()
	if !secure() {
		return unmask(env), nil
	}
	if slices.ContainsFunc(env, func(s string) bool { return strings.HasPrefix(s, "GODEBUG=") }) {
		return nil, errors.New("GODEBUG is set, and a privileged program does not run with it (unset it)")
	}
	return unmask(slices.DeleteFunc(env, func(s string) bool { return s == "GOTRACEBACK=none" })), nil
}

func secure() bool {
	aux, err := unix.Auxv()
	return err != nil || slices.Contains(aux, [2]uintptr{atSecure, 1})
}

// Getenv returns a variable of the caller's environment, or "" if it is not set. Trust it as much
// as the caller, and use it with the caller's privileges only.
func (p *Process) Getenv(key string) string {
	for _, s := range p.env {
		if k, v, _ := strings.Cut(s, "="); k == key {
			return v
		}
	}
	return ""
}

// Find looks a program up in the caller's PATH as execvp(3) does, with the caller's privileges. A
// name with a slash is the path itself.
func (p *Process) Find(name string) (string, error) {
	if name == "" {
		return "", errors.New("find a program without a name: name one")
	}
	if strings.Contains(name, "/") {
		return name, executable(name)
	}
	path := p.Getenv("PATH")
	if path == "" {
		path = defaultPath
	}
	var denied error
	for dir := range strings.SplitSeq(path, ":") {
		file := filepath.Join(dir, name)
		if dir == "" {
			file = "./" + name
		}
		err := executable(file)
		if err == nil {
			return file, nil
		}
		if denied == nil && errors.Is(err, unix.EACCES) {
			denied = err
		}
	}
	if denied != nil {
		return "", denied
	}
	return "", fmt.Errorf("find %s: not in PATH (%.200s): install it or give its path", name, path)
}

// executable checks with the real ids, which are the caller's.
func executable(path string) error {
	if len(path) >= maxPath {
		return fmt.Errorf("find a program: its path of %d bytes is too long", len(path))
	}
	if err := unix.Access(path, unix.X_OK); err != nil {
		return fmt.Errorf("find %s: %w", path, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return fmt.Errorf("find %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("find %s: %w: it is not an executable file", path, unix.EACCES)
	}
	return nil
}

// Exec replaces this process by a program, as if the caller had started the program itself: with
// the caller's environment, umask, limits and signals. It refuses to do so before Drop. It returns
// only with an error, and the privileges are still dropped then.
//
// Go's runtime makes some changes before main that Exec does not undo, since the former state is
// unknown (initsig and blockableSig of runtime/signal_unix.go):
//   - Of the signals that the caller ignored, only SIGHUP, SIGINT, SIGCONT, SIGTSTP, SIGTTIN and
//     SIGTTOU are still ignored, and after use of os/signal only if signal.Reset was called.
//   - Of the signals that the caller blocked, these are unblocked: those that end a Go program
//     (SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGABRT), those of faults (SIGILL, SIGTRAP, SIGBUS,
//     SIGFPE, SIGSEGV, SIGSTKFLT, SIGSYS), SIGCHLD, SIGPROF, SIGURG, and 32 to 34.
//
// The kernel lowers a soft stack limit above 8 MiB to 8 MiB when it starts a setuid program or one
// with file capabilities (begin_new_exec in fs/exec.c). syscall.Exec restores the caller's limit of
// open files.
func (p *Process) Exec(path string, argv []string, extra ...string) error {
	if !p.dropped {
		return fmt.Errorf("execute %s: privileges have not been dropped", path)
	}
	if len(argv) == 0 {
		return fmt.Errorf("execute %s: no program name to give it (argv is empty)", path)
	}
	unix.Umask(p.umask)
	err := syscall.Exec(path, argv, withExtra(p.env, extra))
	unix.Umask(ownUmask)
	return fmt.Errorf("execute %s: %w", path, err)
}

// withExtra keeps one value for each name: which of two values counts would be up to the program.
func withExtra(env, extra []string) []string {
	env = slices.Clone(env)
	for _, e := range extra {
		name, _, _ := strings.Cut(e, "=")
		env = slices.DeleteFunc(env, func(s string) bool { return strings.HasPrefix(s, name+"=") })
	}
	return append(env, extra...)
}
