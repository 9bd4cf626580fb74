package testvm

import (
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// setupPrograms are stand-ins for programs that setup.sh runs. apt-get logs its downloads to $LOG.
var setupPrograms = map[string]string{
	"id":         `echo "$UID_OF"`,
	"dpkg-query": `shift 2; for p; do echo "$p installed"; done`,
	"apt-cache":  `case $* in depends*) echo "  Depends: linux-image-6.1.0-1-${2#linux-image-}" ;; *) echo "Size: 31400000" ;; esac`,
	"apt-get":    `for name; do :; done; [ -z "$BROKEN" ] || exit 100; echo "$name" >>"$LOG"; : >"$name.deb"`,
	"dpkg-deb":   `mkdir -p tree/boot tree/lib/modules/6.1.0-1`,
	"depmod":     `: >"$2/lib/modules/$3/modules.dep.bin"`,
}

// machine is a machine to set up; its packages are installed.
type machine struct {
	*testing.T
	env        []string
	cache, log string
}

func newMachine(t *testing.T, uid string) *machine {
	t.Helper()
	fakes := t.TempDir()
	for name, text := range setupPrograms {
		if err := os.WriteFile(filepath.Join(fakes, name), []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	m := &machine{T: t, cache: filepath.Join(t.TempDir(), "cache"), log: filepath.Join(fakes, "log")}
	m.env = append(os.Environ(), "PATH="+fakes+":"+os.Getenv("PATH"), "VMNET_CACHE="+m.cache,
		"LOG="+m.log, "UID_OF="+uid)
	return m
}

// setup runs make setup, and returns its output.
func (m *machine) setup(env ...string) (string, error) {
	m.Helper()
	cmd := exec.CommandContext(m.Context(), "make", "--silent", "--no-print-directory", "setup")
	cmd.Dir, cmd.Env = "..", append(m.env, env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (m *machine) kernels() (names []string) {
	m.Helper()
	entries, err := os.ReadDir(m.cache)
	if err != nil {
		m.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestSetupTellsItsDownloads: a user gets one kernel, root also the lab hosts' one, testpmd and
// NetworkManager. For each download, setup prints its name, size and destination; it prints nothing
// if there is nothing to do.
func TestSetupTellsItsDownloads(t *testing.T) {
	const guests, hosts = "the kernel of test guests, linux-image-6.1.0-1-cloud-amd64 (31 MB)",
		"the kernel of lab hosts, linux-image-6.1.0-1-amd64 (31 MB)"
	const foreign, manager = "DPDK's testpmd, dpdk-dev and its libraries (31 MB)", "network-manager (31 MB)"
	for uid, test := range map[string]struct{ kernels, told []string }{
		"1000": {[]string{"cloud-kernel"}, []string{guests}},
		"0": {
			[]string{"cloud-kernel", "dpdk", "full-kernel", "network-manager"},
			[]string{manager, foreign, guests, hosts},
		},
	} {
		m := newMachine(t, uid)
		out, err := m.setup()
		lines := strings.FieldsFunc(out, func(r rune) bool { return r == '\n' })
		if err != nil || len(lines) != len(test.told) {
			t.Fatalf("user %s: %v\n%s", uid, err, out)
		}
		for i, told := range test.told {
			if want := "setup.sh: downloading " + told + ", to be unpacked into " + m.cache; lines[i] != want {
				t.Errorf("user %s: it says %q, want %q", uid, lines[i], want)
			}
		}
		if got := m.kernels(); !slices.Equal(got, test.kernels) {
			t.Errorf("user %s has %q, want %q", uid, got, test.kernels)
		}
		if out, err := m.setup("BROKEN=1"); err != nil || out != "" {
			t.Errorf("user %s, once more: %v\n%s", uid, err, out)
		}
	}
}

// TestSetupCutShort: an interrupted setup leaves nothing that looks like a kernel.
func TestSetupCutShort(t *testing.T) {
	m := newMachine(t, "1000")
	if out, err := m.setup("BROKEN=1"); err == nil {
		t.Errorf("no kernel is available:\n%s", out)
	}
	if got := m.kernels(); len(got) > 0 {
		t.Errorf("it leaves %q", got)
	}
}

// TestSetupExpandsKernels: whatever packed the kernel, setup unpacks it, also one of an earlier
// setup. One that it cannot unpack stays alone.
func TestSetupExpandsKernels(t *testing.T) {
	const kernel = "\x7fELF and so on"
	for pack, want := range map[string][]string{
		"lz4 -lc": {"vmlinux-6.1.0-1", "vmlinuz-6.1.0-1"}, "xz -c": {"vmlinux-6.1.0-1", "vmlinuz-6.1.0-1"},
		"gzip -c": {"vmlinuz-6.1.0-1"}, "echo broken; false": {"vmlinuz-6.1.0-1"},
	} {
		cmd := exec.CommandContext(t.Context(), "sh", "-c", pack)
		cmd.Stdin = strings.NewReader(kernel)
		packed, err := cmd.Output()
		if err != nil {
			packed = []byte("\xfd7zXZ\x00 is all")
		}
		// Two sectors of setup, and the payload 3 bytes after them.
		image := make([]byte, 3*512+3, 4096)
		image[0x1f1] = 2
		binary.LittleEndian.PutUint32(image[0x248:], 3)
		binary.LittleEndian.PutUint32(image[0x24c:], uint32(len(packed)+4))
		image = append(append(append(image, packed...), byte(len(kernel)), 0, 0, 0), "what follows"...)
		m := newMachine(t, "1000")
		if out, err := m.setup(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		boot := filepath.Join(m.cache, "cloud-kernel", "boot")
		if err := os.WriteFile(filepath.Join(boot, "vmlinuz-6.1.0-1"), image, 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := m.setup()
		entries, _ := os.ReadDir(boot)
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		if err != nil || !slices.Equal(names, want) {
			t.Errorf("%s: %v, %q, want %q\n%s", pack, err, names, want, out)
		}
		expanded, _ := os.ReadFile(filepath.Join(boot, "vmlinux-6.1.0-1"))
		if len(want) == 2 && string(expanded) != kernel {
			t.Errorf("%s: unpacked to %q", pack, expanded)
		}
	}
}
