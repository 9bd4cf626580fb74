package doctor

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// The oldest QEMU that vmnet is tested with.
const (
	qemuMajor = 6
	qemuMinor = 2
)

// qemuArch maps Go's names of architectures to QEMU's, where they differ.
var qemuArch = map[string]string{
	"amd64": "x86_64", "arm64": "aarch64", "386": "i386", "ppc64le": "ppc64",
	"loong64": "loongarch64",
}

// qemuHelpers are the distributions' paths of QEMU's own helper.
var qemuHelpers = []string{
	"/usr/lib/qemu/qemu-bridge-helper", "/usr/libexec/qemu-bridge-helper", "/usr/libexec/qemu-kvm/qemu-bridge-helper",
	"/usr/local/libexec/qemu-bridge-helper",
}

func (m Machine) qemu(ctx context.Context) []Check {
	path, found := m.find("qemu-system-"+arch(), m.Path)
	if !found {
		if path, found = m.find("qemu-kvm", append(m.Path, "/usr/libexec")); !found {
			return warn("qemu", "install it (Debian: apt install qemu-system)", "there is no qemu-system-%s in $PATH",
				arch())
		}
	}
	return append(m.version(ctx, path), m.ownHelper()...)
}

// arch returns QEMU's name of the processor that this program is built for.
func arch() string {
	if a := qemuArch[runtime.GOARCH]; a != "" {
		return a
	}
	return runtime.GOARCH
}

func (m Machine) version(ctx context.Context, path string) []Check {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, m.at(path), "--version").Output()
	if err != nil {
		return fail("qemu", "", "%s --version: %v", path, err)
	}
	major, minor, ok2 := parseVersion(string(out))
	switch {
	case !ok2:
		return warn("qemu", "", "%s does not print its version", path)
	case major < qemuMajor || major == qemuMajor && minor < qemuMinor:
		return warn("qemu", fmt.Sprintf("use QEMU %d.%d or later", qemuMajor, qemuMinor),
			"%s is version %d.%d, which vmnet is not tested with", path, major, minor)
	}
	return ok("qemu", "%s, version %d.%d", path, major, minor)
}

// parseVersion parses "QEMU emulator version 7.2.22 (Debian ...)".
func parseVersion(text string) (major, minor int, ok bool) {
	_, rest, found := strings.Cut(text, " version ")
	if !found {
		return 0, 0, false
	}
	n, err := fmt.Sscanf(rest, "%d.%d", &major, &minor)
	return major, minor, err == nil && n == 2
}

// ownHelper finds the helper that -netdev bridge starts by default.
func (m Machine) ownHelper() []Check {
	const name = "qemu-bridge-helper"
	ours, found := m.find(name, []string{filepath.Join(m.Self, "../libexec/vmnet")}) // where make install puts it
	for _, path := range qemuHelpers {
		info, err := os.Stat(m.at(path))
		switch {
		case err != nil:
			continue
		case !found:
			return ok(name, "QEMU's own is %s, mode %04o", path, unixMode(info.Mode()))
		}
		return ok(name, "QEMU's own is %s, mode %04o; for vmnet's use -netdev bridge,br=BRIDGE,helper=%s",
			path, unixMode(info.Mode()), ours)
	}
	return ok(name, "QEMU's own is not installed")
}
