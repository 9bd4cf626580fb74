package privilege

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"

	"vmnet/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

const status = "Name:\tUid: 0\nUmask:\t0022\nUid:\t1000\t0\t0\t0\nGid:\t1000\t1001\t1002\t1003\nGroups:\t4 27 1000 \n" +
	"CapInh:\t0000000000000000\nCapPrm:\t000001ffffffffff\nCapEff:\t0000000000001000\nCapBnd:\t000001ffffffffff\nCapAmb:\t0000000000000002\n"

func TestParseTask(t *testing.T) {
	want := task{
		uids: [4]int{1000, 0, 0, 0}, gids: [4]int{1000, 1001, 1002, 1003}, groups: "4 27 1000",
		prm: 1<<41 - 1, eff: 1 << 12, amb: 2,
	}
	got, err := parseTask(status)
	if err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	for name, broken := range map[string]string{
		"empty":        "",
		"no uid":       strings.Replace(status, "\nUid:", "\nUid", 1),
		"three ids":    strings.Replace(status, "1000\t0\t0\t0", "1000\t0\t0", 1),
		"negative":     strings.Replace(status, "1000\t0", "1000\t-1", 1),
		"too big":      strings.Replace(status, "1000\t0", "1000\t4294967296", 1),
		"no number":    strings.Replace(status, "0000000000001000", "12g", 1),
		"65 bits":      strings.Replace(status, "0000000000001000", "10000000000000000", 1),
		"no effective": strings.Replace(status, "CapEff", "CapFoo", 1),
	} {
		if got, err := parseTask(broken); err == nil {
			t.Errorf("%s: taken as %+v", name, got)
		}
	}
	if _, err := parseTask(strings.Replace(status, "CapAmb", "CapFoo", 1)); err != nil {
		t.Errorf("a kernel without ambient capabilities: %v", err)
	}
}

func FuzzParseTask(f *testing.F) {
	f.Add(status)
	f.Add("Uid:\t1\t2\t3\t4\nUid:\t1")
	f.Fuzz(func(t *testing.T, s string) {
		got, err := parseTask(s)
		if err != nil && got != (task{}) {
			t.Errorf("%q: both %+v and %v", s, got, err)
		}
		for _, id := range append(got.uids[:], got.gids[:]...) {
			if id < 0 {
				t.Errorf("%q: id %d", s, id)
			}
		}
	})
}

func TestBits(t *testing.T) {
	b := bits(cap.NET_ADMIN, cap.SYS_ADMIN)
	if diff := cmp.Diff([]cap.Value{cap.NET_ADMIN, cap.SYS_ADMIN}, values(b)); diff != "" || b != 1<<12|1<<21 {
		t.Errorf("%#x %s", b, diff)
	}
	if got, want := names(b, ", "), "CAP_NET_ADMIN, CAP_SYS_ADMIN"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// All threads of an ordinary process are equal.
func TestCheck(t *testing.T) {
	now, err := readTask("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	if err := check(now); err != nil {
		t.Error(err)
	}
	now.amb = 1
	if err := check(now); err == nil || !strings.Contains(err.Error(), "instead of") {
		t.Errorf("another ambient set than there is: %v", err)
	}
	if _, err := readTask("/proc/self/no"); err == nil {
		t.Error("a status that is not there was read")
	}
	if err := roomForSignals(); err != nil {
		t.Error(err)
	}
}

func TestCaller(t *testing.T) {
	c, err := Who()
	if err != nil || c.UID != os.Getuid() || c.GID != os.Getgid() || c.Root() != (os.Getuid() == 0) {
		t.Errorf("%+v, %v", c, err)
	}
	c = Caller{UID: 5, GID: 6, Groups: []int{7}}
	if !c.In(6) || !c.In(7) || c.In(5) {
		t.Error("In mistakes the groups")
	}
}

func TestInherited(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd := int(f.Fd())
	for _, n := range []int{-1, fd, 1 << 20, int(^uint(0) >> 1)} {
		if err := Inherited(n); err == nil {
			t.Errorf("fd %d is taken for inherited", n)
		}
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETFD, 0); err != nil {
		t.Fatal(err)
	}
	if err := Inherited(fd); err != nil {
		t.Error(err)
	}
	if err := Inherited(1<<32 + fd); err == nil {
		t.Error("a number that the kernel cuts to an inherited one is taken for it")
	}
}

func TestOpenStandard(t *testing.T) {
	saved, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(saved)
	if err := unix.Close(0); err != nil {
		t.Fatal(err)
	}
	err = openStandard()
	to, _ := os.Readlink("/proc/self/fd/0")
	if err := unix.Dup3(saved, 0, 0); err != nil {
		t.Fatal(err)
	}
	if err != nil || to != os.DevNull {
		t.Errorf("fd 0 is %q, %v", to, err)
	}
}

func TestFind(t *testing.T) {
	one, two := t.TempDir(), t.TempDir()
	t.Chdir(two)
	files := map[string]os.FileMode{
		one + "/prog": 0o755, two + "/prog": 0o755, two + "/here": 0o755, one + "/data": 0o644,
		one + "/both": 0o644, two + "/both": 0o755,
	}
	for f, mode := range files {
		if err := os.WriteFile(f, nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(one, "dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	path := "/nowhere:" + one + ":" + two
	for _, test := range []struct{ path, name, want, err string }{
		{path, "prog", one + "/prog", ""},
		{path, "both", two + "/both", ""},
		{path, "here", two + "/here", ""},
		{"/nowhere:", "here", "./here", ""},
		{path, "data", "", "permission denied"},
		{path, "dir", "", "permission denied"},
		{path, "absent", "", "not in PATH"},
		{path, "", "", "without a name"},
		{path, "./here", "./here", ""},
		{path, one + "/absent", "", "no such file"},
		{path, "/" + strings.Repeat("x", 5000), "", "too long"},
		{"", "sh", "/bin/sh", ""},
	} {
		p := &Process{env: []string{"PATHS=/etc", "PATH=" + test.path}}
		got, err := p.Find(test.name)
		if test.err != "" {
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("%.20s: got %q, %v; want %q", test.name, got, err, test.err)
			}
			continue
		}
		if err != nil || got != test.want && filepath.Base(got) != filepath.Base(test.want) ||
			test.path != "" && got != test.want {
			t.Errorf("%s: got %q, %v; want %q", test.name, got, err, test.want)
		}
	}
}

func TestExecNeedsDrop(t *testing.T) {
	p := &Process{}
	if err := p.Exec("/bin/true", []string{"true"}); err == nil ||
		!strings.Contains(err.Error(), "have not been dropped") {
		t.Error(err)
	}
	p.dropped = true
	if err := p.Exec("/bin/true", nil); err == nil || !strings.Contains(err.Error(), "argv is empty") {
		t.Error(err)
	}
}
