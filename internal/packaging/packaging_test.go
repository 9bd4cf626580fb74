//go:build packages

package packaging

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"vmnet/internal/cli/version"
	"vmnet/internal/nstest"
	"vmnet/internal/testprogram"
)

// built is where the programs are, once all of a kind have been built.
var built string

// pack makes packages in a new directory.
func pack(t *testing.T, kind string, arches ...string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	testprogram.Run(t, top, []string{"SOURCE_DATE_EPOCH=1700000000", "BUILT=" + built},
		append([]string{"sh", "internal/packaging/package.sh", kind, dir}, arches...)...)
	return dir
}

// members reads an ar archive (ar(5)).
func members(t *testing.T, archive []byte) map[string][]byte {
	t.Helper()
	rest, is := bytes.CutPrefix(archive, []byte("!<arch>\n"))
	if !is {
		t.Fatal("no ar archive")
	}
	found := map[string][]byte{}
	for len(rest) > 60 {
		name := strings.TrimRight(string(rest[:16]), " /")
		size, err := strconv.Atoi(strings.TrimSpace(string(rest[48:58])))
		if err != nil || 60+size > len(rest) {
			t.Fatalf("member %s: size %q", name, rest[48:58])
		}
		found[name] = rest[60 : 60+size]
		rest = rest[60+size+size%2:]
	}
	return found
}

// file is what an archive says of one.
type file struct {
	mode, owner, text string
}

// files reads a tar archive that gzip has compressed.
func files(t *testing.T, archive []byte) map[string]file {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]file{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if h.ModTime.Unix() != 1700000000 {
			t.Errorf("%s is of %v", h.Name, h.ModTime)
		}
		if h.Typeflag == tar.TypeSymlink {
			text = []byte(h.Linkname)
		}
		found[strings.TrimPrefix(h.Name, ".")] = file{
			h.FileInfo().Mode().String(), fmt.Sprintf("%s:%s %d:%d", h.Uname, h.Gname, h.Uid, h.Gid), string(text),
		}
	}
}

// want are some files of each kind that a package has, with their modes.
func want(kind string) map[string]string {
	files := map[string]string{
		"/usr/bin/vmnet": "-rwxr-xr-x", "/usr/bin/vmnet-hook": "-rwxr-xr-x", "/usr/bin/qemu-netup": "-rwxr-xr-x",
		"/usr/libexec/vmnet/qemu-netup-full":                "-rwxr-xr-x",
		"/usr/lib/cni/vmnet-cni":                            "-rwxr-xr-x",
		"/usr/lib/systemd/system/vmnet-watch.service":       "-rw-r--r--",
		"/usr/lib/systemd/system/vmnet-switch@.service":     "-rw-r--r--",
		"/usr/lib/systemd/system/vmnet-network@.service":    "-rw-r--r--",
		"/usr/lib/sysusers.d/vmnet.conf":                    "-rw-r--r--",
		"/usr/lib/tmpfiles.d/vmnet.conf":                    "-rw-r--r--",
		"/usr/lib/modules-load.d/vmnet.conf":                "-rw-r--r--",
		"/usr/share/man/man8/vmnet.8.gz":                    "-rw-r--r--",
		"/usr/share/man/man5/policy.yaml.5.gz":              "-rw-r--r--",
		"/usr/share/bash-completion/completions/vmnet":      "-rw-r--r--",
		"/usr/share/bash-completion/completions/qemu-netup": "-rw-r--r--",
		"/usr/share/fish/vendor_completions.d/vmnet.fish":   "-rw-r--r--",
		"/usr/share/doc/vmnet/examples/policy.yaml":         "-rw-r--r--",
		"/etc/apparmor.d/qemu-netup":                        "-rw-r--r--",
		"/etc/apparmor.d/vmnet-switch":                      "-rw-r--r--",
		"/etc/apparmor.d/vmnet-watch":                       "-rw-r--r--",
		"/etc/vmnet/":                                       "drwxr-xr-x",
		"/etc/vmnet/guests.d/":                              "drwxr-xr-x",
		"/usr/libexec/vmnet/qemu-bridge-helper":             "L---------",
	}
	if kind == "deb" {
		files["/usr/share/zsh/vendor-completions/_vmnet"] = "-rw-r--r--"
		files["/usr/share/doc/vmnet/copyright"] = "-rw-r--r--"
		files["/usr/share/doc/vmnet/changelog.gz"] = "-rw-r--r--"
	} else {
		files["/usr/share/zsh/site-functions/_vmnet"] = "-rw-r--r--"
		files["/usr/share/doc/vmnet/LICENSE"] = "-rw-r--r--"
	}
	return files
}

// mayBe reports whether a package may have a file there.
func mayBe(path string) bool {
	return path != "/usr/share/doc/vmnet/files" && (path == "/" || path == "/etc/" ||
		strings.HasPrefix(path, "/usr/") || strings.HasPrefix(path, "/etc/vmnet/") ||
		strings.HasPrefix(path, "/etc/apparmor.d/"))
}

