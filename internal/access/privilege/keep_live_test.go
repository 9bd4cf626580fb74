package privilege

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"

	"vmnet/internal/nstest"
)

var eachField = cmp.AllowUnexported(task{})

// rights are this process's capabilities: a container may not have all.
func rights(t *testing.T) task {
	t.Helper()
	now, err := readTask("/proc/self/status")
	must(t, err)
	return now
}

// Keep and Drop, in all threads, for each kind of privileged program.
func TestLiveKeepAndDrop(t *testing.T) {
	l, full := newLab(t), rights(t).prm
	const admin = 1 << cap.NET_ADMIN
	setuid := [4]int{nobody, 0, 0, 0}
	for name, test := range map[string]struct {
		start
		before task // its uids and gids if they are not the caller's
		groups string
	}{
		"setuid root": {start: start{path: l.setuid}, before: task{uids: setuid, prm: full, eff: full}},
		"setuid, groups": {
			start:  start{path: l.setuid, groups: []uint32{7, 4}},
			before: task{uids: setuid, prm: full, eff: full}, groups: "4 7",
		},
		"setuid and setgid": {
			start:  start{path: l.setids},
			before: task{uids: setuid, gids: setuid, prm: full, eff: full},
		},
		"file +ep": {
			start: start{path: l.ep, groups: []uint32{4}}, before: task{prm: admin, eff: admin},
			groups: "4",
		},
		"file +p": {start: start{path: l.p}, before: task{prm: admin}},
		"ambient": {
			start:  start{path: l.plain, ambient: []uintptr{uintptr(cap.NET_ADMIN)}},
			before: task{prm: admin, eff: admin, inh: admin, amb: admin},
		},
		"ambient, two": {
			start:  start{path: l.plain, ambient: []uintptr{12, 13}},
			before: task{prm: 3 << 12, eff: 3 << 12, inh: 3 << 12, amb: 3 << 12},
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := ok(t, test.start, "caller", "threads=8", "report", "keep=net_admin", "report",
				"read="+l.secret, "tun="+l.tun,
				"drop", "report", "regain", "tun="+l.tun, "drop", "report")
			all, got := o.reports(t)
			before, none := test.before, [4]int{}
			if before.uids == none {
				before.uids = same(nobody)
			}
			if before.gids == none {
				before.gids = same(nobody)
			}
			before.groups = test.groups
			kept := task{uids: same(nobody), gids: same(nobody), groups: test.groups, prm: admin, eff: admin}
			dropped := task{uids: same(nobody), gids: same(nobody), groups: test.groups}
			if diff := cmp.Diff([]task{before, kept, dropped, dropped}, got, eachField); diff != "" {
				t.Errorf("at the start, kept, dropped, dropped again (- want, + got):\n%s", diff)
			}
			if n := len(all[0].Tasks); n < 9 {
				t.Errorf("only %d threads", n)
			}
			if o.lines["read"][0] != "open "+l.secret+": permission denied" {
				t.Errorf("root's file: %s", o.lines["read"])
			}
			if diff := cmp.Diff([]string{"ok", "operation not permitted"}, o.lines["tun"]); diff != "" {
				t.Errorf("TUNSETIFF: %s", diff)
			}
			if !strings.HasSuffix(o.lines["caller"][0], "false true") {
				t.Errorf("caller: %s", o.lines["caller"])
			}
			if slices.Contains(o.lines["regain"], "ok") {
				t.Errorf("a way back to privilege: %s", o.lines["regain"])
			}
		})
	}
}

// Root keeps uid 0 and access to all files, and has after Drop the capabilities that it had before.
func TestLiveRoot(t *testing.T) {
	l, now := newLab(t), rights(t)
	o := ok(t, start{path: l.setuid, root: true}, "caller", "report", "keep=net_admin", "report",
		"read="+l.secret, "tun="+l.tun, "drop", "report")
	_, got := o.reports(t)
	reduced := now
	reduced.eff = now.prm & (1<<cap.NET_ADMIN | 1<<cap.DAC_OVERRIDE | 1<<cap.DAC_READ_SEARCH)
	if diff := cmp.Diff([]task{now, reduced, now}, got, eachField); diff != "" {
		t.Error(diff)
	}
	if o.lines["read"][0] != "ok" || o.lines["tun"][0] != "ok" ||
		!strings.HasSuffix(o.lines["caller"][0], "true false") {
		t.Errorf("%s", o.stdout)
	}
}

