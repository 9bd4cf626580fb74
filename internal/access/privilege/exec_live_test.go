package privilege

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// asStarted is what a program sees of its start, without what differs between two starts.
func asStarted(out string) []string {
	_, out, _ = strings.Cut(out, "Name:\t")
	differs := []string{
		"Pid", "Tgid", "NStgid", "NSpid", "NSpgid", "NSsid", "State", "PPid", "Vm", "Rss", "Threads",
		"voluntary", "nonvoluntary", "Huge", "SigQ",
	}
	var lines []string
	for line := range strings.Lines("Name:\t" + out) {
		if !slices.ContainsFunc(differs, func(s string) bool { return strings.HasPrefix(line, s) }) {
			lines = append(lines, line)
		}
	}
	return lines
}

// The program finds everything as if the caller had started it directly.
func TestLiveExecAsCaller(t *testing.T) {
	l := newLab(t)
	files := "cat /proc/self/status /proc/self/limits /proc/self/environ"
	env := []string{"PATH=/usr/bin:/bin", "A=1", "GOGC=50", "LD_PRELOAD=", "TMPDIR=/x y", "EMPTY="}
	for name, changes := range map[string][]string{
		"as usual":     {},
		"signals":      {"ignore=1,2,20,21,22", "block=10,12,13,14,18,20,28,29,64"},
		"with Notify":  {"ignore=2", "block=13"},
		"umask, cwd":   {"umask=2", "cwd=" + l.own},
		"strict umask": {"umask=511"},
		"limits":       {"core=1000", "memlock=4096", "nofile=64", "fsize=1000000", "stack=4000000"},
	} {
		for way, path := range map[string]string{"setuid": l.setuid, "file": l.ep} {
			t.Run(name+"/"+way, func(t *testing.T) {
				launch := append(append([]string{"launch"}, changes...), "user=65534", "--")
				direct := ok(t, start{path: l.plain, root: true, env: env},
					append(launch, append([]string{"/usr/bin/cat"}, strings.Fields(files)[1:]...)...)...)
				steps := []string{path, "threads=4", "keep=net_admin", "drop", "exec=" + files}
				if name == "with Notify" {
					steps = slices.Insert(steps, 1, "notify")
				}
				through := ok(t, start{path: l.plain, root: true, env: env}, append(launch, steps...)...)
				if diff := cmp.Diff(asStarted(direct.stdout), asStarted(through.stdout)); diff != "" {
					t.Errorf("started by the caller (-) and through us (+):\n%s", diff)
				}
			})
		}
	}
}

func TestLiveExecRest(t *testing.T) {
	l := newLab(t)
	f, err := os.Open(os.DevNull)
	must(t, err)
	defer f.Close()
	steps := func(program string) []string { return []string{"keep=net_admin", "drop", "exec=" + program} }
	for _, path := range []string{l.setuid, l.ep} {
		direct := ok(t, start{path: "/usr/bin/ls", files: []*os.File{f, f}}, "/proc/self/fd")
		o := ok(t, start{path: path, files: []*os.File{f, f}}, steps("ls /proc/self/fd")...)
		if diff := cmp.Diff("keep ok\ndrop ok\n"+direct.stdout, o.stdout); diff != "" {
			t.Errorf("fds: %s", diff)
		}
		if o = ok(t, start{path: path}, steps("stat -c %u /proc/self/environ")...); !strings.HasSuffix(o.stdout,
			"ok\n65534\n") {
			t.Errorf("the program is not dumpable:\n%s", o.stdout)
		}
		o = ok(t, start{path: l.plain, root: true},
			append([]string{"launch", "cwd=" + l.own, "user=65534", "--", path},
				steps("readlink /proc/self/cwd")...)...)
		if !strings.HasSuffix(o.stdout, l.own+"\n") {
			t.Errorf("cwd:\n%s", o.stdout)
		}
		if o = run(t, start{path: path}, "keep=net_admin", "exec=true"); o.code != 3 ||
			!strings.Contains(o.stderr, "have not been dropped") {
			t.Errorf("executed with privileges: %d %s", o.code, o.stderr)
		}
	}
	o := ok(t, start{path: l.ep, env: []string{"XDG_RUNTIME_DIR=/x"}}, "getenv=XDG_RUNTIME_DIR",
		"getenv=GOTRACEBACK", "find=sh")
	if diff := cmp.Diff([]string{"/x|", "|"}, o.lines["getenv"]); diff != "" {
		t.Error(diff)
	}
}

// TestLiveExecSignals compares what Go's runtime does not restore with what Exec documents. It
// fails if a new version of Go restores more or less.
func TestLiveExecSignals(t *testing.T) {
	l := newLab(t)
	o := ok(t, start{path: l.plain, root: true}, "launch", "ignore=all", "block=all", "user=65534", "--",
		l.setuid, "keep=net_admin", "drop", "exec=cat /proc/self/status")
	got := map[string]uint64{}
	for line := range strings.Lines(o.stdout) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":\t")
		if strings.HasPrefix(key, "Sig") && key != "SigQ" {
			n, err := strconv.ParseUint(value, 16, 64)
			must(t, err)
			got[key] = n
		}
	}
	ignored := signalSet(unix.SIGHUP, unix.SIGINT, unix.SIGCONT, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU)
	open := signalSet(unix.SIGKILL, unix.SIGSTOP, unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGCHLD,
		unix.SIGPROF, unix.SIGURG,
		unix.SIGABRT, unix.SIGSYS, unix.SIGSEGV, unix.SIGBUS, unix.SIGFPE, unix.SIGILL, unix.SIGTRAP,
		unix.SIGSTKFLT, 32, 33, 34)
	got["SigIgn"] &^= signalSet(32) // inherited from what started the test: make(1) ignores it
	if got["SigIgn"] != ignored || got["SigBlk"] != ^open {
		t.Errorf("ignored %#x, want %#x; blocked %#x, want %#x", got["SigIgn"], ignored, got["SigBlk"], ^open)
	}
}

func signalSet(all ...unix.Signal) uint64 {
	var set uint64
	for _, s := range all {
		set |= 1 << (s - 1)
	}
	return set
}
