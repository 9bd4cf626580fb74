package rundir

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"vmnet/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestOf(t *testing.T) {
	for _, test := range []struct {
		uid     int
		runtime string
		want    []string
	}{
		{0, "/run/user/0", []string{"/run/vmnet"}},
		{7, "", []string{"/tmp/vmnet-7", "/run/user/7/vmnet", "/var/tmp/vmnet-7", "/dev/shm/vmnet-7"}},
		{7, "relative", []string{"/tmp/vmnet-7", "/run/user/7/vmnet", "/var/tmp/vmnet-7", "/dev/shm/vmnet-7"}},
		{7, "/run/user/7", []string{"/run/user/7/vmnet", "/tmp/vmnet-7", "/var/tmp/vmnet-7", "/dev/shm/vmnet-7"}},
		{7, "/x", []string{"/x/vmnet", "/tmp/vmnet-7", "/run/user/7/vmnet", "/var/tmp/vmnet-7", "/dev/shm/vmnet-7"}},
	} {
		if got := Of(test.uid, test.runtime); !slices.Equal(got, test.want) {
			t.Errorf("%d, %q: %q", test.uid, test.runtime, got)
		}
	}
}

func TestMake(t *testing.T) {
	dir, me := t.TempDir(), os.Getuid()
	others, own := filepath.Join(dir, "others"), filepath.Join(dir, "own")
	if err := errors.Join(os.Mkdir(others, 0o700), os.Chmod(others, 0o777)); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the first call makes it, the second one finds it
		if got, err := Make([]string{filepath.Join(dir, "none", "x"), others, own}, me); got != own || err != nil {
			t.Errorf("%s, %v", got, err)
		}
	}
	got, err := Make([]string{others}, me)
	cure := me == 0 ||
		err != nil && strings.Contains(err.Error(), "set XDG_RUNTIME_DIR to a directory that is yours alone")
	if err == nil || !strings.Contains(err.Error(), others+" is not a directory that you own") || !cure {
		t.Errorf("%s, %v", got, err)
	}
	if got := Own([]string{others, filepath.Join(dir, "none"), own}, me); !slices.Equal(got, []string{own}) {
		t.Errorf("own: %q", got)
	}
}

func TestMkdirWhateverTheUmask(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "own")
	defer syscall.Umask(syscall.Umask(0o777))
	if err := Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if err := Mkdir(dir, 0o711); !errors.Is(err, os.ErrExist) {
		t.Error(err)
	}
}

func TestOwnedAlone(t *testing.T) {
	dir, me := t.TempDir(), os.Getuid()
	path := func(name string) string { return filepath.Join(dir, name) }
	err := errors.Join(
		os.Mkdir(path("good"), 0o700), os.Mkdir(path("group"), 0o700), os.Chmod(path("group"), 0o770),
		os.Mkdir(path("all"), 0o700), os.Chmod(path("all"), 0o707),
		os.Symlink(path("good"), path("link")), os.WriteFile(path("file"), nil, 0o600))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{
		"good": true, "group": false, "all": false, "link": false,
		"file": false, "nothing": false,
	} {
		if err := OwnedAlone(path(name), me); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
	if OwnedAlone(path("good"), me+1) == nil {
		t.Error("another user's directory is used")
	}
}
