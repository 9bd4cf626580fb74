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
	defaultPath = "/usr/local/bin:/usr/bin:/bin" // where PATH is not set, as with execvp(3)
)

// takeEnv empties the environment and returns what the caller gave.
//
// For ourselves nothing in it is trusted: PATH, TMPDIR, XDG_*, and what libraries
// ask for. LD_* means nothing to a static program. What Go's runtime has honoured
// before main is out of reach, in setuid programs as well: GOGC, GOMEMLIMIT and
// GOMAXPROCS only make it slower or bigger; GODEBUG does more (with sbrk=1,
// another allocator, Go hangs now and then, even before main; the caller may kill
// it) and is refused in secure mode (AT_SECURE). There Go also sets GOTRACEBACK=none, so a crash prints no memory; that is
// taken out again, and a GOTRACEBACK of the caller's is lost.
func takeEnv() ([]string, error) {
	env := os.Environ()
	os.Clearenv()
	if !secure() {
		return unmask(env), nil
	}
	if slices.ContainsFunc(env, func(s string) bool { return strings.HasPrefix(s, "GODEBUG=") }) {
		return nil, errors.New("GODEBUG is set, which a privileged program does not run under: unset it")
	}
	return unmask(slices.DeleteFunc(env, func(s string) bool { return s == "GOTRACEBACK=none" })), nil
}

func secure() bool {
	aux, err := unix.Auxv()
	return err != nil || slices.Contains(aux, [2]uintptr{atSecure, 1})
}

// Getenv is a variable of the caller's environment: to be trusted as much as the
// caller, so to be used with the caller's rights only. "" where it is not set.
func (p *Process) Getenv(key string) string {
	for _, s := range p.env {
		if k, v, _ := strings.Cut(s, "="); k == key {
			return v
		}
	}
	return ""
}

// Find looks a program up in the caller's PATH as execvp(3) does, with the
// caller's rights. A name with a slash is itself the path.
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

// executable asks with the real ids, which are the caller's.
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
		return fmt.Errorf("find %s: %w: it is not a file to execute", path, unix.EACCES)
	}
	return nil
}

// Exec lets a program take this process's place, as if the caller had started it
// itself: with the caller's environment, umask, limits, and signals. It refuses
// unless Drop has been there. It returns only with an error, after which the
// privileges are still dropped.
//
// What Go's runtime changes before main and does not give back (initsig and
// blockableSig of runtime/signal_unix.go), because nothing tells how it was:
//   - of the signals that the caller ignored, only SIGHUP, SIGINT, SIGCONT, SIGTSTP, SIGTTIN
//     and SIGTTOU still are; and where os/signal was used on them, only after signal.Reset;
//   - of those that the caller blocked, these are open: the ones that end a Go
//     program (SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGABRT), those of faults (SIGILL, SIGTRAP, SIGBUS, SIGFPE,
//     SIGSEGV, SIGSTKFLT, SIGSYS), SIGCHLD, SIGPROF, SIGURG, and 32 to 34.
//
// The kernel itself lowers a soft stack limit above 8 MiB to that when it starts a
// setuid program or one with file capabilities (begin_new_exec in fs/exec.c).
// The limit of open files is the caller's again by syscall.Exec.
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

// withExtra gives programs one value for each name: which of two counts is up to them.
func withExtra(env, extra []string) []string {
	env = slices.Clone(env)
	for _, e := range extra {
		name, _, _ := strings.Cut(e, "=")
		env = slices.DeleteFunc(env, func(s string) bool { return strings.HasPrefix(s, name+"=") })
	}
	return append(env, extra...)
}