// The error names the missing capability and the cure, and no privilege is left.
func TestLiveRefusal(t *testing.T) {
	l := newLab(t)
	for name, test := range map[string]struct {
		start
		launch []string
		want   string
	}{
		"not installed": {
			start: start{path: l.plain},
			want:  "must be installed setuid root (chown root, chmod u+s) or with file capabilities (setcap cap_net_admin+ep)",
		},
		"other capability": {start: start{path: l.other}, want: "the file or the caller gives other capabilities"},
		"no_new_privs":     {start: start{path: l.setuid}, launch: []string{"user=65534", "nnp"}, want: "no_new_privs"},
		"file, the same":   {start: start{path: l.ep}, launch: []string{"user=65534", "nnp"}, want: "no_new_privs"},
		"bounding set": {
			start: start{path: l.setuid}, launch: []string{"bound=12", "user=65534"},
			want: "bounding set",
		},
		"root, bounded": {
			start: start{path: l.plain, root: true}, launch: []string{"bound=12"},
			want: "bounding set",
		},
		"nosuid": {
			start: start{path: l.setuid}, launch: []string{"nosuid=" + l.dir, "user=65534"},
			want: "mounted nosuid",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, steps := test.start, []string{"trykeep=net_admin", "report"}
			if test.launch != nil {
				steps = append(append(append([]string{"launch"}, test.launch...), "--", s.path), steps...)
				s.path, s.root = l.plain, true
			}
			o := ok(t, s, steps...)
			if got := o.lines["trykeep"][0]; !strings.HasPrefix(got, "CAP_NET_ADMIN is missing: ") ||
				!strings.Contains(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
			_, got := o.reports(t)
			if want := (task{uids: same(nobody), gids: same(nobody)}); !test.root && got[0] != want {
				t.Errorf("left: %+v", got[0])
			}
		})
	}
}

// file capabilities on a kernel that executes the file with an effective bit and a
// bounding set without it do not even start: EPERM (capabilities(7), safety checking).
func TestLiveFileBeyondTheBounds(t *testing.T) {
	l := newLab(t)
	o := run(t, start{path: l.plain, root: true}, "launch", "bound=12", "user=65534", "--", l.ep, "report")
	if o.code == 0 || !strings.Contains(o.stderr, "operation not permitted") {
		t.Errorf("exit status %d: %s%s", o.code, o.stdout, o.stderr)
	}
}

// Securebits come down from the caller's manager (capabilities(7)): whatever they do to
// setuid root, Drop leaves nothing.
func TestLiveSecurebits(t *testing.T) {
	l := newLab(t)
	for name, test := range map[string]struct{ bits, want string }{
		"SECBIT_NOROOT":           {"1", "(bounding set and securebits)"},
		"SECBIT_NO_SETUID_FIXUP":  {"4", "ok"},
		"SECBIT_KEEP_CAPS_LOCKED": {"32", "(PR_SET_KEEPCAPS; do the securebits forbid it?)"},
	} {
		t.Run(name, func(t *testing.T) {
			o := ok(t, start{path: l.plain, root: true}, "launch", "securebits="+test.bits, "user=65534", "--",
				l.setuid, "threads=4", "trykeep=net_admin", "drop", "report", "regain")
			_, got := o.reports(t)
			if want := (task{uids: same(nobody), gids: same(nobody)}); got[0] != want ||
				slices.Contains(o.lines["regain"], "ok") {
				t.Errorf("left: %+v", got[0])
			}
			if !strings.Contains(o.lines["trykeep"][0], test.want) {
				t.Errorf("got %q, want %q", o.lines["trykeep"][0], test.want)
			}
		})
	}
}

// Without Keep, Drop does it all.
func TestLiveDropAtOnce(t *testing.T) {
	l := newLab(t)
	for _, s := range []start{
		{path: l.setuid},
		{path: l.setids},
		{path: l.ep},
		{path: l.p},
		{path: l.plain, ambient: []uintptr{12}},
		{path: l.plain},
	} {
		_, got := ok(t, s, "threads=4", "drop", "report").reports(t)
		if want := (task{uids: same(nobody), gids: same(nobody)}); got[0] != want {
			t.Errorf("left: %+v", got[0])
		}
	}
}

func TestLiveHarden(t *testing.T) {
	l := newLab(t)
	for name, s := range map[string]start{
		"setuid":  {path: l.setuid},
		"file":    {path: l.ep},
		"ambient": {path: l.plain, ambient: []uintptr{uintptr(cap.NET_ADMIN)}},
	} {
		t.Run(name, func(t *testing.T) {
			o := ok(t, s, "report", "keep=net_admin", "report", "threads=4", "harden", "report", "tun="+l.tun)
			all, _ := o.reports(t)
			if all[0].Dumpable != 0 {
				t.Errorf("dumpable at the start: %d", all[0].Dumpable)
			}
			if all[1].NoNewPrivs != 0 || all[1].Dumpable != all[0].Dumpable {
				t.Errorf("Keep has hardened: %+v", all[1])
			}
			hard := all[2]
			if hard.Dumpable != 0 || hard.Core != 0 || hard.NoNewPrivs != 1 {
				t.Errorf("hardened: dumpable %d, core %d, no_new_privs %d", hard.Dumpable, hard.Core, hard.NoNewPrivs)
			}
			for _, s := range hard.Tasks {
				if !strings.Contains(s, "\nNoNewPrivs:\t1\n") {
					t.Errorf("a thread without no_new_privs:\n%s", s)
				}
			}
			if o.lines["tun"][0] != "ok" {
				t.Errorf("TUNSETIFF: %s", o.lines["tun"])
			}
		})
	}
}

