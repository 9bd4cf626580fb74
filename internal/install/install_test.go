// Package install has the scripts of `make install`, and their tests.
package install

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"vmnet/internal/access/bridgeconf"
	"vmnet/internal/access/policy"
	"vmnet/internal/nstest"
	"vmnet/internal/testprogram"
)

const top = "../.." // of the source tree

// run runs a command in dir.
func run(t *testing.T, dir string, attr *syscall.SysProcAttr, args ...string) (string, error) {
	t.Helper()
	cmd := testprogram.Command(dir, nil, args...)
	cmd.SysProcAttr = attr
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// mustRun runs a command that must succeed.
func mustRun(t *testing.T, dir string, attr *syscall.SysProcAttr, args ...string) string {
	t.Helper()
	out, err := run(t, dir, attr, args...)
	if err != nil {
		t.Fatalf("%q: %v\n%s", args, err, out)
	}
	return out
}

// tree lists the files of a directory, with their modes, by their relative paths.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		found[rel] = info.Mode().String()
		if info.Mode()&fs.ModeSymlink != 0 {
			to, err := filepath.EvalSymlinks(path)
			if err != nil {
				return err
			}
			found[rel] = "-> " + strings.TrimPrefix(to, dir+"/")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// want lists files that must be installed, for each mode of the helper.
func want(t *testing.T, helper string) map[string]string {
	t.Helper()
	files := map[string]string{
		"usr/bin/vmnet":                        "-rwxr-xr-x",
		"usr/bin/vmnet-hook":                   "-rwxr-xr-x",
		"usr/lib/cni/vmnet-cni":                "-rwxr-xr-x",
		"usr/bin/qemu-netup":                   helper,
		"usr/libexec/vmnet/qemu-netup-full":    "-rwxr-xr-x",
		"usr/libexec/vmnet/qemu-ifup":          "-> usr/bin/qemu-netup",
		"usr/libexec/vmnet/qemu-ifdown":        "-> usr/bin/qemu-netup",
		"usr/libexec/vmnet/qemu-bridge-helper": "-> usr/bin/qemu-netup",
	}
	data := []string{
		"man/man8/vmnet.8", "man/man8/vmnet-attach.8",
		"bash-completion/completions/vmnet", "bash-completion/completions/qemu-netup", "zsh/site-functions/_vmnet",
		"fish/vendor_completions.d/vmnet.fish",
		"doc/vmnet/README.md", "doc/vmnet/LICENSE", "doc/vmnet/grafana/vmnet.json", "doc/vmnet/examples/bridge.conf",
		"doc/vmnet/examples/network.yaml", "doc/vmnet/examples/policy.yaml", "doc/vmnet/examples/switch.env",
		"doc/vmnet/files",
	}
	sources, err := filepath.Glob(filepath.Join(top, "docs/man/*.md"))
	if err != nil || len(sources) == 0 {
		t.Fatalf("%d sources of man pages, %v", len(sources), err)
	}
	for _, source := range sources {
		page := strings.TrimSuffix(filepath.Base(source), ".md")
		data = append(data, "man/man"+page[len(page)-1:]+"/"+page)
	}
	// Man pages, help texts and errors name documents.
	documents, err := filepath.Glob(filepath.Join(top, "docs/*.md"))
	if err != nil || len(documents) == 0 {
		t.Fatalf("%d documents, %v", len(documents), err)
	}
	for _, document := range documents {
		data = append(data, "doc/vmnet/"+filepath.Base(document))
	}
	for _, file := range data {
		files["usr/share/"+file] = "-rw-r--r--"
	}
	for _, dir := range []string{"sysusers.d", "tmpfiles.d", "modules-load.d"} {
		files["usr/lib/"+dir+"/vmnet.conf"] = "-rw-r--r--"
	}
	for _, unit := range []string{"vmnet-watch.service", "vmnet-switch@.service", "vmnet-network@.service"} {
		files["usr/lib/systemd/system/"+unit] = "-rw-r--r--"
	}
	return files
}

// compare wants at least these files, and all of them under usr.
func compare(t *testing.T, found, want map[string]string) {
	t.Helper()
	testprogram.CompareModes(t, found, want, func(path string) bool {
		return strings.HasPrefix(path, "usr/") || strings.HasPrefix(path, "etc/apparmor.d/")
	})
}

// gone checks that no file is left, and no directory that belongs to vmnet alone.
func gone(t *testing.T, dest string) {
	t.Helper()
	if left := tree(t, dest); len(left) > 0 {
		t.Errorf("uninstall leaves %v", left)
	}
	for _, ours := range []string{"usr/libexec/vmnet", "usr/share/doc/vmnet"} {
		if _, err := os.Stat(filepath.Join(dest, ours)); err == nil {
			t.Errorf("uninstall leaves the directory %s", ours)
		}
	}
}

// built is the directory in which TestMakeInstall has built the programs.
var built string

func TestMakeInstall(t *testing.T) {
	dest := t.TempDir()
	built = filepath.Join(t.TempDir(), "bin")
	if err := os.Chmod(filepath.Dir(filepath.Dir(built)), 0o755); err != nil { // as an ordinary user installs it, too
		t.Fatal(err)
	}
	install := []string{
		"env", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "make", "install",
		"DESTDIR=" + dest, "PREFIX=/usr", "BIN=" + built,
	}
	if out, err := run(t, top, nil, install...); err == nil || !strings.Contains(out, "make build") {
		t.Errorf("nothing was built: %v\n%s", err, out)
	}
	mustRun(t, top, nil, "make", "build", "PREFIX=/usr", "BIN="+built)
	if out, err := run(t, top, nil, append(install, "PREFIX=/opt")...); err == nil ||
		!strings.Contains(out, "make build PREFIX=/opt") {
		t.Errorf("it was built for another place: %v\n%s", err, out)
	}
	gone(t, dest)
	// With AppArmor, its profiles are installed too.
	if err := os.MkdirAll(filepath.Join(dest, "etc/apparmor.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	out := mustRun(t, top, nil, install...)
	if !strings.Contains(out, "setcap cap_net_admin,cap_bpf,cap_perfmon+ep /usr/bin/qemu-netup\n") {
		t.Errorf("it does not tell how to go on:\n%s", out)
	}
	files := want(t, "-rwxr-xr-x")
	for _, profile := range []string{"qemu-netup", "vmnet-switch", "vmnet-watch"} {
		files["etc/apparmor.d/"+profile] = "-rw-r--r--"
		text, err := os.ReadFile(filepath.Join(dest, "etc/apparmor.d", profile))
		if err != nil || strings.Contains(string(text), "@PREFIX@") || !strings.Contains(string(text), "/usr/") {
			t.Errorf("profile %s: %v\n%s", profile, err, text)
		}
	}
	compare(t, tree(t, dest), files)
	program, err := os.ReadFile(filepath.Join(dest, "usr/bin/qemu-netup"))
	if err != nil || !strings.Contains(string(program), "/usr/libexec/vmnet/qemu-netup-full") {
		t.Errorf("qemu-netup becomes another program than the one that was installed: %v", err)
	}
	unit, err := os.ReadFile(filepath.Join(dest, "usr/lib/systemd/system/vmnet-watch.service"))
	if err != nil || !strings.Contains(string(unit), "\nExecStart=\"/usr/bin/vmnet\" watch\n") {
		t.Errorf("the unit starts another program: %v\n%s", err, unit)
	}
	mustRun(t, top, nil, "make", "uninstall", "DESTDIR="+dest, "PREFIX=/usr")
	gone(t, dest)
	mustRun(t, top, nil, "make", "uninstall", "DESTDIR="+dest, "PREFIX=/usr") // a second uninstall succeeds too

	t.Run("TestCompletion", testCompletion)
	t.Run("TestAgain", testAgain)
	t.Run("TestWithoutRoot", testWithoutRoot)
	t.Run("TestLivePrivilege", testLivePrivilege)
	t.Run("TestWrong", testWrong)
}

// script is what the Makefile runs after the build.
func script(verb, dest, privilege, group string) []string {
	return []string{
		"env", "DESTDIR=" + dest, "PREFIX=/usr", "BIN=" + built, "PRIVILEGE=" + privilege, "GROUP=" + group,
		"sh", "internal/install/install.sh", verb,
	}
}

// TestGoVersion: an unsuitable Go is reported before anything is done, and nothing else is
// reported.
func TestGoVersion(t *testing.T) {
	dir := t.TempDir()
	for name, test := range map[string]struct{ says, want string }{
		"old":     {"echo go1.19.8", "old is 1.19.8"},
		"other":   {"echo go1.26rc1", "other is 1.26rc1"},
		"broken":  {"echo who knows >&2; exit 1", "broken is broken: who knows"},
		"absent":  {"", "no program " + dir + "/absent"},
		"newer":   {"echo go1.100.1", ""},
		"devel":   {"echo 'devel go1.27-f1dd9c4'", ""},
		"options": {"echo 'go1.100.0 X:nodwarf5'", ""},
	} {
		program := filepath.Join(dir, name)
		if test.says != "" {
			if err := os.WriteFile(program, []byte("#!/bin/sh\n"+test.says+"\n"), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		out, err := run(t, top, nil, "make", "--dry-run", "setup", "demo", "GO="+program)
		if test.want == "" && err != nil ||
			test.want != "" && (err == nil || !strings.Contains(out, test.want) || strings.Contains(out, "setup.sh")) {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		if out, err := run(t, top, nil, "make", "--dry-run", "install", "GO="+program); err != nil {
			t.Errorf("%s, to install: %v\n%s", name, err, out)
		}
	}
}

// TestExamples checks that the helper accepts the example files.
func TestExamples(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(top, "docs/examples/policy.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if p, err := policy.Parse("policy.yaml", text); err != nil || p.Rules() == 0 || len(p.Profiles()) == 0 {
		t.Errorf("policy.yaml: %v", err)
	}
	acl, err := bridgeconf.Read(filepath.Join(top, "docs/examples/bridge.conf"))
	if err != nil || !acl.Decide("virbr0").Allowed || acl.Decide("br0").Allowed {
		t.Errorf("bridge.conf: %v", err)
	}
}

// testCompletion asks qemu-netup's completion as bash does.
func testCompletion(t *testing.T) {
	nstest.Require(t, "bash", exec.Command("bash", "-c", "true").Run() == nil, "apt install bash")
	lines := map[string]string{
		"qemu-netup --macv":     "--macvtap",
		"qemu-netup --vhost o":  "on off",
		"qemu-netup --spare":    "--spare-ports",
		"qemu-netup -- --macv":  "",
		"qemu-netup --nothing.": "",
		"qemu-netup --place c":  "ccw",
	}
	if os.Geteuid() == 0 { // in a network namespace of its own, without a bridge
		lines["qemu-netup --bridge "] = ""
	}
	for line, want := range lines {
		ask := "source docs/completion/qemu-netup.bash; PATH=" + built +
			":$PATH; COMP_WORDS=($0); [[ $0 != *' ' ]] || COMP_WORDS+=(''); " +
			"COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _qemu_netup; echo ${COMPREPLY[@]}"
		if got := strings.TrimSpace(mustRun(t, top, nil, "bash", "-c", ask, line)); got != want {
			t.Errorf("%s completes to %q, want %q", line, got, want)
		}
	}
}

// testAgain: files of another version are removed, files of others stay.
func testAgain(t *testing.T) {
	dest := t.TempDir()
	mustRun(t, top, nil, script("install", dest, "none", "")...)
	before := tree(t, dest)
	old, theirs := filepath.Join(dest, "usr/share/man/man8/vmnet-old.8"),
		filepath.Join(dest, "usr/libexec/vmnet/theirs")
	for _, file := range []string{old, theirs} {
		if err := os.WriteFile(file, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	appendTo(t, filepath.Join(dest, "usr/share/doc/vmnet/files"), "share/man/man8/vmnet-old.8\n")
	mustRun(t, top, nil, script("install", dest, "none", "")...)
	after := tree(t, dest)
	if len(after) != len(before)+1 || after["usr/libexec/vmnet/theirs"] == "" {
		t.Errorf("%d files, then %d: %v", len(before), len(after), after)
	}
	mustRun(t, top, nil, script("uninstall", dest, "", "")...)
	if left := tree(t, dest); len(left) != 1 || left["usr/libexec/vmnet/theirs"] == "" {
		t.Errorf("uninstall leaves %v", left)
	}
}

func appendTo(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := fmt.Fprint(f, text); err != nil {
		t.Fatal(err)
	}
}

// testWithoutRoot stages as a packager does.
func testWithoutRoot(t *testing.T) {
	src, dest := t.TempDir(), t.TempDir()
	mustRun(t, top, nil, "cp", "-r", "--parents", "docs", "internal/install", "README.md", "SECURITY.md",
		"CHANGELOG.md", "LICENSE", src)
	var nobody *syscall.SysProcAttr
	if os.Geteuid() == 0 {
		const id = 65534
		nobody = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: id, Gid: id}}
		if err := errors.Join(os.Chown(dest, id, id), os.Chmod(filepath.Dir(src), 0o755),
			os.Chmod(filepath.Dir(dest), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	mustRun(t, src, nobody, script("install", dest, "none", "")...)
	compare(t, tree(t, dest), want(t, "-rwxr-xr-x"))
	if out, err := run(t, src, nobody, script("install", dest, "setuid", "")...); err == nil ||
		!strings.Contains(out, "only root can give PRIVILEGE=setuid") {
		t.Errorf("a setuid program by somebody else than root: %v\n%s", err, out)
	}
	mustRun(t, src, nobody, script("uninstall", dest, "", "")...)
	gone(t, dest)
}

func testLivePrivilege(t *testing.T) {
	nstest.Require(t, "root", os.Geteuid() == 0, "run it as root")
	for _, c := range []struct{ privilege, group, mode string }{
		{"setuid", "", "urwxr-xr-x"},
		{"setuid", "daemon", "urwxr-x---"},
		{"setcap", "", "-rwxr-xr-x"},
		{"setcap", "daemon", "-rwxr-x---"},
	} {
		t.Run(c.privilege+c.group, func(t *testing.T) {
			dest := t.TempDir()
			mustRun(t, top, nil, script("install", dest, c.privilege, c.group)...)
			compare(t, tree(t, dest), want(t, c.mode))
			caps := mustRun(t, top, nil, "getcap", dest+"/usr/bin/qemu-netup")
			if strings.Contains(caps, "cap_net_admin,cap_perfmon,cap_bpf=ep") != (c.privilege == "setcap") {
				t.Errorf("its capabilities: %q", caps)
			}
			if caps = mustRun(t, top, nil, "getcap", dest+"/usr/libexec/vmnet/qemu-netup-full"); caps != "" {
				t.Errorf("what it becomes has capabilities of its own: %q", caps)
			}
			mustRun(t, top, nil, script("uninstall", dest, "", "")...)
			gone(t, dest)
		})
	}
}

func testWrong(t *testing.T) {
	for want, args := range map[string][]string{
		"PRIVILEGE=all: want none, setuid or setcap":     script("install", t.TempDir(), "all", ""),
		"GROUP=kvm goes with PRIVILEGE=setuid or setcap": script("install", t.TempDir(), "none", "kvm"),
		"there is no group nosuch (groupadd":             script("install", t.TempDir(), "setuid", "nosuch"),
		"PREFIX=usr: want an absolute path": append([]string{
			"env", "DESTDIR=/nonexistent/", "PREFIX=usr",
			"sh",
		}, "internal/install/install.sh", "install"),
	} {
		if out, err := run(t, top, nil, args...); err == nil || !strings.Contains(out, want) {
			t.Errorf("%v, want %q:\n%s", err, want, out)
		}
	}
	dest := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dest, "usr/bin/qemu-netup/in-the-way"), 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := run(t, top, nil, script("install", dest, "none", "")...); err == nil {
		t.Errorf("it replaces a directory:\n%s", out)
	}
	if err := os.RemoveAll(filepath.Join(dest, "usr/bin/qemu-netup")); err != nil {
		t.Fatal(err)
	}
	mustRun(t, top, nil, script("uninstall", dest, "", "")...)
	gone(t, dest)

	mustRun(t, top, nil, script("install", dest, "none", "")...)
	appendTo(t, filepath.Join(dest, "usr/share/doc/vmnet/files"), "../outside\n")
	if out, err := run(t, top, nil, script("uninstall", dest, "", "")...); err == nil ||
		!strings.Contains(out, "names ../outside") {
		t.Errorf("a list that points outside: %v\n%s", err, out)
	}
}