// TestLivePackages builds the programs once, for two machines, and reads back the packages of both
// kinds. Only root does so, who can install them too. `make packages-test` runs it.
func TestLivePackages(t *testing.T) {
	nstest.RequireRoot(t)
	built = t.TempDir()
	if err := os.Chmod(filepath.Dir(built), 0o755); err != nil {
		t.Fatal(err)
	}
	arches := []string{"amd64", "arm64"}
	debs := pack(t, "deb", arches...)
	for _, arch := range arches {
		t.Run("deb "+arch, func(t *testing.T) { testDeb(t, deb(debs, arch), arch) })
	}
	host := deb(debs, runtime.GOARCH)
	for name, test := range map[string]func(*testing.T, string){
		"same bytes": testSameBytes, "rpm": testRPM, "lintian": testLintian, "dpkg": testDpkg, "systemd": testSystemd,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, host)
		})
	}
}

// testSameBytes makes a package again.
func testSameBytes(t *testing.T, path string) {
	again := pack(t, "deb", runtime.GOARCH)
	one, err := os.ReadFile(path)
	other, otherErr := os.ReadFile(deb(again, runtime.GOARCH))
	if err = errors.Join(err, otherErr); err != nil || !bytes.Equal(one, other) {
		t.Errorf("two packages of the same programs differ: %d and %d bytes, %v", len(one), len(other), err)
	}
}

// testLintian wants nothing to be wrong but what the overrides explain.
func testLintian(t *testing.T, path string) {
	_, err := exec.LookPath("lintian")
	nstest.Require(t, "lintian", err == nil, "apt install lintian")
	env := []string{"TMPDIR=" + t.TempDir()} // it leaves files there
	out := testprogram.Run(t, top, env, "lintian", "--allow-root", "--fail-on", "error,warning", path)
	if out != "" {
		t.Errorf("lintian says:\n%s", out)
	}
}

func deb(dir, arch string) string {
	return filepath.Join(dir, "vmnet_"+version.Number+"_"+arch+".deb")
}

// conffiles are those whose changes dpkg asks about.
const conffiles = "/etc/apparmor.d/qemu-netup\n/etc/apparmor.d/vmnet-switch\n/etc/apparmor.d/vmnet-watch\n"

func testDeb(t *testing.T, path, arch string) {
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	parts := members(t, text)
	data := files(t, parts["data.tar.gz"])
	modes := map[string]string{}
	for path, f := range data {
		modes[path] = f.mode
		if f.owner != "root:root 0:0" {
			t.Errorf("%s is of %s", path, f.owner)
		}
	}
	testprogram.CompareModes(t, modes, want("deb"), mayBe)
	if to := data["/usr/libexec/vmnet/qemu-bridge-helper"].text; to != "../../bin/qemu-netup" {
		t.Errorf("the bridge helper is a link to %s", to)
	}
	if unit := data["/usr/lib/systemd/system/vmnet-watch.service"].text; !strings.Contains(unit,
		"\nExecStart=\"/usr/bin/vmnet\" watch\n") {
		t.Errorf("the unit starts another program:\n%s", unit)
	}
	machine := map[string]string{"amd64": "\x3e\x00", "arm64": "\xb7\x00"}[arch] // e_machine of elf(5)
	if program := data["/usr/bin/vmnet"].text; len(program) < 20 || program[18:20] != machine {
		t.Error("its programs are for another machine")
	}

	control := files(t, parts["control.tar.gz"])
	for _, line := range []string{
		"Package: vmnet", "Version: " + version.Number, "Architecture: " + arch,
		"Depends: debconf (>= 0.5) | debconf-2.0, passwd",
	} {
		if !strings.Contains(control["/control"].text, line+"\n") {
			t.Errorf("control has no line %q:\n%s", line, control["/control"].text)
		}
	}
	for _, name := range []string{"/config", "/postinst", "/prerm", "/postrm"} {
		if script := control[name]; script.mode != "-rwxr-xr-x" || strings.Contains(script.text, "@CAPS@") {
			t.Errorf("%s is %q:\n%s", name, script.mode, script.text)
		}
	}
	if got := control["/conffiles"].text; control["/templates"].text == "" || got != conffiles {
		t.Errorf("no question, or dpkg asks about changes of other files than %q: %q", conffiles, got)
	}
}

// testRPM asks rpm itself what is in the package, which is for another machine than this one.
func testRPM(t *testing.T, _ string) {
	dir := pack(t, "rpm", "arm64")
	_, err := exec.LookPath("rpm")
	nstest.Require(t, "rpm", err == nil, "apt install rpm")
	found, err := filepath.Glob(filepath.Join(dir, "vmnet-"+version.Number+"-*.aarch64.rpm"))
	if err != nil || len(found) != 1 {
		t.Fatalf("packages %v, %v", found, err)
	}
	const format = `%{NAME} %{VERSION} %{ARCH} %{BUILDTIME} %{BUILDHOST}\n` +
		`[%{FILEMODES:perms} %{FILEUSERNAME}:%{FILEGROUPNAME} %{FILENAMES}\n]`
	out := testprogram.Run(t, top, nil,
		"rpm", "-qp", "--dbpath", t.TempDir(), "--nosignature", "--qf", format, found[0])
	head, list, _ := strings.Cut(out, "\n")
	if head != "vmnet "+version.Number+" aarch64 1700000000 localhost" {
		t.Errorf("it is %s", head)
	}
	modes := map[string]string{}
	for line := range strings.Lines(list) {
		f := strings.Fields(line)
		if len(f) != 3 || f[1] != "root:root" {
			t.Errorf("file %q", line)
			continue
		}
		switch f[0][0] {
		case 'd':
			f[2] += "/"
		case 'l':
			f[0] = "L" + f[0][1:]
		}
		modes[f[2]] = f[0]
	}
	testprogram.CompareModes(t, modes, want("rpm"), mayBe)
}