// An fd number is the caller's only if the caller has passed the fd on.
func TestLiveFDs(t *testing.T) {
	l := newLab(t)
	f, err := os.Open(os.DevNull)
	must(t, err)
	defer f.Close()
	o := ok(t, start{path: l.setuid, files: []*os.File{f, f, f}}, "keep=net_admin", "open=/etc/passwd", "inherited=3",
		"inherited=5", "inherited=900",
		"inherited=6", "inherited=7", "closeinherited=4", "inherited=3", "inherited=4", "inherited=5", "fds")
	want := []string{"ok", "ok", "no", "no", "no", "no", "ok", "no"}
	var got []string
	for _, s := range o.lines["inherited"] {
		if strings.HasSuffix(s, "the caller has not handed it over") {
			s = "no"
		}
		got = append(got, s)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s\n%s", diff, o.stdout)
	}
	if fds := o.lines["fds"][0]; !strings.Contains(fds, " 4:/dev/null") || !strings.Contains(fds, ":/etc/passwd") {
		t.Errorf("fds: %s", fds)
	}
}

// Above the numbers that may be ours, every fd is the caller's and is closed, except those to keep.
func TestLiveManyFDs(t *testing.T) {
	l := newLab(t)
	f, err := os.Open(os.DevNull)
	must(t, err)
	defer f.Close()
	o := ok(t, start{path: l.setuid, files: slices.Repeat([]*os.File{f}, 100)}, // 3 to 102
		"keep=net_admin", "open=/etc/passwd", "closeinherited=80", "inherited=3", "inherited=79", "inherited=80",
		"inherited=81", "inherited=102", "fds")
	for i, want := range []bool{false, false, true, false, false} {
		if s := o.lines["inherited"][i]; (s == "ok") != want {
			t.Errorf("step %d: %s\n%s", i, s, o.stdout)
		}
	}
	if fds := o.lines["fds"][0]; !strings.Contains(fds, " 80:/dev/null") || !strings.Contains(fds, ":/etc/passwd") {
		t.Errorf("fds: %s", fds)
	}
}

// System calls report the same credentials of a thread as /proc.
func TestLiveOwnTask(t *testing.T) {
	nstest.Require(t, "root", os.Geteuid() == 0, "run it as root")
	var got, want task
	var errs [6]error
	onDyingThread(t, func() {
		raw := func(nr, a, b, c uintptr) error {
			if _, _, errno := unix.RawSyscall(nr, a, b, c); errno != 0 {
				return errno
			}
			return nil
		}
		groups := [3]uint32{27, 4, 4000000000}
		errs[0] = raw(unix.SYS_SETGROUPS, 3, uintptr(unsafe.Pointer(&groups)), 0)
		errs[1] = raw(unix.SYS_SETRESGID, 11, 12, 4000000001)
		own, _ := ownTask()
		own.inh = bits(cap.NET_ADMIN, cap.CHOWN)
		errs[2] = setOwnCaps(own)
		errs[3] = unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(cap.NET_ADMIN), 0, 0)
		_, _ = unix.SetfsuidRetUid(77)
		got, errs[4] = ownTask()
		want, errs[5] = readTask("/proc/thread-self/status")
	})
	must(t, errors.Join(errs[:]...))
	if got != want || got.amb != bits(cap.NET_ADMIN) || got.uids[3] != 77 || got.gids[2] != 4000000001 {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// onDyingThread runs f on a thread that has exited when it returns. The first thread of a process
// cannot exit: Go keeps it.
func onDyingThread(t *testing.T, f func()) {
	t.Helper()
	ran := make(chan int)
	var run func()
	run = func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			done := make(chan struct{})
			go func() { defer close(done); run() }()
			<-done // while this one is taken
			runtime.UnlockOSThread()
			return
		}
		f()
		ran <- unix.Gettid()
	}
	go run()
	path := fmt.Sprintf("/proc/self/task/%d", <-ran)
	nstest.Eventually(t, 20*time.Second, path+" is gone", func() bool {
		_, err := os.Stat(path)
		return errors.Is(err, fs.ErrNotExist)
	})
}
