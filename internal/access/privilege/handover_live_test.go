package privilege

import (
	"os"
	"strings"
	"testing"

	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// The other program has the caller's ids and exactly the capabilities that were passed on, in all
// threads, and drops them like its own.
func TestLiveHandOver(t *testing.T) {
	l := newLab(t)
	const admin = 1 << cap.NET_ADMIN
	both := uint64(admin | 1<<cap.SYS_ADMIN)
	own := task{uids: same(nobody), gids: same(nobody)}
	with := func(caps uint64) task { t := own; t.prm, t.eff, t.inh, t.amb = caps, caps, caps, caps; return t }
	for name, c := range map[string]struct {
		start
		caps string
		want task
	}{
		"setuid root":            {start{path: l.setuid}, "net_admin", with(admin)},
		"setuid, two":            {start{path: l.setuid}, "net_admin+sys_admin", with(both)},
		"setuid and setgid":      {start{path: l.setids}, "net_admin", with(admin)},
		"file +ep":               {start{path: l.ep}, "net_admin+sys_admin", with(admin)},
		"file +p":                {start{path: l.p}, "net_admin", with(admin)},
		"another capability":     {start{path: l.other}, "net_admin", own},
		"no privilege":           {start{path: l.plain}, "net_admin+sys_admin", own},
		"ambient, two, pass one": {start{path: l.plain, ambient: []uintptr{12, 13}}, "net_admin", with(admin)},
	} {
		t.Run(name, func(t *testing.T) {
			c.env = []string{"PATH=/usr/bin:/bin", "LD_PRELOAD=/x.so", "TMPDIR=/x y", "EMPTY="}
			rest := "name environ getenv=LD_PRELOAD getenv=TMPDIR report tun=" + l.tun +
				" trykeep=net_admin report tun=" + l.tun + " read=" + l.secret + " drop report regain"
			o := ok(t, c.start, "threads=4", "handover="+l.plain+" "+c.caps+" "+rest)
			reports, tasks := o.reports(t)
			kept := own
			if c.want.prm != 0 {
				kept.prm, kept.eff = admin, admin
			}
			if tasks[0] != c.want || tasks[1] != kept || tasks[2] != own {
				t.Errorf("%+v\nwant %+v\n%+v", tasks, c.want, kept)
			}
			if c.want.prm != 0 && reports[0].Dumpable != 0 || reports[0].NoNewPrivs != 0 {
				t.Errorf("%+v", reports[0])
			}
			may := c.want.prm != 0
			if (o.lines["tun"][0] == "ok") != may || (o.lines["tun"][1] == "ok") != may || o.lines["read"][0] == "ok" ||
				strings.Contains(strings.Join(o.lines["regain"], ""), "ok") {
				t.Errorf("%s", o.stdout)
			}
			if o.lines["name"][0] != "by its own name" || o.lines["environ"][0] != "" ||
				o.lines["getenv"][0] != "/x.so|" || o.lines["getenv"][1] != "/x y|" {
				t.Errorf("%s", o.stdout)
			}
		})
	}
}

// Root stays root, and the program that is finally executed has the caller's environment.
func TestLiveHandOverByRoot(t *testing.T) {
	l := newLab(t)
	o := ok(t, start{path: l.plain, root: true, env: []string{"PATH=/usr/bin:/bin", "LD_X=1"}},
		"handover="+l.plain+" net_admin caller keep=net_admin read="+l.secret+" drop read="+l.secret)
	if o.lines["caller"][0] != "0 0 [] true false" || o.lines["read"][0] != "ok" || o.lines["read"][1] != "ok" {
		t.Errorf("%s", o.stdout)
	}
}

// A program that others can write is not executed, and then no privilege is left.
func TestLiveHandOverRefuses(t *testing.T) {
	l := newLab(t)
	program, err := os.ReadFile(l.plain)
	must(t, err)
	theirs, open, directory := l.own+"/theirs", l.dir+"/open", l.dir+"/directory"
	for _, path := range []string{theirs, open} {
		must(t, os.WriteFile(path, program, 0o755))
	}
	must(t, os.Chown(theirs, nobody, nobody))
	must(t, os.Chmod(open, 0o775))
	must(t, os.Mkdir(directory, 0o755))
	// Paths that others can lead to another of root's programs.
	ajar, rootsLink, theirLink, loop := l.dir+"/ajar", l.dir+"/rootsLink", l.own+"/link", l.dir+"/loop"
	must(t, os.Mkdir(ajar, 0o755))
	must(t, os.Chmod(ajar, 0o777))
	for link, target := range map[string]string{
		ajar + "/program": l.plain, rootsLink: "ajar/program",
		theirLink: l.plain, loop: "loop",
	} {
		must(t, os.Symlink(target, link))
	}
	for path, want := range map[string]string{
		theirs: "users other than root may write " + l.own, open: "users other than root may write " + open,
		directory:         "it is not a program",
		ajar + "/program": "users other than root may write " + ajar, rootsLink: "users other than root may write " +
			ajar, theirLink: "users other than root may write " + l.own,
		l.dir + "/ajar/../plain": "users other than root may write " + ajar, loop: "too many levels of symbolic links",
		"plain": "the path is not absolute", l.dir + "/none": "no such file or directory",
		l.secret: "permission denied",
	} {
		for _, from := range []string{l.setuid, l.ep} {
			o := ok(t, start{path: from}, "handover="+path+" net_admin name", "report", "regain", "tun="+l.tun)
			_, tasks := o.reports(t)
			if want := (task{uids: same(nobody), gids: same(nobody)}); tasks[0] != want || o.lines["name"] != nil ||
				o.lines["tun"][0] == "ok" || strings.Contains(strings.Join(o.lines["regain"], ""), "ok") {
				t.Errorf("%s: %s", path, o.stdout)
			}
			if !strings.Contains(o.lines["handover"][0], want) {
				t.Errorf("%s: %q, want %q", path, o.lines["handover"][0], want)
			}
		}
	}
	good := l.dir + "/good"
	must(t, os.Symlink("plain", good))
	if o := ok(t, start{path: l.setuid}, "handover="+good+" net_admin name"); len(o.lines["name"]) != 1 {
		t.Errorf("root's own link: %s", o.stdout)
	}
	// A process without more privilege than its caller may execute any program.
	if o := ok(t, start{path: l.plain}, "handover="+theirs+" net_admin name"); o.lines["name"] != nil &&
		o.lines["name"][0] != "by its own name" {
		t.Errorf("%s", o.stdout)
	}
}

// A caller's limit of pending signals does not affect privileges.
func TestLiveHandOverHostile(t *testing.T) {
	l := newLab(t)
	for _, way := range []string{l.setuid, l.ep} {
		for _, limit := range []string{"sigpending=0", "nofile=10", "umask=511", "ignore=all", "stack=65536"} {
			o := run(t, start{path: l.plain, root: true}, "launch", "user=65534", limit, "--",
				way, "handover="+l.plain+" net_admin keep=net_admin drop regain")
			done := strings.Contains(o.stdout, "drop ok\nregain operation not permitted")
			refused := limit == "sigpending=0" && strings.Contains(o.stdout+o.stderr, "raise the limit (ulimit -i)")
			if !done && !refused || strings.Contains(o.stdout, "regain ok") || strings.Contains(o.stderr, "panic") {
				t.Errorf("%s: exit status %d\n%s%s", limit, o.code, o.stdout, o.stderr)
			}
		}
		if o := run(t, start{path: way, env: []string{"GODEBUG=madvdontneed=1"}},
			"handover="+l.plain+" net_admin name"); o.code != 3 || !strings.Contains(o.stderr, "GODEBUG is set") {
			t.Errorf("GODEBUG: exit status %d\n%s%s", o.code, o.stdout, o.stderr)
		}
	}
}
