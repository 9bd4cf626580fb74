package privilege

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// TestLiveHostileStart starts the program in every way that the kernel permits, always in a
// directory that the caller may not enter. It works, or there is a clear error; nothing hangs,
// panics or stays privileged.
func TestLiveHostileStart(t *testing.T) {
	l := newLab(t)
	gone, barred := l.own+"/gone", t.TempDir()
	must(t, os.Chmod(barred, 0o700))
	const goDies = "fatal error: " // from Go's runtime, before or without main: exit status 2
	for _, test := range []struct {
		name   string
		launch []string
		steps  []string
		want   string // in stderr; "" for success
	}{
		{"all signals blocked and ignored", []string{"ignore=all", "block=all"}, nil, ""},
		{"ten files", []string{"nofile=10"}, nil, ""},
		// Go's runtime opens the two files of a version 1 cgroup at each start, and forgets
		// to close the first one if it cannot open the second one.
		{"five files", []string{"nofile=5"}, nil, ""},
		{"three files", []string{"nofile=3"}, nil, "too many open files"},
		{"no memory to speak of", []string{"as=50000000"}, nil, goDies},
		{"no file may grow", []string{"fsize=0"}, []string{"write=" + l.own + "/f"}, ""},
		{"no queue for signals", []string{"sigpending=0"}, nil, "raise the limit (ulimit -i)"},
		{
			"a full queue for signals",
			[]string{"block=60", "sigpending=20", "queue=20"},
			nil,
			"raise the limit (ulimit -i)",
		},
		{"no permission for anything new", []string{"umask=511"}, nil, ""},
		{"a cwd that is gone", []string{"cwd=" + gone, "rmcwd=" + gone}, nil, ""},
		{"a tiny stack", []string{"stack=65536"}, nil, ""},
		{"fd 0 closed", []string{"close=0"}, []string{"fds"}, ""},
	} {
		for way, path := range map[string]string{"setuid": l.setuid, "file": l.ep} {
			t.Run(test.name+"/"+way, func(t *testing.T) {
				if err := os.Mkdir(gone, 0o777); err != nil && !os.IsExist(err) {
					t.Fatal(err)
				}
				args := append(append(append([]string{"launch", "cwd=" + barred, "user=65534"}, test.launch...), "--",
					path), test.steps...)
				o := run(t, start{path: l.plain, root: true}, append(args, "trykeep=net_admin", "drop", "regain")...)
				done := strings.Contains(o.stdout, "trykeep ok\ndrop ok\nregain operation not permitted")
				if test.want == "" && (o.code != 0 || o.stderr != "" || !done) ||
					test.want != "" && (done || !strings.Contains(o.stderr+o.stdout, test.want)) {
					t.Errorf("exit status %d, want %q\n%s%s", o.code, test.want, o.stdout, o.stderr)
				}
				if strings.Contains(o.stderr, "panic:") || strings.Contains(o.stderr, "goroutine ") || o.code < 0 {
					t.Errorf("exit status %d\n%s", o.code, o.stderr)
				}
			})
		}
	}
}

// If a user may have no more threads, the limit applies to a setuid program once it has
// returned to the user's id, and to one with file capabilities from the start.
func TestLiveNoMoreThreads(t *testing.T) {
	l := newLab(t)
	for _, path := range []string{l.setuid, l.ep} {
		o := run(t, start{path: l.plain, root: true}, "launch", "user=65534", "nproc=1", "--",
			path, "keep=net_admin", "threads=20", "drop")
		if o.code != 2 || !strings.Contains(o.stderr, "(ulimit -u)") || strings.Contains(o.stderr, "panic:") ||
			strings.Contains(o.stdout, "drop") {
			t.Errorf("exit status %d\n%s%s", o.code, o.stdout, o.stderr)
		}
	}
}

func TestLiveHostileFDs(t *testing.T) {
	l := newLab(t)
	for _, path := range []string{l.setuid, l.ep, l.plain} {
		list := l.own + "/fds"
		o := run(t, start{path: l.plain, root: true}, "launch", "user=65534", "close=0", "close=1", "close=2", "--",
			path, "trykeep=net_admin", "fds="+list)
		got, err := os.ReadFile(list)
		for _, fd := range []string{"0:", "1:", "2:"} {
			if !slices.Contains(strings.Fields(string(got)), fd+"/dev/null") {
				t.Errorf("fd %s is not on /dev/null: %s", fd, got)
			}
		}
		if err != nil || o.code != 0 {
			t.Errorf("exit status %d, %v: %s", o.code, err, got)
		}
		_ = os.Remove(list)
	}
}

func TestLiveHostileArgvAndEnvironment(t *testing.T) {
	l := newLab(t)
	for _, path := range []string{l.setuid, l.ep} {
		if o := run(t, start{path: l.plain, root: true}, "launch", "user=65534", "argc0", "--", path); o.code != 0 &&
			o.code != 3 || strings.Contains(o.stderr, "panic") {
			t.Errorf("no argv: exit status %d\n%s", o.code, o.stderr)
		}
		env := []string{
			"PATH=/nowhere", "GOTRACEBACK=crash", "GOGC=1", "GOMEMLIMIT=1", "GOMAXPROCS=1",
			"LD_PRELOAD=/x.so", "TMPDIR=/root", "=", "NOVALUE", strings.Repeat("X", 100000) + "=1",
		}
		o := ok(t, start{path: path, env: env}, "keep=net_admin", "threads=3", "drop", "regain",
			"getenv=TMPDIR", "getenv=PATH")
		if !strings.Contains(o.stdout, "regain operation not permitted") ||
			!strings.Contains(o.stdout, "getenv /root|\ngetenv /nowhere|\n") {
			t.Errorf("%s", o.stdout)
		}
		if o = run(t, start{path: path, env: []string{"GODEBUG=madvdontneed=1"}}, "keep=net_admin"); o.code != 3 ||
			!strings.Contains(o.stderr, "GODEBUG is set") {
			t.Errorf("GODEBUG: exit status %d\n%s", o.code, o.stderr)
		}
		if o = run(t, start{path: path, env: env}, "panic"); o.code != 2 || strings.Contains(o.stderr, "goroutine ") {
			t.Errorf("a crash prints more than its cause: exit status %d\n%s", o.code, o.stderr)
		}
	}
}
