package privilege

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"

	"vmnet/internal/nstest"
	"vmnet/internal/testprogram"
)

const nobody = 65534

// lab is a directory that every user may enter. It has a copy of the probe for each way to install
// it.
type lab struct {
	dir                                                   string
	plain, setuid, setids, ep, p, other, tun, secret, own string
}

// newLab installs the probe.
func newLab(t *testing.T) *lab {
	t.Helper()
	nstest.Require(t, "root", os.Geteuid() == 0, "run it as root")
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		must(t, os.Chmod(d, 0o755))
	}
	var st unix.Statfs_t
	must(t, unix.Statfs(dir, &st))
	if st.Flags&(unix.ST_NOSUID|unix.ST_NODEV|unix.ST_NOEXEC) != 0 {
		t.Fatalf("%s is mounted nosuid, nodev or noexec: set TMPDIR to a directory that is not", dir)
	}
	l := &lab{
		dir: dir, plain: dir + "/plain", setuid: dir + "/setuid", setids: dir + "/setids", ep: dir + "/ep",
		p: dir + "/p", other: dir + "/other",
		tun: dir + "/tun", secret: dir + "/secret", own: dir + "/own",
	}
	program := testprogram.Build(t, "./testdata/probe")
	for path, mode := range map[string]os.FileMode{
		l.setuid: os.ModeSetuid, l.setids: os.ModeSetuid | os.ModeSetgid,
		l.plain: 0, l.ep: 0, l.p: 0, l.other: 0,
	} {
		testprogram.Install(t, path, program)
		must(t, os.Chmod(path, mode|0o755))
	}
	must(t, unix.Setxattr(l.ep, "security.capability", fileCaps(true, cap.NET_ADMIN), 0))
	must(t, unix.Setxattr(l.p, "security.capability", fileCaps(false, cap.NET_ADMIN), 0))
	must(t, unix.Setxattr(l.other, "security.capability", fileCaps(true, cap.NET_RAW), 0))
	must(t, os.WriteFile(l.secret, nil, 0o600))
	must(t, os.Mkdir(l.own, 0o700))
	must(t, os.Chown(l.own, nobody, nobody))
	must(t, unix.Mknod(l.tun, unix.S_IFCHR, int(unix.Mkdev(10, 200))))
	must(t, os.Chmod(l.tun, 0o666))
	return l
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// fileCaps is struct vfs_cap_data of linux/capability.h, revision 2.
func fileCaps(effective bool, vs ...cap.Value) []byte {
	const revision2 = 0x02000000
	magic := uint32(revision2)
	if effective {
		magic |= 1
	}
	b := bits(vs...)
	var data []byte
	for _, word := range []uint32{magic, uint32(b), 0, uint32(b >> 32), 0} { // permitted and inheritable, twice
		data = binary.LittleEndian.AppendUint32(data, word)
	}
	return data
}

// start describes how a probe is started, and by which user.
type start struct {
	path    string
	root    bool
	groups  []uint32
	ambient []uintptr
	env     []string
	files   []*os.File
}

// outcome is the result of a probe.
type outcome struct {
	lines          map[string][]string // lines of stdout, by step
	stdout, stderr string
	code           int // -1: by a signal
}

// run waits at most 20 seconds: no probe may hang.
func run(t *testing.T, s start, steps ...string) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c := exec.CommandContext(ctx, s.path, steps...)
	c.Env, c.ExtraFiles = s.env, s.files
	if c.Env == nil {
		c.Env = []string{"PATH=/usr/bin:/bin"}
	}
	c.SysProcAttr = &syscall.SysProcAttr{
		Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		AmbientCaps:  s.ambient,
	}
	if !s.root {
		c.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody, Groups: s.groups}
	}
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	err := c.Run()
	if ctx.Err() != nil {
		t.Fatalf("%v hangs\n%s%s", steps, &stdout, &stderr)
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	o := outcome{
		lines: map[string][]string{}, stdout: stdout.String(), stderr: stderr.String(),
		code: c.ProcessState.ExitCode(),
	}
	for line := range strings.Lines(o.stdout) {
		step, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		o.lines[step] = append(o.lines[step], rest)
	}
	return o
}

// ok is run for probes that must succeed.
func ok(t *testing.T, s start, steps ...string) outcome {
	t.Helper()
	o := run(t, s, steps...)
	if o.code != 0 || o.stderr != "" {
		t.Fatalf("%v: exit status %d\n%s%s", steps, o.code, o.stdout, o.stderr)
	}
	return o
}

// report returns what the step of that name prints.
type report struct {
	Tasks                                []string
	Dumpable, KeepCaps, NoNewPrivs, Core int
}

// reports decodes them, and checks that all threads of each are equal.
func (o outcome) reports(t *testing.T) (all []report, tasks []task) {
	t.Helper()
	for _, line := range o.lines["report"] {
		var r report
		must(t, json.Unmarshal([]byte(line), &r))
		first, err := parseTask(r.Tasks[0])
		must(t, err)
		for _, s := range r.Tasks[1:] {
			if other, err := parseTask(s); err != nil || other != first {
				t.Errorf("threads differ: %+v and %+v, %v", first, other, err)
			}
		}
		all, tasks = append(all, r), append(tasks, first)
	}
	return all, tasks
}
