package policy

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func writePolicy(t *testing.T, text string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "policy.yaml")
	err := os.WriteFile(path, []byte(text), mode)
	if err == nil {
		err = os.Chmod(path, mode) // whatever the umask
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTrusted(t *testing.T) {
	for _, tc := range []struct {
		mode os.FileMode
		want string
	}{
		{0o644, ""},
		{0o600, ""},
		{0o664, "users other than its owner may write it (chmod 0644 "},
		{0o646, "users other than its owner may write it (chmod 0644 "},
	} {
		path := writePolicy(t, "", tc.mode)
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		me := uint32(os.Geteuid())
		checkError(t, trusted(path, info, me), tc.want)
		checkError(t, trusted(path, info, me+1), "it does not belong to uid ")
	}
}

func checkError(t *testing.T, err error, want string) {
	t.Helper()
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Errorf("got %v, want %q", err, want)
	}
}

func TestLoad(t *testing.T) {
	path := writePolicy(t, rules, 0o666)
	if p, err := Load(path); err == nil || p != nil {
		t.Errorf("a file that anyone may write was loaded: %v", err)
	}
	p, err := LoadDraft(path)
	if err != nil || p.Rules() != 3 || len(p.Warnings()) != 1 {
		t.Errorf("%+v, %v", p, err)
	}
	_, err = Load(writePolicy(t, "rules: 1\n", 0o644))
	checkError(t, err, "policy.yaml:1:8: rules is not a list")
	_, err = Load(writePolicy(t, strings.Repeat("#\n", 1<<20), 0o644))
	checkError(t, err, "more than 1048576 bytes")
}

func TestLiveLoadOfRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		_, err := Load(writePolicy(t, rules, 0o644))
		checkError(t, err, "it does not belong to uid 0 (chown 0 ")
		return
	}
	path := writePolicy(t, rules, 0o644)
	if p, err := Load(path); err != nil || p.Rules() != 3 {
		t.Errorf("%+v, %v", p, err)
	}
	if err := os.Chown(path, 1000, 0); err != nil {
		t.Fatal(err)
	}
	_, err := Load(path)
	checkError(t, err, "it does not belong to uid 0 (chown 0 ")
}

// The defaults apply only if there is no file.
func TestLoadMissing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "policy.yaml")
	if _, err := Load(path); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if err := os.Symlink("nowhere", path); err != nil {
		t.Fatal(err)
	}
	_, err := Load(path)
	checkError(t, err, "it is a dangling symbolic link")
	if errors.Is(err, fs.ErrNotExist) {
		t.Error("a link to nowhere is taken for no file")
	}
	_, err = Load(dir)
	checkError(t, err, "it is not a regular file")
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = Load(fifo)
	checkError(t, err, "it is not a regular file")
}
