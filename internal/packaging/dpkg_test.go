//go:build packages

package packaging

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"vmnet/internal/cli/version"
	"vmnet/internal/nstest"
)

// environment is that of the programs in a root.
var environment = []string{
	"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive",
	"LC_ALL=C", "HOME=/root",
}

// nextVersion upgrades the package /root/one.deb to the next version.
const nextVersion = `dpkg-deb -R /root/one.deb /root/two
	sed -i 's/^Version: .*/&+next/' /root/two/DEBIAN/control
	dpkg-deb -Znone -b /root/two /root/two.deb >/dev/null
	rm -r /root/two
	dpkg --no-triggers -i /root/two.deb`

// root is a copy of this machine's Debian: what is written goes to the directory upper.
type root struct {
	t          *testing.T
	dir, upper string
}

// newRoot mounts it, in the namespace of this package's tests.
func newRoot(t *testing.T) *root {
	t.Helper()
	_, err := exec.LookPath("dpkg")
	nstest.Require(t, "dpkg", err == nil, "run it on Debian")
	all := t.TempDir()
	// An overlay's upper directory cannot be on an overlay, which the machine's own root may be.
	if err := unix.Mount("tmpfs", all, "tmpfs", 0, "mode=755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(all, 0); err != nil {
			t.Errorf("unmount what the root has written: %v", err)
		}
	})
	r := &root{t: t, dir: filepath.Join(all, "root"), upper: filepath.Join(all, "upper")}
	work := filepath.Join(all, "work")
	if err := errors.Join(os.Mkdir(r.dir, 0o755), os.Mkdir(r.upper, 0o755), os.Mkdir(work, 0o755)); err != nil {
		t.Fatal(err)
	}
	options := "lowerdir=/,upperdir=" + r.upper + ",workdir=" + work
	if err := unix.Mount("overlay", r.dir, "overlay", 0, options); err != nil {
		t.Fatalf("an overlay over /: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(r.dir, 0); err != nil {
			t.Errorf("unmount the root: %v", err)
		}
	})
	for _, name := range []string{"dev", "proc"} {
		at := filepath.Join(r.dir, name)
		if err := unix.Mount("/"+name, at, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(at, 0); err != nil {
				t.Errorf("unmount %s: %v", at, err)
			}
		})
	}
	return r
}

// sh runs lines of the shell in the root. They must succeed.
func (r *root) sh(script string) string {
	r.t.Helper()
	cmd := exec.Command("/bin/sh", "-euc", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: r.dir}
	cmd.Dir = "/"
	cmd.Env = environment
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

// netup wants this owner and mode of qemu-netup, and capabilities or none.
func (r *root) netup(want string, caps bool) {
	r.t.Helper()
	if got := strings.TrimSpace(r.sh("stat -c '%U:%G %a' /usr/bin/qemu-netup")); got != want {
		r.t.Errorf("qemu-netup is %s, want %s", got, want)
	}
	size, err := unix.Getxattr(filepath.Join(r.dir, "usr/bin/qemu-netup"), "security.capability", nil)
	if caps != (err == nil && size > 0) {
		r.t.Errorf("qemu-netup has %d bytes of capabilities, %v; want some: %v", size, err, caps)
	}
}

// ours lists what is in the root besides this machine's files and what names vmnet, apart from
// dpkg's own records.
func (r *root) ours() (paths []string) {
	r.t.Helper()
	err := filepath.WalkDir(r.upper, func(path string, d fs.DirEntry, err error) error {
		rel := strings.TrimPrefix(path, r.upper)
		switch {
		case err != nil:
			return err
		case rel == "/var/log" || rel == "/var/lib/dpkg" || rel == "/var/cache":
			return filepath.SkipDir
		case strings.Contains(rel, "vmnet") && d.Type()&fs.ModeCharDevice == 0: // a whiteout
			paths = append(paths, rel)
		}
		return nil
	})
	if err != nil {
		r.t.Error(err)
	}
	return paths
}

// helper has the bridge helper of vmnet in the place of the one of QEMU, and takes it away again,
// by the lines of docs/packages.md.
func (r *root) helper() {
	r.t.Helper()
	text, err := os.ReadFile(filepath.Join(top, "docs/packages.md"))
	if err != nil {
		r.t.Fatal(err)
	}
	blocks := regexp.MustCompile(`(?m)^ {4}cd /usr/lib/qemu\n(^ {4}.*\n)+`).FindAllString(string(text), -1)
	if len(blocks) != 2 {
		r.t.Fatalf("docs/packages.md has %d blocks of lines for QEMU's path", len(blocks))
	}
	const is = "\nreadlink -f /usr/lib/qemu/qemu-bridge-helper"
	for i, want := range []string{"/usr/bin/qemu-netup\n", "/usr/lib/qemu/qemu-bridge-helper\n"} {
		if out := r.sh(blocks[i] + is); !strings.HasSuffix(out, want) {
			r.t.Errorf("QEMU's bridge helper is %q, want %q", out, want)
		}
	}
	r.sh("test -x /usr/lib/qemu/qemu-bridge-helper")
}

// testDpkg installs, upgrades, removes and purges the package as dpkg does.
func testDpkg(t *testing.T, path string) {
	r := newRoot(t)
	package1, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(filepath.Join(r.dir, "root/one.deb"), package1, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	r.sh("dpkg --no-triggers -i /root/one.deb")
	r.netup("root:root 755", false)
	out := r.sh("dpkg --verify vmnet; vmnet --version; getent group vmnet; ls -d /etc/vmnet/guests.d")
	if !strings.HasPrefix(out, "vmnet "+version.Number) {
		t.Errorf("installed:\n%s", out)
	}
	// The administrator answers, and writes files; then comes the next version.
	r.sh(`mkdir -p /var/lib/vmnet/networks
		echo '# mine' >/etc/vmnet/policy.yaml
		echo 'vmnet vmnet/privilege select setcap' | debconf-set-selections
		` + nextVersion)
	r.netup("root:vmnet 750", true)
	// An override goes before the answer.
	r.sh(`echo 'vmnet vmnet/privilege select setuid' | debconf-set-selections
		dpkg-statoverride --update --add root daemon 4710 /usr/bin/qemu-netup
		dpkg --no-triggers -i /root/two.deb`)
	r.netup("root:daemon 4710", false)
	r.sh("dpkg-statoverride --remove /usr/bin/qemu-netup; dpkg-reconfigure vmnet 2>/dev/null")
	r.netup("root:vmnet 4750", false)

	r.helper()
	r.sh(`mkdir -p /etc/systemd/system/multi-user.target.wants
		ln -s /usr/lib/systemd/system/vmnet-watch.service /etc/systemd/system/multi-user.target.wants/
		dpkg --no-triggers -r vmnet
		test ! -e /usr/bin/vmnet
		grep -q mine /etc/vmnet/policy.yaml
		test -d /var/lib/vmnet/networks
		test -L /etc/systemd/system/multi-user.target.wants/vmnet-watch.service`)
	r.sh("dpkg -P vmnet")
	if left := r.ours(); strings.Join(left, " ") != "/etc/vmnet /etc/vmnet/policy.yaml" {
		t.Errorf("a purge leaves %q", left)
	}
	out = r.sh("! dpkg -s vmnet 2>&1; echo get vmnet/privilege | debconf-communicate || true")
	if !strings.Contains(out, "10 ") {
		t.Errorf("after a purge:\n%s", out)
	}
}
