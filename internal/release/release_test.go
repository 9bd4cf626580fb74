// Package release has the script of `make release`, and its test.
package release

import (
	"archive/tar"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"vmnet/internal/cli/version"
	"vmnet/internal/leaktest"
	"vmnet/internal/testprogram"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

const (
	top  = "../.."
	hash = "0123456789abcdef0123456789abcdef01234567"
	name = "vmnet-" + version.Number
)

// release copies the tree to a new directory, as git archive would, and makes a release of the
// copy.
func release(t *testing.T, dir string, env ...string) (out, said string) {
	t.Helper()
	tree := filepath.Join(dir, "tree")
	if err := os.MkdirAll(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	testprogram.Run(t, top, nil, "sh", "-c",
		`find . \( -path ./bin -o -path ./dist -o -path ./.git \) -prune -o ! -type d -print0 | tar --null -T - -c | tar -x -C "$0"`,
		tree)
	commit := filepath.Join(tree, "internal/cli/version/commit.txt")
	if err := os.WriteFile(commit, []byte(hash+" 1700000000\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(tree, "dist"), testprogram.Run(t, tree, env, "make", "release")
}

func read(t *testing.T, path ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// contents returns the modes and texts of an archive's files.
func contents(t *testing.T, archive string) (modes, texts map[string]string) {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	modes, texts = map[string]string{}, map[string]string{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return modes, texts
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.ModTime.Unix() != 1700000000 || strings.HasPrefix(h.Name, "/") {
			t.Errorf("%s: uid %d, gid %d, time %v", h.Name, h.Uid, h.Gid, h.ModTime)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		modes[h.Name], texts[h.Name] = h.FileInfo().Mode().String(), string(text)
	}
}

// testSBOM wants each program's modules, and nothing that another build would write otherwise.
func testSBOM(t *testing.T, dir string) {
	for program, module := range map[string]string{
		"vmnet": "github.com/vishvananda/netlink", "vmnet-hook": "golang.org/x/sys",
		"vmnet-cni": "github.com/containernetworking/cni", "qemu-netup": "kernel.org/pub/linux/libs/security/libcap/cap",
		"qemu-netup-full": "github.com/cilium/ebpf",
	} {
		text := read(t, dir, program+"-"+version.Number+"-linux-"+runtime.GOARCH+".cdx.json")
		var bom struct {
			Format   string `json:"bomFormat"`
			Metadata struct {
				Timestamp string
				Component struct{ Name, Version string }
			}
			Components []struct{ Name, Version string }
		}
		if err := json.Unmarshal([]byte(text), &bom); err != nil {
			t.Fatalf("%s: %v", program, err)
		}
		if m := bom.Metadata; bom.Format != "CycloneDX" || m.Timestamp != "" || m.Component.Version != version.Number ||
			strings.Contains(text, "serialNumber") {
			t.Errorf("%s: %+v", program, bom)
		}
		has := func(name string) bool {
			return slices.ContainsFunc(bom.Components, func(c struct{ Name, Version string }) bool {
				return c.Name == name && c.Version != ""
			})
		}
		if !has(module) || !has("std") {
			t.Errorf("%s: neither %s nor Go's library among %+v", program, module, bom.Components)
		}
	}
}

// TestRelease makes the same release in two places and compares the bytes.
func TestRelease(t *testing.T) {
	one, _ := release(t, t.TempDir(), "TZ=Asia/Tokyo", "SOURCE_DATE_EPOCH=", "PACKAGES=")
	other := filepath.Join(t.TempDir(), "another place")
	two, said := release(t, other, "LC_ALL=C.UTF-8", "GOFLAGS=-mod=mod", "HOME="+os.Getenv("HOME"),
		"PACKAGES=deb", "ARCHES="+runtime.GOARCH)
	sums, deb := read(t, two, "SHA256SUMS"), "vmnet_"+version.Number+"_"+runtime.GOARCH+".deb"
	var others []string // of two, without what one has not been asked for
	for line := range strings.Lines(sums) {
		if !strings.HasSuffix(line, "  "+deb+"\n") {
			others = append(others, line)
		}
	}
	if again := read(t, one, "SHA256SUMS"); strings.Join(others, "") != again || len(others) != 8 ||
		!strings.Contains(sums, deb) {
		t.Errorf("two builds differ:\n%s\n%s", sums, again)
	}
	if !strings.Contains(said, sums) {
		t.Errorf("it does not print the sums:\n%s", said)
	}
	testprogram.Run(t, two, nil, "sha256sum", "--check", "--strict", "SHA256SUMS")
	if notes := read(t, one, name+".md"); len(notes) < 100 || strings.Contains(notes, "\n## ") {
		t.Errorf("release notes:\n%s", notes)
	}

	testSBOM(t, one)

	sources, _ := contents(t, filepath.Join(one, name+".tar.gz"))
	for _, file := range []string{"go.mod", "Makefile", "LICENSE", "cmd/vmnet/main.go", "docs/man/qemu-netup.8.md"} {
		if sources[name+"/"+file] != "-rw-r--r--" {
			t.Errorf("sources: %s is %q", file, sources[name+"/"+file])
		}
	}
	for file := range sources {
		if strings.Contains(file, "/.git/") || strings.HasPrefix(file, name+"/dist") ||
			strings.HasPrefix(file, name+"/bin") {
			t.Errorf("sources: %s", file)
		}
	}

	built := name + "-linux-" + runtime.GOARCH
	modes, texts := contents(t, filepath.Join(one, built+".tar.gz"))
	for file, want := range map[string]string{
		"bin/vmnet": "-rwxr-xr-x", "bin/vmnet-hook": "-rwxr-xr-x", "lib/cni/vmnet-cni": "-rwxr-xr-x",
		"bin/qemu-netup":                   "-rwxr-xr-x",
		"libexec/vmnet/qemu-netup-full":    "-rwxr-xr-x",
		"libexec/vmnet/qemu-bridge-helper": "Lrwxr-xr-x",
		"share/man/man8/vmnet.8":           "-rw-r--r--", "share/man/man5/policy.yaml.5": "-rw-r--r--",
		"share/bash-completion/completions/vmnet": "-rw-r--r--", "share/zsh/site-functions/_vmnet": "-rw-r--r--",
		"lib/systemd/system/vmnet-watch.service": "-rw-r--r--", "share/doc/vmnet/examples/policy.yaml": "-rw-r--r--",
		"share/doc/vmnet/LICENSE": "-rw-r--r--",
		"share/doc/vmnet/files":   "-rw-r--r--",
	} {
		if modes[built+"/"+file] != want {
			t.Errorf("programs: %s is %q, want %q", file, modes[built+"/"+file], want)
		}
	}
	if page := texts[built+"/share/man/man8/vmnet.8"]; !strings.Contains(page,
		`"2023-11-14" "vmnet `+version.Number+`"`) {
		t.Errorf("its page does not say its version:\n%.200s", page)
	}
	testprogram.Run(t, one, nil, "tar", "-xf", built+".tar.gz")
	for _, program := range []string{"vmnet", "vmnet-hook"} {
		want := program + " " + version.Number + " (commit " + hash[:12] + ") go"
		got := testprogram.Run(t, one, nil, filepath.Join(one, built, "bin", program), "--version")
		if !strings.HasPrefix(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
